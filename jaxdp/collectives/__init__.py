"""Sums over all ranks.

The way of a bucket of gradients: `choice.Choice.of_config` (or `auto.choose`, by measurement) chooses its algorithm;
`algorithms` makes the schedule, which `proof` verifies; `allreduce.make_allreduce` makes it a plan of the native engine
(`run_native.plan_of_parts`) or messages of mpi4jax (`run_mpi4jax`); `placement.local` calls the result in the training
step.
"""
