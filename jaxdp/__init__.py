"""jaxdp: image networks trained with synchronous data parallelism on MPI clusters, in JAX and Flax."""

__version__ = "0.1.0"
