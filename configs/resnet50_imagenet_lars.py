"""ResNet-50 on ImageNet, batch 32,768: LARS.

Source: You et al. 2017 (arXiv 1708.03888) for the rule, polynomial decay and warmup; the rates, label smoothing and
decay are those of the reference of MLPerf's ResNet-50 at this batch (from memory), whose target is 75.9 % top-1.
Hardware: 256 GPUs, as configs/resnet50_imagenet.py. Not run to its end here.

    mpirun -n 256 python -m jaxdp.train --config=configs/resnet50_imagenet_lars.py
"""

import ml_collections

from configs.resnet50_imagenet import get_config as resnet50_imagenet


def get_config() -> ml_collections.ConfigDict:
    config = resnet50_imagenet()
    config.batch_size = 32_768
    config.label_smoothing = 0.1

    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4
    config.optimizer.trust_coefficient = 0.001

    config.schedule.base_rate = 29.0
    config.schedule.base_batch_size = 32_768
    config.schedule.warmup_epochs = 25.0
    config.schedule.warmup_init_rate = 0.0
    config.schedule.decay = "polynomial"
    config.schedule.power = 2.0
    config.schedule.end_rate = 1e-4
    return config
