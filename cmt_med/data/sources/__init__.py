"""Sources of cases."""
