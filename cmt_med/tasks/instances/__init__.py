"""Numbered objects, from maps of foreground and depth."""
