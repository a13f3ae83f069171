"""Scores of predictions against references, and their statistics."""
