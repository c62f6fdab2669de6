"""Callbacks: sparse-to-dense prediction, writers, export."""
