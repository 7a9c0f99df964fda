"""The training step, as pure functions: forward and backward, then (elsewhere) the allreduce, then the update.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdp.collectives import run_native
from jaxdp.collectives.buckets import readiness
from jaxdp.data.augment import NO_AUGMENTATION, Augmentation
from jaxdp.losses import cross_entropy, hits, top5_hits
from jaxdp.models.layers import batch_statistics_over
from jaxdp.models.network import Network
from jaxdp.state import TrainState

PyTree = Any
BatchSum = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of examples, on the host or on devices.

    Attributes:
      image_BHWC: images, uint8.
      about_B4: int32; for each example its label, 1 (0 for padding), its id, and the epoch in which it is seen. They
        share one array, because a small array takes as long to transfer to a device as a large one.
    """

    image_BHWC: Any
    about_B4: Any

    @property
    def label_B(self) -> Any:
        """Labels, int32."""
        return self.about_B4[:, 0]

    @property
    def mask_B(self) -> Any:
        """Whether each example is real, bool; False for padding."""
        return self.about_B4[:, 1] != 0

    @property
    def id_B(self) -> Any:
        """Ids of the examples, int32."""
        return self.about_B4[:, 2]

    @property
    def epoch_B(self) -> Any:
        """Epoch in which each example is seen, int32."""
        return self.about_B4[:, 3]


@dataclasses.dataclass(frozen=True)
class Task:
    """Constants of the training step.

    Attributes:
      network: the model.
      mean, std: mean and standard deviation of pixels in 0..1, one value or one per channel.
      batch_size: size of the global batch, without padding.
      padded: whether the batch of any device contains padding.
      augmentation: turns normalised images into the input of the model.
      microbatches: number of equal parts of a device's batch, which are processed one after the other.
      label_smoothing: share of the target that is spread evenly over all classes.
      average_decay: decay of the running mean of the parameters; None to keep no running mean.
      batch_sums: called once per forward pass. It returns a function with which the layers, one after the other, sum
        arrays over all devices of all ranks, for batch statistics of the global batch. None for statistics per device.
      norms_every: interval, in steps, at which the norms of all arrays are computed; None disables them.
    """

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    padded: bool
    augmentation: Augmentation = NO_AUGMENTATION
    microbatches: int = 1
    label_smoothing: float = 0.0
    average_decay: float | None = None
    batch_sums: Callable[[], BatchSum] | None = None
    norms_every: int | None = None

    def normalise(self, image_BHWC: jax.Array) -> jax.Array:
        """Scales uint8 pixels to float32 in 0..1, then normalises them by `mean` and `std`."""
        mean_C, std_C = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))
        return (image_BHWC.astype(jnp.float32) / 255.0 - mean_C) / std_C


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
            image_BHWC = run_native.once(part.image_BHWC, jax.tree.leaves(total))
            part = dataclasses.replace(part, image_BHWC=image_BHWC)
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
    return readiness(functools.partial(_forward_backward, alone), state.params, state.stats, batch)


def apply_gradients(
    task: Task, optimizer: optax.GradientTransformation, state: TrainState, reduced: PyTree
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Applies one update, or skips it if a summed gradient or batch statistic, or its norm, is not finite.

    A skipped step changes only `step` and `skipped` of the state.

    Args:
      task: the constants.
      optimizer: an optax chain.
      state: state before the step.
      reduced: sum of `forward_backward` over all devices and ranks.

    Returns:
      The new state, and the metrics of the global batch. The metrics include "skipped", as in the state, and "culprit",
      the index of the first leaf of {"gradient", "stats"} that is not finite (-1 if all are finite). If
      `task.norms_every` is set, they also include "norms", see `layer_norms`; these are zeros in steps where none are
      due.
    """
    step, skipped = state.step + 1, state.skipped + 1

    def updated() -> TrainState:
        updates, opt_state = optimizer.update(reduced["gradient"], state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if task.average_decay is not None:
            # A smaller decay at first; otherwise the mean would remember the initial parameters for long.
            decay = jnp.minimum(task.average_decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda mean, now: decay * mean + (1 - decay) * now, average, params)
        return TrainState(step, params, reduced["stats"], opt_state, average, jnp.zeros_like(skipped))

    def kept() -> TrainState:
        return TrainState(step, state.params, state.stats, state.opt_state, state.average, skipped)

    # The sum of squares is the fastest test on a CPU, and also infinite if the norm overflows. The maximum does not
    # work: XLA's maximum on CPUs ignores NaN in arrays of more than a few thousand elements.
    finite = jnp.stack([jnp.isfinite(jnp.vdot(leaf, leaf)) for _, leaf in checked_leaves(reduced)])
    is_good = jnp.all(finite)
    # On a CPU a select on every value would take several times as long as the update.
    after = jax.lax.cond(is_good, updated, kept)
    culprit = jnp.where(is_good, -1, jnp.argmin(finite))
    metrics = reduced["metrics"] | {"skipped": after.skipped, "culprit": culprit}
    if task.norms_every is not None:
        norms = functools.partial(layer_norms, state.params, reduced["gradient"], after.opt_state)
        like = jax.eval_shape(norms)
        metrics["norms"] = jax.lax.cond(
            step % task.norms_every == 0,
            norms,
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
        )
    return after, metrics


def layer_norms(params: PyTree, gradient: PyTree, opt_state: PyTree) -> dict[str, jax.Array]:
    """Norms of each parameter array and of its gradient and, with LARS, the trust ratios.

    Args:
      params: parameters before the step.
      gradient: gradient of the global batch, before clipping.
      opt_state: state of the optimizer after the step.

    Returns:
      {"parameter_norm", "gradient_norm"}, each float32 [number of parameter arrays]; with LARS also "trust_ratio", of
      the same shape.
    """

    def norms(tree: PyTree) -> jax.Array:
        return jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(tree)])

    found = {"parameter_norm": norms(params), "gradient_norm": norms(gradient)}
    ratios = optax.tree_utils.tree_get(opt_state, "trust_ratio")
    return found if ratios is None else found | {"trust_ratio": jnp.stack(jax.tree.leaves(ratios))}


def checked_leaves(reduced: PyTree) -> list[tuple[Any, Any]]:
    """Paths and leaves of the values that must be finite; otherwise the step is skipped."""
    return jax.tree_util.tree_leaves_with_path({name: reduced[name] for name in ("gradient", "stats")})


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
