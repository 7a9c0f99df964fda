"""LARS with warmup on digits, at 16 times the batch size of configs/digits.py.

Source: this project, with the recipe of You et al. 2017. Hardware: 2 CPU cores.

    mpirun -n 2 python -m jaxdp.train --config=configs/digits_large_batch.py
"""

import ml_collections

from jaxdp.configs.digits import get_config as digits


def get_config() -> ml_collections.ConfigDict:
    config = digits()
    config.batch_size = 1024
    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.trust_coefficient = 0.02
    config.schedule.base_rate = 1.0
    config.schedule.base_batch_size = 1024
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_init_rate = 0.0
    config.schedule.decay = "polynomial"
    return config
