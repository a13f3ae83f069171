"""Weights that a network may start from."""
