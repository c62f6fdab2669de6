"""The results of a prediction run: numbers and tables."""
