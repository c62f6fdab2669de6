"""What a training run shows of itself: completions, curves, speed."""
