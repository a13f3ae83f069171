"""Losses, schedules, checkpoints and the Ignite engines. Networks and loaders are handed in built."""
