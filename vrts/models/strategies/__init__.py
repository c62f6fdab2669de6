"""Weights over several devices, and what a machine can do."""
