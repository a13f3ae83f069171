"""From a case to a label map on its own grid, or to classes."""
