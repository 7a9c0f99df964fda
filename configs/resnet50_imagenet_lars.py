"""ResNet-50 on ImageNet with LARS, batch 32,768.

Source: You et al. 2017 (arXiv 1708.03888) for the update rule, polynomial decay and warmup. The rates, label smoothing
and weight decay are those of the MLPerf reference for ResNet-50 at this batch size (from memory); its target is 75.9 %
top-1. Hardware: 256 GPUs, as in configs/resnet50_imagenet.py. Not run to completion in this project.

    mpirun -n 256 python -m jaxdp.train --config=configs/resnet50_imagenet_lars.py
"""

import ml_collections

from jaxdp.configs.resnet50_imagenet import get_config as resnet50_imagenet


def get_config() -> ml_collections.ConfigDict:
    config = resnet50_imagenet()
    config.batch_size = 32_768
    config.label_smoothing = 0.1

    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4

    config.schedule.base_rate = 29.0
    config.schedule.base_batch_size = 32_768
    config.schedule.warmup_epochs = 25.0
    config.schedule.warmup_init_rate = 0.0
    config.schedule.decay = "polynomial"
    config.schedule.end_rate = 1e-4
    return config
