"""Sparse-to-dense prediction: its plan, and what is written and shown of it."""
