"""The ``vrts`` command."""
