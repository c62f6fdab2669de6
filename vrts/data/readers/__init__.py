"""Annotation files of many forms, read as questions."""
