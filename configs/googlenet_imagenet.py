"""GoogLeNet on ImageNet, batch 1,024.

Source: FireCaffe (Iandola et al. 2015, arXiv 1511.00175): rate 0.08, polynomial decay of power 0.5, 72 epochs (at
batch 32: rate 0.01, 64 epochs). Hardware and time of the source: 128 K20x, 10.5 h; 32 K20x, 23.4 h. Published: 68.3 %
top-1. Difference here: pixels are divided by their standard deviation. Not run to completion in this project.

    mpirun -n 128 python -m jaxdp.train --config=configs/googlenet_imagenet.py
"""

import ml_collections

from jaxdp.configs.resnet50_imagenet import get_config as resnet50_imagenet


def get_config() -> ml_collections.ConfigDict:
    config = resnet50_imagenet()
    config.batch_size = 1024
    config.epochs = 72.0

    # Random crops of the stored image, and random flips.
    config.data.crop = "padded"
    config.data.crop_padding = 0

    config.model = {
        "name": "googlenet",
        "auxiliary": True,
        "auxiliary_weight": 0.3,
        "dropout": 0.4,
        "auxiliary_dropout": 0.7,
        "dtype": "float32",
    }

    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4

    config.schedule.base_rate = 0.08
    config.schedule.base_batch_size = 1024
    config.schedule.warmup_epochs = 0.0
    config.schedule.decay = "polynomial"
    config.schedule.power = 0.5

    config.cluster.nodes = 128
    config.cluster.ranks_per_node = 1
    config.cluster.images_per_second = 45.0
    return config
