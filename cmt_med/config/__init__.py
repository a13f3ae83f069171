"""The schema of an experiment, and its reading from YAML; without torch."""
