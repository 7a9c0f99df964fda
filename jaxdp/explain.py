"""Describes what a config would do on its cluster; needs neither its data nor the cluster.

The command line may be that of `jaxdp train`, which does the same with --explain.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxdp.cli import parsing, train_flags
from jaxdp.runtime.world import World


def explain(arguments: train_flags.Arguments, world: World) -> None:
    """Prints the description on rank 0."""
    from jaxdp.planning import explain as planning

    assert arguments.config is not None, "the command line of train has a config"
    with world.agree_or_exit():
        if world.is_root:
            print(planning.explain(arguments.config), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on every rank."""
    parser = parsing.Parser(
        "explain",
        __doc__,
        examples=("jaxdp explain --config=resnet50_imagenet --config.allreduce.wire=bfloat16",),
    )
    train_flags.add_config_options(parser)
    train_flags.run(parser, train_flags.parse_train, explain, words)


if __name__ == "__main__":
    main()
