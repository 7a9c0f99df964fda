"""A trial by fire: real jobs, real faults, and a count of what was lost."""
