"""Warnings about training recipes that are known to lose accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from jaxdp.config.run_lengths import peak_rate
from jaxdp.config.schema import Config


def recipe_warnings(config: Config, *, batch_a_device: int) -> Iterator[str]:
    """Yields a warning, with its source, for each choice in a recipe that is known to lose accuracy.

    Args:
      config: the config to check.
      batch_a_device: number of examples per device in a step.
    """
    schedule, optimizer = config.schedule, config.optimizer
    ratio = config.batch_size / schedule.base_batch_size
    has_warmup = schedule.warmup_steps if schedule.warmup_steps is not None else schedule.warmup_epochs
    if ratio >= 8 and not has_warmup:
        yield (
            f"no warmup at {ratio:g} times the base batch: without warmup ResNet-50 lost 1.2 points of top-1 accuracy "
            "at batch 8,192 (Goyal et al. 2017, table 1). Set config.schedule.warmup_epochs to 5"
        )
    peak = peak_rate(schedule, config.batch_size)
    if has_warmup and schedule.warmup_init_rate > peak:
        yield (
            f"the rate falls during the warmup, from {schedule.warmup_init_rate:g} to {peak:g}, the peak at this batch "
            "size: a warmup should start at a rate suited to small batches and rise (Goyal et al. 2017, section 2.2). "
            f"Set config.schedule.warmup_init_rate to {peak:g} or less"
        )
    if config.batch_size > 8192 and optimizer.name == "sgd":
        yield (
            f"batch {config.batch_size:,} with SGD: ResNet-50 lost accuracy beyond 8,192 (Goyal et al. 2017, figure "
            "1). Set config.optimizer.name to 'lars', which was used up to 32,768 (You et al. 2017)"
        )
    if config.batch_size > 32_768:
        yield f"batch {config.batch_size:,}: LARS itself lost accuracy beyond 32,768 on ImageNet (You et al. 2017)"
    if optimizer.decay_biases_and_norms and optimizer.name == "lars":
        yield (
            "LARS also scales and decays biases and normalisation parameters: their norms are small, so their rates "
            "would be too. Recipes that reached 32,768 leave them out (for the decay: Goyal et al. 2017, section 5.1): "
            "set config.optimizer.decay_biases_and_norms to False"
        )
    elif optimizer.decay_biases_and_norms and optimizer.weight_decay > 0:
        yield (
            "weight decay applies to biases and normalisation parameters: large-batch recipes exclude them (Goyal et "
            "al. 2017, section 5.1). Set config.optimizer.decay_biases_and_norms to False"
        )
    if config.model.name.startswith("resnet"):
        part = batch_a_device // config.microbatches
        if config.batch_statistics == "world":
            part *= config.cluster.nodes * config.cluster.ranks_per_node * config.cluster.devices_per_rank
        if part < 16:
            yield (
                f"batch statistics are computed over only {part} images: below 16 the error of ResNet-50 rises (Wu and "
                "He 2018, figure 1). Use more images per device"
            )
        if ratio >= 8 and not config.model.options.get("zero_gamma", True):
            yield (
                "the scale of the last normalisation in each block starts at 1: large batches start more smoothly at 0 "
                "(Goyal et al. 2017, section 5.1). Set config.model.zero_gamma to True"
            )
    if schedule.decay == "constant":
        yield "the learning rate never falls: every recipe in the papers lowers it"
