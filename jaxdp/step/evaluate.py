"""Evaluation of one batch, as pure functions.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdp.data.batch import Batch
from jaxdp.step.losses import cross_entropy, hits, top5_hits
from jaxdp.step.task import PyTree, Task


def evaluated_logits(task: Task, params: PyTree, stats: PyTree, image_BHWC: jax.Array) -> jax.Array:
    """Logits [B, K] of uint8 images, computed as in evaluation."""
    view_BHWC = task.augmentation.test_view(task.normalise(image_BHWC))
    return task.network.apply(params, stats, view_BHWC, train=False)[0]


def evaluate_batch(task: Task, params: PyTree, stats: PyTree, batch: Batch) -> dict[str, jax.Array]:
    """Sums over the real examples of a batch: {"loss", "hits", "top5_hits"}, float32 []."""
    logits_BK = evaluated_logits(task, params, stats, batch.image_BHWC)
    return {
        "hits": jnp.sum(jnp.where(batch.mask_B, hits(logits_BK, batch.label_B), 0.0)),
        "top5_hits": jnp.sum(jnp.where(batch.mask_B, top5_hits(logits_BK, batch.label_B), 0.0)),
        "loss": jnp.sum(jnp.where(batch.mask_B, cross_entropy(logits_BK, batch.label_B), 0.0)),
    }
