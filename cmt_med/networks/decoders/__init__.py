"""Decoders: a pyramid of features to one map."""
