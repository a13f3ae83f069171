"""CMT for medical images: segmentation networks, training, inference and reports."""

__version__ = "0.1.0"
