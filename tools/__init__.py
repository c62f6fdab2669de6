"""What makes the project's own files; no part of the package."""
