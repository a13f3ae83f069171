"""How commands are started."""
