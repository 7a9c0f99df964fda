"""The rows that the benchmarks measure, print, plot and write as JSON."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AllreduceRow:
    """The result for one allreduce at one size.

    Attributes:
      algorithm: name of the algorithm; "mpi" for MPI's own, "auto" for the one chosen by measurement, "psum" for JAX's.
      engine: "native", "mpi4jax" or "xla"; "mpi4py" for MPI_Allreduce on preallocated buffers.
      size_bytes: size of the payload.
      median_s, p95_s: median and 95th percentile of the time over all repetitions, in seconds.
      busbw_gbit_s: bus bandwidth at the median time; with 16-bit values on the wire it may exceed that of the link.
      predicted_s: time predicted by the network model, in seconds; None for an allreduce without a schedule.
      ratio_to_mpi: median time of MPI's own allreduce under "mpi4jax" divided by this median time, so 2.0 means twice
        as fast as MPI; None if MPI's was not measured.
      exact: whether every sum was exact, in every repetition and on every rank.
      label: readable name of the engine, the algorithm and its options.
      wire: format of float32 values on the wire, a name in `WIRES`.
      segment_bytes: segment size; None for an allreduce without a schedule.
      seconds: time of each repetition on the slowest rank.
    """

    algorithm: str
    engine: str
    size_bytes: int
    median_s: float
    p95_s: float
    busbw_gbit_s: float
    predicted_s: float | None
    ratio_to_mpi: float | None
    exact: bool
    label: str
    wire: str
    segment_bytes: int | None
    seconds: list[float]


@dataclasses.dataclass(frozen=True)
class StepRow:
    """A step and its parts: medians over the repetitions, in seconds, on the slowest rank.

    Attributes:
      engine, model: the engine and the model.
      ranks: number of ranks.
      batch: number of images per rank.
      gradient_bytes: bytes of all buckets.
      buckets: number of buckets.
      forward_s: time of the forward pass and the loss.
      first_bucket_s: time from the end of the forward pass until the first bucket is ready.
      compute_s: time of forward, backward and update on each rank alone, without communication; in this program it is
        recorded when buckets are ready.
      transfer_s: 2 (p - 1) / p x bytes on the wire divided by the goodput of a plain MPI stream.
      floor_s: forward + first bucket + max(rest of compute, transfer).
      step_s: time of the whole step.
      plain_s: time of a step of the same model in a hand-written JAX loop without communication: gradient of the mean
        loss, and update.
      goodput_gbit_s: goodput of the stream.
      p95_step_s: 95th percentile of the time of the whole step.
      progress_share: share of a core that the native engine's progress thread uses in the step, on the busiest rank.
      tflop_s: TFLOP/s of one rank over the whole step, counting the FLOPs of forward and backward.
      peer: name of the fastest third-party baseline; None without --peers.
      peer_s: median time of its step.
      seconds: time of each repetition of the step on the slowest rank.
    """

    engine: str
    model: str
    ranks: int
    batch: int
    gradient_bytes: int
    buckets: int
    forward_s: float
    first_bucket_s: float
    compute_s: float
    transfer_s: float
    floor_s: float
    step_s: float
    plain_s: float
    goodput_gbit_s: float
    p95_step_s: float
    progress_share: float
    tflop_s: float
    peer: str | None
    peer_s: float | None
    seconds: list[float]


@dataclasses.dataclass(frozen=True)
class WeakRow:
    """The result for one framework on a number of hosts; times are medians over the rounds, on the slowest rank.

    Attributes:
      framework: an engine of jaxdp, or "torch".
      hosts: number of hosts.
      batch: number of images per host.
      alone_s: seconds per step when all hosts train at the same time, each alone.
      together_s: seconds per step when all hosts train as one job.
      transfer_s: 2 (p - 1) / p x bytes of the gradient divided by the goodput of one stream, in seconds.
      images_per_second: throughput of all hosts training together.
      efficiency: median over the rounds of alone_s / together_s.
      efficiencies: alone_s / together_s of each round.
    """

    framework: str
    hosts: int
    batch: int
    alone_s: float
    together_s: float
    transfer_s: float
    images_per_second: float
    efficiency: float
    efficiencies: list[float]


@dataclasses.dataclass(frozen=True)
class InputRow:
    """The result for one loader at one image size.

    Attributes:
      loader: "jaxdp"; "jaxdp on the host" for batches that stay in host memory, as torch's do; "memcpy" for the plain
        copy; "jaxdp beside a step" for the feed together with training steps; a loader and setting of `peer_loaders`;
        or a loader of `load`.
      image_size: height and width in pixels.
      images_per_second: images per second and rank, on the slowest rank; for the loaders of `load`, over all ranks.
      bytes_per_second: bytes of pixels per second; for the loaders of `load`, bytes of files.
      stall_fraction: share of the time in which training steps waited for data; None without training steps.
      crossing_bytes_per_step: mean number of bytes that a rank receives from other nodes per step.
    """

    loader: str
    image_size: int
    images_per_second: float
    bytes_per_second: float
    stall_fraction: float | None
    crossing_bytes_per_step: float


@dataclasses.dataclass(frozen=True)
class StagingRow:
    """The result for one stage, for all stages together, or for a baseline.

    Attributes:
      leg: name of the stage or baseline.
      devices: number and kind of the local devices.
      ranks: number of ranks.
      num_bytes: bytes of all buckets of one rank.
      median_s: median time on the slowest rank, in seconds.
      gb_s: num_bytes divided by that time, in 10^9 bytes per second.
      seconds: time of each repetition on the slowest rank.
    """

    leg: str
    devices: str
    ranks: int
    num_bytes: int
    median_s: float
    gb_s: float
    seconds: list[float]
