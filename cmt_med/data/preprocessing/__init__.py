"""From a volume as read to the network's grid, and the cache."""
