"""Segmentation: a label for each voxel, of exclusive classes or of overlapping regions."""
