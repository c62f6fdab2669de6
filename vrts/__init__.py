"""Reinforcement learning and sparse-to-dense test-time scaling for video language models."""
