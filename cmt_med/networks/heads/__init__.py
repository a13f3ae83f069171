"""Heads: what a network predicts."""
