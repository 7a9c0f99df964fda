"""Where a recipe is known to lose accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from jaxdp.config import Config
from jaxdp.plan import peak_rate


def warnings(config: Config, *, batch_a_device: int) -> Iterator[str]:
    """Where a recipe is known to lose accuracy, each with its source.

    Args:
      config: of the recipe.
      batch_a_device: examples that a device sees in a step.
    """
    schedule, optimizer = config.schedule, config.optimizer
    ratio = config.batch_size / schedule.base_batch_size
    has_warmup = schedule.warmup_steps if schedule.warmup_steps is not None else schedule.warmup_epochs
    if ratio >= 8 and not has_warmup:
        yield (
            f"no warmup at {ratio:g} times the base batch: ResNet-50 at 8,192 lost 1.2 points of top-1 so (Goyal et "
            "al. 2017, table 1): set config.schedule.warmup_epochs to 5"
        )
    peak = peak_rate(schedule, config.batch_size)
    if has_warmup and schedule.warmup_init_rate > peak:
        yield (
            f"the warmup falls, from {schedule.warmup_init_rate:g} to {peak:g}, the peak at this batch: it is there to "
            "begin with what a small batch bears (Goyal et al. 2017, section 2.2): set "
            f"config.schedule.warmup_init_rate to {peak:g} or less"
        )
    if config.batch_size > 8192 and optimizer.name == "sgd":
        yield (
            f"batch {config.batch_size:,} with SGD: ResNet-50 lost accuracy beyond 8,192 (Goyal et al. 2017, figure "
            "1): config.optimizer.name 'lars' has been taken to 32,768 (You et al. 2017)"
        )
    if config.batch_size > 32_768:
        yield f"batch {config.batch_size:,}: LARS itself lost accuracy beyond 32,768 on ImageNet (You et al. 2017)"
    if optimizer.vectors_too and optimizer.name == "lars":
        yield (
            "LARS scales and decays biases and normalisation too: their norms are small, and so would be their rates; "
            "recipes that reached 32,768 leave them out (Goyal et al. 2017, section 5.1, for the decay): set "
            "config.optimizer.vectors_too to False"
        )
    elif optimizer.vectors_too and optimizer.weight_decay > 0:
        yield (
            "biases and normalisation are decayed: large batches do without (Goyal et al. 2017, section 5.1): set "
            "config.optimizer.vectors_too to False"
        )
    if config.model.name.startswith("resnet"):
        part = batch_a_device // config.microbatches
        if config.batch_statistics == "world":
            part *= config.cluster.nodes * config.cluster.ranks_per_node * config.cluster.devices_per_rank
        if part < 16:
            yield (
                f"batch statistics are of {part} images, as they are a device's own: below 16 the error of ResNet-50 "
                "rises (Wu and He 2018, figure 1): give each device more"
            )
        if ratio >= 8 and not config.model.options.get("zero_gamma", True):
            yield (
                "the last normalisation of each block starts at 1: at 0 large batches start more smoothly (Goyal et "
                "al. 2017, section 5.1): set config.model.zero_gamma to True"
            )
    if schedule.decay == "constant":
        yield "the rate never falls: every recipe of the papers lets it"
