"""Sparse-to-dense prediction: its plan, its files and what is shown of it."""
