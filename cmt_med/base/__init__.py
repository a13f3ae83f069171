"""Tools for everybody: errors, text, files."""
