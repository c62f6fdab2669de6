"""What a prediction run comes to: numbers and tables."""
