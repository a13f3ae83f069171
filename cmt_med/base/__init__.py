"""What everybody may use: errors, text, files."""
