"""The whole config: all settings with their defaults, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from jaxdp.collectives.config import MPI, AllreduceConfig
from jaxdp.data.config import DataConfig
from jaxdp.models.config import ModelConfig
from jaxdp.optim.config import OptimizerConfig, ScheduleConfig
from jaxdp.settings.build import build, flattened
from jaxdp.settings.rules import NOT_BELOW_0, BelowOne, Count, Positive, one_of

# Settings that may change when a run is resumed. They do not affect the result, except for floating-point rounding.
RESUMABLE_SETTINGS = (
    "allreduce",
    "checkpoint",
    "cluster",
    "data.dir",
    "data.exchange_steps",
    "data.groups",
    "data.prefetch",
    "eval_every_epochs",
    "eval_every_steps",
    "log_every_steps",
    "norms_every_steps",
    "safety",
    "stop_after_skipped_steps",
)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved.

    Attributes:
      every_epochs, every_steps: interval between checkpoints.
      keep: number of latest checkpoints that are kept.
      keep_best: number of further checkpoints that are kept, those with the best accuracy on the test split; None keeps
        no further ones.
    """

    every_epochs: Positive
    every_steps: Count | None
    keep: Count
    keep_best: Count | None


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """Checks on a run while it trains.

    Attributes:
      compare_every_steps: interval, in steps, at which all replicas of the state are compared. They are also compared
        before every save.
      on_divergence: what to do if replicas differ: "abort", or "dump" all of them into the workdir and abort.
      watchdog_seconds: the job ends if no rank makes progress for this long, or for ten times as long during
        compilation; None disables the watchdog.
    """

    compare_every_steps: Count
    on_divergence: Annotated[str, one_of("abort", "dump")]
    watchdog_seconds: Positive | None


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """The cluster that the run is meant for. Only --explain uses it; a job runs on whatever it is started on.

    Attributes:
      nodes: number of nodes.
      ranks_per_node: number of ranks on each node.
      devices_per_rank: number of JAX devices of each rank.
      link_gbit: bandwidth of each rank's link in each direction, in Gbit/s.
      latency_us: latency of a message, in microseconds.
      images_per_second: training throughput of a single rank without communication.
    """

    nodes: Count
    ranks_per_node: Count
    devices_per_rank: Count
    link_gbit: Positive
    latency_us: Positive
    images_per_second: Positive


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Durations are in epochs. Most also have a version in steps, which takes precedence if set.

    Attributes:
      seed: random seed of the initial parameters, the order of the data and augmentation.
      deterministic: make GPU runs bit-reproducible, at the cost of slower operations in places. CPU runs always are,
        given the same number of threads per rank.
      init_from: where to load the initial parameters and batch statistics from: a workdir, a checkpoint in a workdir,
        or a `numpy.savez` file with an array for each name that --explain lists; None for random initial values.
      init_skip: name prefixes of arrays that are not loaded from `init_from`, e.g. "head" for "head.kernel".
      batch_size: global batch size, over all ranks.
      microbatches: number of parts into which each device's batch is split. They run one after another to save memory.
        Gradients add up to those of the whole batch; batch statistics are computed over each part.
      epochs, steps: length of the run.
      eval_every_epochs, eval_every_steps: interval between evaluations of the test split.
      log_every_steps: interval, in steps, at which a line of metrics is written.
      norms_every_steps: interval, in steps, at which per-array norms and trust ratios are written; None disables it.
      label_smoothing: share of the target that is spread evenly over all classes, in training.
      batch_statistics: what batch statistics are computed over in training: the examples of each "device", as in the
        papers, or the "world", which is the global batch (all ranks' parts of a microbatch). "world" costs two messages
        per layer.
      average_decay: decay of the running mean of the parameters, which evaluations use instead of the parameters; None
        keeps no mean.
      stop_after_skipped_steps: steps with a non-finite gradient are skipped; the job ends after this many in a row.
    """

    seed: Annotated[int, NOT_BELOW_0]
    deterministic: bool
    init_from: str | None
    init_skip: tuple[str, ...]
    batch_size: Count
    microbatches: Count
    epochs: Positive
    steps: Count | None
    eval_every_epochs: Positive
    eval_every_steps: Count | None
    log_every_steps: Count
    norms_every_steps: Count | None
    label_smoothing: BelowOne
    batch_statistics: Annotated[str, one_of("device", "world")]
    average_decay: BelowOne | None
    stop_after_skipped_steps: Count
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    allreduce: AllreduceConfig
    checkpoint: CheckpointConfig
    safety: SafetyConfig
    cluster: ClusterConfig

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """Checks nested settings and returns their config.

        Raises:
          ValueError: a setting is missing, unknown, of the wrong type or out of range.
        """
        config = build(cls, settings, "config")
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The nested settings as plain values for JSON; `from_dict` restores the config from them."""
        settings = dataclasses.asdict(self)
        settings["model"] |= settings["model"].pop("options")
        return settings

    def difference(self, other: Config, *, free: Collection[str] = ()) -> str | None:
        """Describes the first setting, by name, that differs between two configs; None if all agree.

        Args:
          other: the config that the text calls "here"; this config is "there".
          free: settings, or groups of settings, that may differ.
        """
        there, here = (flattened(config.to_dict()) for config in (self, other))
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name) and not any(f"{name}.".startswith(f"{group}.") for group in free):
                return f"config.{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        return None


def _check(config: Config) -> None:
    """Checks that the settings fit together."""
    if config.optimizer.nesterov and config.optimizer.name != "sgd":
        raise ValueError(
            f"{config.optimizer.name.upper()} has no Nesterov form: set config.optimizer.nesterov to False"
        )
    if config.allreduce.wire != "float32" and config.allreduce.algorithm == MPI:
        raise ValueError(
            "the MPI library's allreduce cannot send rounded values: "
            f"config.allreduce.wire {config.allreduce.wire!r} needs a config.allreduce.algorithm other than 'mpi'"
        )
    if config.allreduce.wire != "float32" and config.allreduce.engine == "xla":
        raise ValueError(
            f"JAX's collectives cannot send rounded values: config.allreduce.wire {config.allreduce.wire!r} needs "
            "config.allreduce.engine 'native' or 'mpi4jax'"
        )
    if config.data.shuffle == "partition":
        if config.data.storage == "encoded":
            raise ValueError(
                "partitions exchange rows of equal size, but encoded images differ in size: config.data.shuffle "
                "'partition' needs config.data.storage 'pixels'"
            )
        if config.data.partitions is None:
            raise ValueError(
                "config.data.shuffle 'partition' needs config.data.partitions: set it, ideally to the number of nodes, "
                "so that rows move between nodes only when partitions exchange them"
            )
        if config.data.partitions > config.batch_size:
            raise ValueError(
                f"every partition contributes to each batch: config.data.partitions is {config.data.partitions}, but "
                f"config.batch_size {config.batch_size}: set config.data.partitions to the batch size or less"
            )
    if not config.data.mean or len(config.data.mean) != len(config.data.std) or min(config.data.std) <= 0:
        raise ValueError(
            "config.data.mean and config.data.std must have the same length, and std must be above 0: they are "
            f"{config.data.mean} and {config.data.std}"
        )
