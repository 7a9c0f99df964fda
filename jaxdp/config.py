"""What a config may say: its settings and their types, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from jaxdp.collectives.algorithms import ALGORITHMS, INNER, OUTER
from jaxdp.collectives.choice import AUTO, MPI, WIRES
from jaxdp.models import MODELS
from jaxdp.settings import Rule, build, flattened

ENGINES = ("native", "mpi4jax", "xla")

# A run may go on with other values of these: none of them changes what is trained, but for the rounding of sums.
MAY_CHANGE = (
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

_ABOVE_0 = Rule(lambda number: 0 < number < math.inf, "{path} must be a number above 0, not {value}")
_NOT_BELOW_0 = Rule(lambda number: 0 <= number < math.inf, "{path} must be a number of 0 or more, not {value}")
_BELOW_1 = Rule(lambda number: 0 <= number < 1, "{path} must be in 0..1, without 1, not {value}")
_BOUNDARIES = Rule(
    lambda steps: list(steps) == sorted(set(steps)) and all(step > 0 for step in steps),
    "{path} are numbers above 0, the smaller ones first, not {value}",
)


def _one_of(*known: str) -> Rule:
    return Rule(lambda name: name in known, f"{{path}} is {{value!r}}, known are {', '.join(known)}")


def _interval(most: float, rule: str) -> Rule:
    def holds(values: tuple[float, ...]) -> bool:
        return len(values) == 2 and 0 < values[0] <= values[1] <= most

    return Rule(holds, f"{{path}} is two numbers {rule}, the smaller one first, not {{value}}")


_MODEL = Rule(
    lambda name: name in MODELS or ":" in name,
    f"{{path}} is {{value!r}}, known are {', '.join(MODELS)}; a model of your own is 'package.module:Name'",
)

Count = Annotated[int, _ABOVE_0]
Positive = Annotated[float, _ABOVE_0]
NotNegative = Annotated[float, _NOT_BELOW_0]
BelowOne = Annotated[float, _BELOW_1]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set and its way to the devices.

    Attributes:
      name: of a TFDS image classification set prepared as array_record; "digits"; "synthetic:TRAIN:TEST:SIZE:CLASSES"
        for noise; or `package.module:function` of one of your own, see `source.of_examples`.
      dir: the folder with the prepared sets; None for TFDS's own (TFDS_DATA_DIR, else ~/tensorflow_datasets).
      train_split, test_split: names of the splits to train on and to evaluate on.
      mean, std: of the pixels in 0..1, one value or one a channel; images are normalised with them.
      storage: of images in memory: "pixels", or "encoded" for their files, decoded when they are needed; then "resized"
        crops are cut on the host out of images as they are in the set.
      stored_size: height and width of images in memory, or decoded: the shorter side is resized, the middle cut out;
        None for images as they are in the set, which must all have one size.
      image_size, crop, crop_padding, crop_area, crop_ratio, flip, augment: what the model sees of them, see
        `Augmentation`.
      shuffle: "global", a permutation of all examples every epoch, or "partition", see `Partitions`.
      partitions: their number ("partition" only).
      exchange_every: epochs from one exchange of the partitions to the next.
      groups: of nodes, each of which holds the whole training split and exchanges rows inside only.
      exchange_steps: steps whose rows cross between the nodes in one exchange.
      prefetch: batches that are on the devices ahead of the step.
    """

    name: str
    dir: str | None
    train_split: str
    test_split: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    storage: Annotated[str, _one_of("pixels", "encoded")]
    stored_size: Count | None
    image_size: Count | None
    crop: Annotated[str, _one_of("none", "padded", "resized")]
    crop_padding: Annotated[int, _NOT_BELOW_0]
    crop_area: Annotated[tuple[float, ...], _interval(1.0, "above 0 and up to 1")]
    crop_ratio: Annotated[tuple[float, ...], _interval(math.inf, "above 0")]
    flip: bool
    augment: str | None
    shuffle: Annotated[str, _one_of("global", "partition")]
    partitions: Count | None
    exchange_every: Count
    groups: Count
    exchange_steps: Count
    prefetch: Count


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: its name in the table of models, or `package.module:Name` of one of your own.

    All further settings go to the model as they are.
    """

    name: Annotated[str, _MODEL]
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
      name: "lars", "sgd" or "adamw".
      momentum: of the velocity ("lars" and "sgd").
      nesterov: Nesterov's form of it ("sgd" only).
      weight_decay: of kernels; for "adamw" decoupled, as a part of the rate.
      trust_coefficient: eta of LARS ("lars" only).
      beta1, beta2, epsilon: of the moments ("adamw" only).
      vectors_too: decay (and scale, in LARS) biases and normalisation as well as kernels.
      clip_norm: gradients whose norm over all parameters is larger are scaled down to it; None for no clipping.
    """

    name: Annotated[str, _one_of("adamw", "lars", "sgd")]
    momentum: BelowOne
    nesterov: bool
    weight_decay: NotNegative
    trust_coefficient: Positive
    beta1: BelowOne
    beta2: BelowOne
    epsilon: Positive
    vectors_too: bool
    clip_norm: Positive | None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate.

    Attributes:
      base_rate: the peak rate at `base_batch_size`; it is scaled in proportion to the global batch.
      base_batch_size: see there.
      warmup_epochs, warmup_steps: length of the linear warmup.
      warmup_init_rate: where it starts.
      decay: from the end of the warmup on: "cosine" or "polynomial" to the end of the run, "step" at boundaries, or
        "constant".
      power: of the polynomial.
      end_rate: where cosine and polynomial end.
      boundaries_epochs, boundaries_steps: at which "step" multiplies the rate by `factor`, counted from the start.
      factor: see there.
    """

    base_rate: Positive
    base_batch_size: Count
    warmup_epochs: NotNegative
    warmup_steps: Annotated[int, _NOT_BELOW_0] | None
    warmup_init_rate: NotNegative
    decay: Annotated[str, _one_of("constant", "cosine", "polynomial", "step")]
    power: Positive
    end_rate: NotNegative
    boundaries_epochs: Annotated[tuple[float, ...], _BOUNDARIES]
    boundaries_steps: Annotated[tuple[int, ...], _BOUNDARIES] | None
    factor: Positive


@dataclasses.dataclass(frozen=True)
class AllreduceConfig:
    """How gradients cross between ranks.

    Attributes:
      engine: what runs the algorithms: "native", all buckets at once beside the backward pass, or "mpi4jax", one after
        the other behind it; or "xla" for JAX's own collectives (gloo between CPUs, NCCL between GPUs), to which only
        `bucket_bytes` applies.
      algorithm: a name in the table of algorithms, "mpi" for the MPI library's own, or "auto" for the one that
        measurements at the start of the job find best; it is kept as long as the run goes on with as many ranks.
      colors, arity: of the multi-color trees; None to choose by the number of ranks.
      inner, outer: the algorithms of a hierarchical allreduce, inside nodes and between them.
      ranks_per_node: of a hierarchical allreduce; None for as many as there are on this one.
      segment_bytes: the size of the pieces in which chunks go through the pipeline; "auto" chooses it too.
      wire: what float32 values are rounded to when they are sent: "bfloat16", "float16", or "float32" as they are.
        Sums are in float32 whatever it is.
      bucket_bytes: with which a bucket of gradients, which one allreduce sums, is closed.
    """

    engine: Annotated[str, _one_of(*ENGINES)]
    algorithm: Annotated[str, _one_of(*ALGORITHMS, MPI, AUTO)]
    colors: Count | None
    arity: Count | None
    inner: Annotated[str, _one_of(*INNER)]
    outer: Annotated[str, _one_of(*OUTER)]
    ranks_per_node: Count | None
    segment_bytes: Count
    wire: Annotated[str, _one_of(*WIRES)]
    bucket_bytes: Count


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved.

    Attributes:
      every_epochs, every_steps: how often.
      keep: how many of the last saves are kept.
      keep_best: how many more are, those with the best accuracy on the test split; None for none.
    """

    every_epochs: Positive
    every_steps: Count | None
    keep: Count
    keep_best: Count | None


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """What watches over a run.

    Attributes:
      compare_every_steps: how often all replicas of the state are compared; they are before every save too.
      on_divergence: what to do if they differ: "abort", or "dump" all of them into the workdir first.
      watchdog_seconds: a job in which nothing has moved on any rank for so long is ended, ten times as long while
        programs are compiled; None for never.
    """

    compare_every_steps: Count
    on_divergence: Annotated[str, _one_of("abort", "dump")]
    watchdog_seconds: Positive | None


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What the run is made for; for --explain alone, a job runs on whatever it is started on.

    Attributes:
      nodes, ranks_per_node, devices_per_rank: how many.
      link_gbit: Gbit/s of a rank's link in each direction.
      latency_us: microseconds that a message costs.
      images_per_second: of a rank that trains by itself.
    """

    nodes: Count
    ranks_per_node: Count
    devices_per_rank: Count
    link_gbit: Positive
    latency_us: Positive
    images_per_second: Positive


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Durations are in epochs; where the same one in steps is set too, that counts in its place.

    Attributes:
      seed: of parameters and of the order of the data.
      deterministic: whether GPUs, too, give the same bits in every run, with slower operations in places; CPUs do, with
        the same number of threads a rank.
      init_from: whose parameters and batch statistics to begin with: a workdir, a checkpoint in one, or a file of
        `numpy.savez` with an array for each name that --explain lists; None for random ones.
      init_skip: the first parts of the names of what begins with random values even so, as "head".
      batch_size: the global batch, over all ranks.
      microbatches: parts of a device's batch that it goes through one after the other, to need less memory: gradients
        add up to those of the whole; batch statistics are those of a part.
      epochs, steps: length of the run.
      eval_every_epochs, eval_every_steps: how often the test split is evaluated.
      log_every_steps: how often a line of metrics is written.
      norms_every_steps: how often one with the norms of every array is, and of its trust ratio; None for never.
      label_smoothing: the share of the target that is spread evenly over all classes, in training.
      batch_statistics: in training those of the "device", of the examples that it sees, as in the papers; or of the
        "world", of the whole global batch (of all ranks' parts of a microbatch), which costs two messages a layer.
      average_decay: of the running mean of the parameters, which is evaluated in their place; None for none.
      stop_after_skipped_steps: steps whose gradient is not finite change nothing; so many in a row end the job.
    """

    seed: Annotated[int, _NOT_BELOW_0]
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
    batch_statistics: Annotated[str, _one_of("device", "world")]
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
        """The checked config of these nested settings.

        Raises:
          ValueError: a setting is missing, unknown, of the wrong type or out of range.
        """
        config = build(cls, settings, "config")
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The nested settings that make this config again; JSON can hold them."""
        settings = dataclasses.asdict(self)
        settings["model"] |= settings["model"].pop("options")
        return settings

    def difference(self, other: Config, *, free: Collection[str] = ()) -> str | None:
        """The first setting that is not the same in two configs, in words; None if there is none.

        Args:
          other: the config that is "here", this one being "there".
          free: settings, or groups of them, that may differ.
        """
        there, here = (flattened(config.to_dict()) for config in (self, other))
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name) and not any(f"{name}.".startswith(f"{group}.") for group in free):
                return f"config.{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        return None


def _check(config: Config) -> None:
    """What several settings must be together."""
    if config.optimizer.nesterov and config.optimizer.name != "sgd":
        raise ValueError(
            f"{config.optimizer.name.upper()} has no Nesterov form: set config.optimizer.nesterov to False"
        )
    if config.allreduce.wire != "float32" and config.allreduce.algorithm == MPI:
        raise ValueError(
            "the MPI library's own allreduce sends what it sums: "
            f"config.allreduce.wire {config.allreduce.wire!r} needs another config.allreduce.algorithm than 'mpi'"
        )
    if config.allreduce.wire != "float32" and config.allreduce.engine == "xla":
        raise ValueError(
            f"JAX's own collectives send what they sum: config.allreduce.wire {config.allreduce.wire!r} needs "
            "config.allreduce.engine 'native' or 'mpi4jax'"
        )
    if config.data.shuffle == "partition":
        if config.data.storage == "encoded":
            raise ValueError(
                "partitions exchange rows of one size, which files are not: config.data.shuffle 'partition' needs "
                "config.data.storage 'pixels'"
            )
        if config.data.partitions is None:
            raise ValueError(
                "config.data.shuffle 'partition' needs config.data.partitions: best the number of nodes, as then rows "
                "cross in exchanges of the partitions only"
            )
        if config.data.partitions > config.batch_size:
            raise ValueError(
                f"every partition gives a part of each batch: config.data.partitions is {config.data.partitions}, "
                f"config.batch_size {config.batch_size}: set it to that or less"
            )
    if not config.data.mean or len(config.data.mean) != len(config.data.std) or min(config.data.std) <= 0:
        raise ValueError(
            f"config.data.mean and std need as many values as one another, std above 0: they are {config.data.mean} "
            f"and {config.data.std}"
        )
