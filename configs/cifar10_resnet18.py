"""ResNet-18 on CIFAR-10.

Source: K. Liu's pytorch-cifar (stem, batch size, rate, weight decay and cosine schedule; from memory), which publishes
95.47 % for this network. Hardware of the source: one GPU. Not run to completion in this project.

    mpirun -n 4 python -m jaxdp.train --config=configs/cifar10_resnet18.py
"""

import ml_collections

from jaxdp.config.defaults import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.epochs = 200.0
    config.eval_every_epochs = 5.0
    config.log_every_steps = 100

    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.crop = "padded"
    config.data.flip = True

    config.model = {
        "name": "resnet18",
        "stem": "cifar",
        "zero_gamma": False,
        "norm_momentum": 0.9,
        "norm_epsilon": 1e-5,
        "dtype": "float32",
    }

    config.optimizer.weight_decay = 5e-4

    config.schedule.base_rate = 0.1
    config.schedule.base_batch_size = 128
    config.schedule.warmup_init_rate = 0.002

    config.checkpoint.every_epochs = 5.0

    config.cluster.ranks_per_node = 4
    config.cluster.images_per_second = 3000.0
    return config
