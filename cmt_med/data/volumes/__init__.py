"""The gate: volumes are read here, checked, or not at all."""
