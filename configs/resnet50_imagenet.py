"""ResNet-50 on ImageNet in 90 epochs, batch 8,192.

Source: Goyal et al. 2017 (arXiv 1706.02677). Sreedhar et al. 2017 (arXiv 1711.00705) build on it and train 90 epochs on
256 P100 in 48 minutes. Hardware and time of Goyal et al.: 256 P100, 1 h. Published: 76.26 % top-1 at this batch size,
76.40 % at 256. Differences here: no color jitter, and pixels are stored at 256x256 (with config.data.storage "encoded",
crops are cut from the original image, as in the paper). Not run to completion in this project.

    mpirun -n 256 python -m jaxdp.train --config=configs/resnet50_imagenet.py
    python -m jaxdp.train --config=configs/resnet50_imagenet.py --explain
"""

import ml_collections

from jaxdp.config.defaults import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.batch_size = 8192
    config.epochs = 90.0

    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.stored_size = 256
    config.data.image_size = 224
    config.data.crop = "resized"
    config.data.flip = True
    config.data.exchange_steps = 4

    config.model = {
        "name": "resnet50",
        "stem": "imagenet",
        "zero_gamma": True,
        "norm_momentum": 0.9,
        "norm_epsilon": 1e-5,
        "dtype": "float32",
    }

    config.optimizer.nesterov = True

    config.schedule.base_rate = 0.1
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_init_rate = 0.1
    config.schedule.decay = "step"
    config.schedule.boundaries_epochs = (30.0, 60.0, 80.0)

    config.allreduce.bucket_bytes = 25_000_000

    # 32 nodes with 8 GPUs each, one rank per GPU, at the throughput of a P100 in the paper.
    config.cluster.nodes = 32
    config.cluster.ranks_per_node = 8
    config.cluster.latency_us = 5.0
    config.cluster.images_per_second = 156.0
    return config
