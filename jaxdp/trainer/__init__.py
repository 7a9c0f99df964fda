"""The life of a run: from a config to its last checkpoint."""
