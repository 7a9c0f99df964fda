"""Describes what a config would do on its cluster, without its data and without that cluster.

Lists each parameter and what the optimizer does to it, the learning rate, FLOPs, memory and communication between
nodes. Warns, with sources, of choices that are known to lose accuracy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import AUTO, MPI
from jaxdp.collectives.cost import Link, NetworkModel
from jaxdp.config.recipe_warnings import recipe_warnings
from jaxdp.config.run_lengths import RunLengths
from jaxdp.config.schema import Config
from jaxdp.data.augment import Augmentation
from jaxdp.data.batch import Batch
from jaxdp.data.catalog import open_source
from jaxdp.data.known import KNOWN, Facts
from jaxdp.data.order import BatchSplit
from jaxdp.models.cpu.forms import count_flops, without_cpu_kernels
from jaxdp.models.network import Network as Model
from jaxdp.optim.factory import kernels, make_optimizer
from jaxdp.optim.schedules import make_schedule
from jaxdp.step.evaluate import evaluated_logits
from jaxdp.step.forward_backward import forward_backward, reduced_order, reduced_shapes
from jaxdp.step.state import TrainState, leaf_name
from jaxdp.step.task import Task

PyTree = Any

# Assumed time to add one byte of the payload on one core.
_SECONDS_A_BYTE_TO_ADD = 1e-10
_PRICED = ("multicolor", "ring", "halving_doubling")


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Everything derived from a config. Arrays are abstract: shapes and dtypes only."""

    config: Config
    facts: Facts
    stored_shape: tuple[int, int, int]
    lengths: RunLengths
    batch_split: BatchSplit
    model: Model
    task: Task
    state: TrainState


def explain(config: Config) -> str:
    """Describes a config in the text that --explain prints.

    Raises:
      ValueError: the config is invalid, or its data set is neither prepared nor among the known ones.
    """
    parts = _make_parts(config)
    sections = [
        ("run", _run(parts)),
        ("rate", _rate(parts)),
        ("parameters", _parameters(parts)),
        ("a step", _step(parts)),
        ("allreduce", _allreduce(parts)),
        ("data", _data(parts)),
        ("warnings", list(recipe_warnings(config, batch_a_device=parts.batch_split.per_device)) or ["none"]),
    ]
    return "\n".join(line for title, lines in sections for line in (title, *(f"  {line}" for line in lines)))


def _make_parts(config: Config) -> _Parts:
    facts = _facts(config)
    height, width = (config.data.stored_size or side for side in facts.image_shape[:2])
    if height is None or width is None:
        raise ValueError(f"the images of {config.data.name!r} differ in size: set config.data.stored_size")
    stored = (height, width, facts.image_shape[2])
    cluster = config.cluster
    lengths = RunLengths.of(config, facts.sizes[config.data.train_split])
    ranks = cluster.nodes * cluster.ranks_per_node
    batch_split = BatchSplit(config.batch_size, ranks, cluster.devices_per_rank, config.microbatches)
    model = Model.abstract(
        config.model.name,
        config.model.options,
        image_shape=Augmentation.of_config(config.data, seed=config.seed).shape(stored),
        num_classes=facts.num_classes,
    )
    optimizer = make_optimizer(config.optimizer, make_schedule(config.schedule, lengths), model.param_shapes)
    averages = config.average_decay is not None
    state = TrainState.abstract(model.param_shapes, model.stat_shapes, optimizer, averages=averages)
    # Microbatches run one after another, so the whole batch has the same totals.
    task = dataclasses.replace(Task.of_config(config, model, batch_split), microbatches=1)
    return _Parts(config, facts, stored, lengths, batch_split, model, task, state)


def _facts(config: Config) -> Facts:
    data = config.data
    try:
        source = open_source(data)
    except ValueError:
        if data.name not in KNOWN:
            raise
        facts = KNOWN[data.name]
        if data.train_split not in facts.sizes:
            raise ValueError(
                f"config.data.train_split is {data.train_split!r}, but {data.name!r} has the splits "
                f"{', '.join(facts.sizes)}: choose one of these"
            ) from None
        return facts
    splits = {"train": data.train_split, "test": data.test_split}
    return Facts(
        sizes={splits[split]: size for split, size in source.sizes.items()},
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        file_bytes={splits[split]: size for split, size in (source.file_bytes or {}).items()},
    )


def _run(parts: _Parts) -> Iterator[str]:
    config, batch_split, lengths, cluster = parts.config, parts.batch_split, parts.lengths, parts.config.cluster
    ranks = batch_split.num_ranks
    yield f"nodes {cluster.nodes}, ranks per node {cluster.ranks_per_node}, devices per rank {cluster.devices_per_rank}"
    yield (
        f"batch {config.batch_size:,}: {config.batch_size / ranks:g} per rank, {batch_split.per_device} per device"
        + (f" in {config.microbatches} microbatches" if config.microbatches > 1 else "")
        + (", padded" if batch_split.padded else "")
    )
    epochs = lengths.total_steps * config.batch_size / lengths.num_examples
    yield f"{lengths.total_steps:,} steps: {epochs:.4g} epochs of {lengths.num_examples:,} images"
    yield f"at {cluster.images_per_second:g} images/s per rank, without communication: {_duration(parts)}"


def _duration(parts: _Parts) -> str:
    seconds = parts.lengths.total_steps * _step_seconds(parts)
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds:.1f} s"


def _step_seconds(parts: _Parts) -> float:
    """The computation time of a step, in seconds."""
    return parts.config.batch_size / parts.batch_split.num_ranks / parts.config.cluster.images_per_second


def _rate(parts: _Parts) -> Iterator[str]:
    config, lengths = parts.config, parts.lengths
    rate = make_schedule(config.schedule, lengths)
    yield (
        f"peak {lengths.peak_rate:.6g} = {config.schedule.base_rate:g} x {config.batch_size} / "
        f"{config.schedule.base_batch_size}; {config.schedule.decay}"
    )
    falls = lengths.boundaries if config.schedule.decay == "step" else ()
    marks = {0: "start", lengths.warmup_steps: "end of the warmup" if lengths.warmup_steps else "start"}
    marks |= {step: "boundary" for step in falls if step < lengths.total_steps}
    if config.schedule.decay in ("cosine", "polynomial"):
        marks[(lengths.warmup_steps + lengths.total_steps) // 2] = "middle of the decay"
    marks[lengths.total_steps - 1] = "last step"
    for step, name in sorted(marks.items()):
        yield f"step {step:>9,}  epoch {lengths.epoch(step):7.2f}  {float(rate(step)):<12.6g}{name}"


def _parameters(parts: _Parts) -> Iterator[str]:
    config, params = parts.config.optimizer, parts.model.param_shapes
    chosen = jax.tree.map(lambda _: True, params) if config.decay_biases_and_norms else kernels(params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    width = max(len(leaf_name(path)) for path, _ in leaves)
    yield f"{'':{width}}  {'shape':>22}  {'values':>12}  decayed" + ("  trust-scaled" if config.name == "lars" else "")
    for (path, leaf), is_chosen in zip(leaves, jax.tree.leaves(chosen), strict=True):
        decayed = "yes" if is_chosen and config.weight_decay > 0 else "no"
        scaled = ("yes" if is_chosen else "no") if config.name == "lars" else ""
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        yield f"{leaf_name(path):{width}}  {shape:>22}  {leaf.size:>12,}  {decayed:7}  {scaled}".rstrip()
    yield f"{_count(params):,} parameters, {_count(parts.model.stat_shapes):,} batch statistics"


def _step(parts: _Parts) -> Iterator[str]:
    per_device = parts.batch_split.per_device // parts.config.microbatches
    batch = _batch(parts, per_device)
    params, stats = parts.model.param_shapes, parts.model.stat_shapes
    one = _batch(parts, 1)
    step = functools.partial(forward_backward, parts.task)
    flops = count_flops(step, params, stats, one)
    forward = count_flops(functools.partial(evaluated_logits, parts.task), params, stats, one.image_BHWC)
    yield f"{forward / 1e9:.4g} GFLOP per image forward, {flops / 1e9:.4g} forward and backward (2 per multiply-add)"
    seconds = _step_seconds(parts)
    yield (
        f"{seconds * 1e3:.4g} ms of computation at the images/s above: "
        f"{flops * parts.config.batch_size / parts.batch_split.num_ranks / seconds / 1e12:.4g} TFLOP/s per rank"
    )
    # Values that the backward pass needs from the forward pass, before XLA decides which ones to recompute.
    with without_cpu_kernels():
        saved = jax.eval_shape(lambda *of: jax.vjp(functools.partial(_loss, parts), *of)[1], params, stats, batch)
    activations = _bytes(saved) - _bytes(params)
    memory = {
        "parameters": _bytes(params),
        "optimizer": _bytes(parts.state.opt_state),
        "parameter mean": _bytes(parts.state.average),
        "gradients": 2 * _bytes(params),
        "activations": activations,
        "batches": _bytes(batch) * parts.config.microbatches * (parts.config.data.prefetch + 1),
    }
    shown = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if size)
    yield f"memory per device, about {_size(sum(memory.values()))}: {shown}"


def _loss(parts: _Parts, params: PyTree, stats: PyTree, batch: Batch) -> jax.Array:
    view = parts.task.augmentation.test_view(parts.task.normalise(batch.image_BHWC))
    heads, _ = parts.model.heads(params, stats, view, train=True)
    return jnp.stack([logits_BK.sum() for logits_BK, _ in heads]).sum()


def _batch(parts: _Parts, size: int) -> Batch:
    shape: tuple[int, ...] = parts.stored_shape
    if parts.config.data.storage == "encoded" and parts.config.data.crop == "resized":
        shape = parts.task.augmentation.shape(shape)
    return Batch(jax.ShapeDtypeStruct((size, *shape), "uint8"), jax.ShapeDtypeStruct((size, 4), "int32"))


def _allreduce(parts: _Parts) -> Iterator[str]:
    config, cluster, ranks = parts.config.allreduce, parts.config.cluster, parts.batch_split.num_ranks
    order = reduced_order(parts.task, parts.state, parts.stored_shape)
    layout = Buckets.plan(reduced_shapes(parts.state), bucket_bytes=config.bucket_bytes, order=order)
    sizes = [bucket.size * bucket.dtype.itemsize for bucket in layout.buckets]
    yield f"{_size(sum(sizes))} per step in {len(sizes)} buckets, {config.wire} on the wire"
    if ranks == 1:
        return
    link = Link(cluster.latency_us * 1e-6, 8e-9 / cluster.link_gbit, _SECONDS_A_BYTE_TO_ADD)
    yield f"predicted for a link of {cluster.link_gbit:g} Gbit/s and {cluster.latency_us:g} us per rank:"
    names = _PRICED if config.algorithm in (AUTO, MPI) or config.engine == "xla" else (config.algorithm,)
    for name in dict.fromkeys([*names, "ring"]):
        asked = dataclasses.replace(config, algorithm=name)
        choice = Choice.of_config(asked, num_ranks=ranks, ranks_per_node=cluster.ranks_per_node)
        seconds = sum(choice.predict(ranks, size, NetworkModel.flat(link)) for size in sizes)
        yield f"{choice!s:32}{seconds * 1e3:8.4g} ms, {seconds / _step_seconds(parts):.0%} of the computation"


def _data(parts: _Parts) -> Iterator[str]:
    config, cluster, facts = parts.config.data, parts.config.cluster, parts.facts
    image_bytes = math.prod(parts.stored_shape)
    train = facts.sizes[config.train_split]
    if config.storage == "encoded" and facts.file_bytes:
        image_bytes = facts.file_bytes[config.train_split] // train
    nodes = cluster.nodes // config.groups
    per_node = train * (image_bytes + 4) / nodes
    held = f"{config.storage}, {'x'.join(map(str, parts.stored_shape))}, {image_bytes:,} bytes per image"
    yield f"{train:,} images as {held}: {_size(train * image_bytes)} in total"
    yield f"{_size(per_node)} of RAM per node, one copy for its {cluster.ranks_per_node} ranks"
    rows = parts.config.batch_size / cluster.nodes * (nodes - 1) / nodes
    if config.shuffle == "partition" or nodes == 1:
        yield "no rows move between nodes from step to step"
        return
    crossing = rows * (image_bytes + 12)
    seconds = _step_seconds(parts)
    yield (
        f"{_size(crossing)} received and sent by each node per step: {crossing * 8e-9 / seconds:.4g} Gbit/s in each "
        f"direction hide this behind the computation ({crossing * 8e-9 / seconds / cluster.link_gbit:.1%} of "
        f"{cluster.link_gbit:g} Gbit/s)"
    )


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _size(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.4g} {unit}"
    return f"{num_bytes:.0f} bytes"
