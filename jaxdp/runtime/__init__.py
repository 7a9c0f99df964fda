"""The job of MPI processes: ranks, launcher, GPUs, watchdog, preemption."""
