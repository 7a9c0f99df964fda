import os

# Before JAX is imported: tests of several devices a rank need them, and they run beside other ranks.
os.environ.setdefault("NPROC", "2")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
