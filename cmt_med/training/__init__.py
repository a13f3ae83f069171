"""The loop, its schedule, budget and checkpoints. Networks, tasks and loaders are handed in built."""
