"""The settings of a config, with their types and checks."""

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

# Settings that may change when a run is resumed. They do not affect the result, except for floating-point rounding.
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
_NOT_BELOW_0 = Rule(lambda number: 0 <= number < math.inf, "{path} must be 0 or more, not {value}")
_BELOW_1 = Rule(lambda number: 0 <= number < 1, "{path} must be at least 0 and below 1, not {value}")
_BOUNDARIES = Rule(
    lambda steps: list(steps) == sorted(set(steps)) and all(step > 0 for step in steps),
    "{path} must be increasing numbers above 0, not {value}",
)


def _one_of(*known: str) -> Rule:
    return Rule(lambda name: name in known, f"{{path}} must be one of {', '.join(known)}, not {{value!r}}")


def _interval(most: float, rule: str) -> Rule:
    def holds(values: tuple[float, ...]) -> bool:
        return len(values) == 2 and 0 < values[0] <= values[1] <= most

    return Rule(holds, f"{{path}} must be two numbers {rule}, the smaller one first, not {{value}}")


_MODEL = Rule(
    lambda name: name in MODELS or ":" in name,
    f"{{path}} must be one of {', '.join(MODELS)}, or your own model as 'package.module:Name', not {{value!r}}",
)

Count = Annotated[int, _ABOVE_0]
Positive = Annotated[float, _ABOVE_0]
NotNegative = Annotated[float, _NOT_BELOW_0]
BelowOne = Annotated[float, _BELOW_1]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, and how its images reach the devices.

    Attributes:
      name: a TFDS image classification set prepared as array_record; "digits"; "synthetic:TRAIN:TEST:SIZE:CLASSES" for
        noise; or `package.module:function` for your own data set, see `source.of_examples`.
      dir: the folder with the prepared sets; None uses the default of TFDS (TFDS_DATA_DIR, else ~/tensorflow_datasets).
      train_split, test_split: names of the splits for training and for evaluation.
      mean, std: mean and standard deviation used to normalise pixels in 0..1, as one value or one per channel.
      storage: how images are held in memory: as "pixels", or "encoded" as image files, which are decoded when a batch
        is built. With "encoded", "resized" crops are cut on the host from images of the original size.
      stored_size: height and width of images in memory, or once decoded: the shorter side is resized to it and the
        middle is cut out. None keeps the images as they are in the set; they must then all have the same size.
      image_size: height and width of the model's input; None keeps the stored size.
      crop: how training images are cropped: "none", "padded" or "resized", see `Augmentation`.
      crop_padding: margin of zeros around the image for "padded" crops, in pixels.
      crop_area: range of the area of "resized" crops, as a fraction of the image's area.
      crop_ratio: range of the aspect ratio of "resized" crops, width over height.
      flip: mirror half of the training images.
      augment: your own augmentation as `package.module:function`, applied to each training image after cropping and
        flipping, see `Augmentation`; None for none.
      shuffle: "global" permutes all examples every epoch; "partition" shuffles within partitions, see `Partitions`.
      partitions: number of partitions ("partition" only).
      exchange_every: epochs between exchanges of rows among the partitions ("partition" only).
      groups: number of groups that the nodes are divided into. Each group holds the full training split, and rows move
        within a group only.
      exchange_steps: number of steps whose rows are moved between nodes in one exchange.
      prefetch: number of batches that are moved to the devices ahead of the current step.
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
    """The network.

    Attributes:
      name: a name in the table of models, or `package.module:Name` for your own model.
      options: all further settings of the group, passed to the model unchanged.
    """

    name: Annotated[str, _MODEL]
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
      name: "lars", "sgd" or "adamw".
      momentum: momentum coefficient of the velocity ("lars" and "sgd").
      nesterov: use Nesterov momentum ("sgd" only).
      weight_decay: weight decay coefficient of the kernels; for "adamw" decoupled, and multiplied by the learning rate.
      trust_coefficient: trust coefficient eta of LARS ("lars" only).
      beta1, beta2: decay rates of the first and second moments ("adamw" only).
      epsilon: constant added to the denominator of the update ("adamw" only).
      vectors_too: also apply weight decay, and LARS scaling, to biases and normalisation parameters.
      clip_norm: the gradient is scaled down to this norm, over all parameters, if its norm is larger; None disables
        clipping.
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
      base_rate: the peak rate at `base_batch_size`; the peak rate is proportional to the global batch size.
      base_batch_size: the batch size at which `base_rate` applies.
      warmup_epochs, warmup_steps: length of the linear warmup.
      warmup_init_rate: the rate at the start of the warmup.
      decay: how the rate falls after the warmup: "cosine" or "polynomial" until the end of the run, "step" at the
        boundaries, or "constant".
      power: exponent of the "polynomial" decay.
      end_rate: final rate of the "cosine" and "polynomial" decay.
      boundaries_epochs, boundaries_steps: where "step" lowers the rate, counted from the start of the run.
      factor: the rate is multiplied by this at each boundary ("step" only).
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
    """How gradients are summed over the ranks.

    Attributes:
      engine: what runs the algorithms. "native" runs all buckets concurrently and overlaps them with the backward pass;
        "mpi4jax" runs one bucket after another once the backward pass is done. "xla" uses JAX's own collectives (gloo
        between CPUs, NCCL between GPUs); only `bucket_bytes` applies to them.
      algorithm: a name in the table of algorithms, "mpi" for the MPI library's own allreduce, or "auto" for the fastest
        one in measurements at the start of the job. A run keeps the choice of "auto" while the number of ranks stays
        the same.
      colors, arity: number of trees of the multi-color allreduce, and of children per rank in a tree; None chooses
        them by the number of ranks.
      inner, outer: the algorithms of a hierarchical allreduce within nodes and between nodes.
      ranks_per_node: for hierarchical allreduces; None uses the number of ranks on this node.
      segment_bytes: size of the segments into which chunks are cut for pipelining; "auto" chooses it too.
      wire: the type that float32 values are rounded to before they are sent: "bfloat16", "float16", or "float32" for no
        rounding. Sums are always computed in float32.
      bucket_bytes: target size of a gradient bucket; each bucket is summed by one allreduce.
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
    on_divergence: Annotated[str, _one_of("abort", "dump")]
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
