"""Masked images, without labels: weights for other tasks to start from."""
