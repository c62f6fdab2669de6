"""Attention over a prompt that many completions share."""
