"""Families of video language models: what differs between them, a file each."""
