"""What checkpoints hold, and how they are written, found and read safely."""
