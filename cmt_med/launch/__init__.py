"""Starting of commands."""
