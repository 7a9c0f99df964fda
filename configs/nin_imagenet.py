"""Network-in-Network on ImageNet, batch 1,024.

Source: FireCaffe (Iandola et al. 2015, arXiv 1511.00175): rate 0.01 at batch 256, proportional to the batch size, and
divided by 10 after 10/22 of 47 epochs. Hardware and time of the source: 128 K20x, 3.6 h; one K20 at batch 256, 5.8
days. Published: 58.6 % top-1 (58.9 % at batch 256). Difference here: pixels are divided by their standard deviation.
Not run to completion in this project.

    mpirun -n 128 python -m jaxdp.train --config=configs/nin_imagenet.py
"""

import ml_collections

from jaxdp.configs.resnet50_imagenet import get_config as resnet50_imagenet


def get_config() -> ml_collections.ConfigDict:
    config = resnet50_imagenet()
    config.batch_size = 1024
    config.epochs = 47.0

    # Random crops of the stored image, and random flips.
    config.data.crop = "padded"
    config.data.crop_padding = 0

    config.model = {"name": "nin", "dropout": 0.5, "dtype": "float32"}

    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4

    config.schedule.base_rate = 0.01
    config.schedule.base_batch_size = 256
    config.schedule.warmup_epochs = 0.0
    config.schedule.boundaries_epochs = (47.0 * 10 / 22,)

    config.cluster.nodes = 128
    config.cluster.ranks_per_node = 1
    config.cluster.images_per_second = 120.0
    return config
