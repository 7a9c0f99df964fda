"""One training step as pure functions; imports neither MPI nor a JAX back end."""
