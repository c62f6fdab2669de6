"""Files that vrts writes and reads: atomic writes, and one owner for each format."""

from vrts.files.predictions import read_predictions

__all__ = ["read_predictions"]
