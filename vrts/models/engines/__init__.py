"""What samples completions: many rows in flight on one copy of the weights."""
