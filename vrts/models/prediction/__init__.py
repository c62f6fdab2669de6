"""Prediction: questions sampled at denser and denser levels until their votes agree; replays."""
