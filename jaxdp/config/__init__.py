"""The config of a run, and what follows from it."""
