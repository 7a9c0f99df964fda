"""Fault injection on real jobs, with a count of the training progress that is lost."""
