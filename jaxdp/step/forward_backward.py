"""Forward and backward pass of one device, as pure functions.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxdp.collectives.buckets import gradient_ready_order
from jaxdp.data.batch import Batch
from jaxdp.models.layers import batch_statistics_over
from jaxdp.native.ordering import after
from jaxdp.step.losses import cross_entropy, hits
from jaxdp.step.state import TrainState
from jaxdp.step.task import PyTree, Task


def forward_backward(task: Task, params: PyTree, stats: PyTree, batch: Batch) -> PyTree:
    """One device's contribution to the global gradient, batch statistics and metrics.

    All values are already divided by the size of the global batch, so that plain sums over devices and ranks are means
    over its real examples. Running batch statistics are weighted by the number of real examples of the device, or of
    the microbatch.

    Args:
      task: the constants.
      params: parameters, the same on all devices.
      stats: running batch statistics, the same on all devices.
      batch: this device's examples.

    Returns:
      {"gradient": like params, "stats": like stats, "metrics": {"loss", "accuracy"}}, all float32.
    """
    if task.microbatches == 1:
        return _forward_backward(task, params, stats, batch)
    # On CPUs XLA's convolutions are ten times slower inside a loop.
    unrolls = jax.default_backend() == "cpu"
    parts = jax.tree.map(lambda rows: rows.reshape(task.microbatches, -1, *rows.shape[1:]), batch)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        if unrolls:
            # Serialise microbatches, so that only one set of activations is live at a time.
            part = dataclasses.replace(part, image_BHWC=after(part.image_BHWC, jax.tree.leaves(total)))
        return jax.tree.map(jnp.add, total, _forward_backward(task, params, stats, part)), None

    # These zeros are device-varying, like the values that are added to them.
    zero = 0 * jnp.sum(batch.mask_B)
    first = jax.tree.map(lambda rows: rows[0], parts)
    shapes = jax.eval_shape(functools.partial(_forward_backward, task), params, stats, first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) + zero.astype(leaf.dtype), shapes)
    return jax.lax.scan(add, nothing, parts, unroll=unrolls)[0]


def _forward_backward(task: Task, params: PyTree, stats: PyTree, batch: Batch) -> PyTree:
    num_real = jnp.sum(batch.mask_B.astype(jnp.float32))
    seen_B = batch.mask_B if task.padded else None
    if task.padded and task.batch_sums is None:
        # A device without real examples uses its padding for the statistics, with weight 0, to avoid 0 / 0.
        seen_B = batch.mask_B | (num_real == 0)
    view_BHWC = task.augmentation.train_view(task.normalise(batch.image_BHWC), batch.id_B, batch.epoch_B)
    key_B = task.augmentation.model_keys(batch.id_B, batch.epoch_B)

    def loss_of(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        with batch_statistics_over(None if task.batch_sums is None else task.batch_sums()):
            heads, new_stats = task.network.heads(params, stats, view_BHWC, train=True, mask_B=seen_B, key_B=key_B)
        loss_B = sum(
            weight * cross_entropy(logits_BK, batch.label_B, smoothing=task.label_smoothing)
            for logits_BK, weight in heads
        )
        return jnp.sum(jnp.where(batch.mask_B, loss_B, 0.0)) / task.batch_size, (heads[0][0], new_stats)

    (loss, (logits_BK, new_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    hits_B = jnp.where(batch.mask_B, hits(logits_BK, batch.label_B), 0.0)
    weight = num_real / task.batch_size
    return {
        "gradient": gradient,
        "metrics": {"accuracy": jnp.sum(hits_B) / task.batch_size, "loss": loss},
        "stats": jax.tree.map(lambda leaf: leaf * weight, new_stats),
    }


def reduced_shapes(state: TrainState) -> PyTree:
    """Shapes of the values that `forward_backward` returns."""
    return {
        "gradient": state.params,
        "metrics": dict.fromkeys(("accuracy", "loss"), jax.ShapeDtypeStruct((), "float32")),
        "stats": state.stats,
    }


def reduced_order(task: Task, state: TrainState, image_shape: tuple[int, ...]) -> list[int]:
    """Indices of the leaves that `forward_backward` returns, in the order in which they become ready.

    Args:
      task: the constants.
      state: a state of arrays or of their shapes.
      image_shape: (H, W, C) of the stored images.
    """
    batch = Batch(jax.ShapeDtypeStruct((1, *image_shape), "uint8"), jax.ShapeDtypeStruct((1, 4), "int32"))
    alone = dataclasses.replace(task, batch_sums=None)
    return gradient_ready_order(functools.partial(_forward_backward, alone), state.params, state.stats, batch)
