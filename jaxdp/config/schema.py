"""The whole config: all settings with their defaults, checked."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from jaxdp.collectives.config import MPI, AllreduceConfig
from jaxdp.data.config import DataConfig
from jaxdp.models.config import ModelConfig
from jaxdp.optim.config import OptimizerConfig, ScheduleConfig
from jaxdp.settings.build import build, flattened, group, setting, settings_that_may_change
from jaxdp.settings.rules import NOT_BELOW_0, BelowOne, Count, Positive, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often the state is saved.

    Attributes:
      every_epochs, every_steps: interval between checkpoints.
      keep: number of latest checkpoints that are kept.
      keep_best: number of further checkpoints that are kept, those with the best accuracy on the test split; None keeps
        no further ones.
    """

    every_epochs: Positive = 1.0
    every_steps: Count | None = None
    keep: Count = 3
    keep_best: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Checks on a run while it trains.

    Attributes:
      compare_every_steps: interval, in steps, at which all replicas of the state are compared. They are also compared
        before every save.
      on_divergence: what to do if replicas differ: "abort", or "dump" all of them into the workdir and abort.
      watchdog_seconds: the job ends if no rank makes progress for this long, or for ten times as long during
        compilation; None disables the watchdog.
    """

    compare_every_steps: Count = 100
    on_divergence: Annotated[str, one_of("abort", "dump")] = "abort"
    watchdog_seconds: Positive | None = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    nodes: Count = 1
    ranks_per_node: Count = 1
    devices_per_rank: Count = 1
    link_gbit: Positive = 100.0
    latency_us: Positive = 2.0
    images_per_second: Positive = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run.

    A setting is declared here or in the dataclass of its group, and nowhere else: name, type, rule, default, and
    whether a run may be resumed with another value. Durations are in epochs. Most also have a version in steps, which
    takes precedence if set.

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

    seed: Annotated[int, NOT_BELOW_0] = 0
    deterministic: bool = False
    init_from: str | None = None
    init_skip: tuple[str, ...] = ()
    batch_size: Count
    microbatches: Count = 1
    epochs: Positive
    steps: Count | None = None
    eval_every_epochs: Positive = setting(1.0, may_change=True)
    eval_every_steps: Count | None = setting(None, may_change=True)
    log_every_steps: Count = setting(50, may_change=True)
    norms_every_steps: Count | None = setting(None, may_change=True)
    label_smoothing: BelowOne = 0.0
    batch_statistics: Annotated[str, one_of("device", "world")] = "device"
    average_decay: BelowOne | None = None
    stop_after_skipped_steps: Count = setting(10, may_change=True)
    data: DataConfig = group(DataConfig)
    model: ModelConfig = group(ModelConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    allreduce: AllreduceConfig = group(AllreduceConfig, may_change=True)
    checkpoint: CheckpointConfig = group(CheckpointConfig, may_change=True)
    safety: SafetyConfig = group(SafetyConfig, may_change=True)
    cluster: ClusterConfig = group(ClusterConfig, may_change=True)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], *, warn: Callable[[str], None] = warnings.warn) -> Config:
        """Checks nested settings and returns their config. Settings that are not given get their defaults.

        Args:
          settings: nested mappings from names to values.
          warn: called with a message for each setting that is given under its old name.

        Raises:
          ValueError: a required setting is missing, or a setting is unknown, of the wrong type or out of range.
        """
        config = build(cls, settings, "config", warn=warn)
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


RESUMABLE_SETTINGS = settings_that_may_change(Config)
"""Settings, and groups of them, with which a run may be resumed with other values. They do not affect the result,
except for floating-point rounding."""


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
