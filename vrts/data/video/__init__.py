"""Videos and images as frames for a model."""
