"""Patches, their augmentation, and batches of them."""
