"""Describes what a config would do on its cluster; needs neither its data nor the cluster.

  jaxdp explain --config=configs/resnet50_imagenet.py --config.allreduce.wire=bfloat16

The options are those of `jaxdp train`, of which this is `jaxdp train --explain`.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxdp.cli import train_flags
from jaxdp.runtime.world import World


def _explain(arguments: train_flags.Arguments, world: World) -> None:
    """Prints the description on rank 0."""
    from jaxdp.planning.explain import explain

    assert arguments.config is not None, "parse_train returns a config"
    with world.agree_or_exit():
        if world.is_root:
            print(explain(arguments.config), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on every rank."""
    train_flags.main(__doc__, train_flags.parse_train, _explain, words)


if __name__ == "__main__":
    main()
