"""The machine: memory, limits, signals, processes."""
