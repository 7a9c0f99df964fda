"""The default config: a small CNN on scikit-learn's digits, 1,437 real 8x8 images for training and 360 for testing.

Source: this project. Hardware: 2 CPU cores.

    ./launch/train -n 2
    mpirun -n 2 python -m jaxdp.train --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from jaxdp.config.defaults import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.batch_size = 64
    config.epochs = 30.0
    config.eval_every_epochs = 5.0
    config.log_every_steps = 20

    config.data.name = "digits"
    config.data.mean = (0.306,)
    config.data.std = (0.376,)

    config.model.name = "cnn"
    config.model.width = 48

    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-3

    config.schedule.base_rate = 0.02
    config.schedule.base_batch_size = 64
    config.schedule.warmup_epochs = 2.0
    config.schedule.warmup_init_rate = 0.002

    config.checkpoint.every_epochs = 5.0

    config.cluster.ranks_per_node = 2
    config.cluster.images_per_second = 10_000.0
    return config
