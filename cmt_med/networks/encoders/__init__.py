"""Encoders: an image to a pyramid of features."""
