"""Reports from saved results; no model runs here."""
