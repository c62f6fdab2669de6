"""Files that vrts writes and reads."""
