"""Processes that decode, each within a deadline."""
