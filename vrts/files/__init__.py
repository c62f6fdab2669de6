"""Files that vrts writes and reads: whole or not there, with one owner for each format."""

from vrts.files.predictions import read_predictions

__all__ = ["read_predictions"]
