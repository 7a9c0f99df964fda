"""Command lines: argparse helpers, the flags of a training run, and the command `jaxdp`."""
