"""The small-batch config of `python -m jaxdp.study large_batch`, described in docs/large_batch.md.

Source: this project; the study varies what Goyal et al. 2017 and You et al. 2017 vary. Hardware: 2 CPU cores.

    mpirun -n 2 python -m jaxdp.train --config=configs/study_large_batch.py
"""

import ml_collections

from jaxdp.configs.digits import get_config as digits


def get_config() -> ml_collections.ConfigDict:
    config = digits()
    config.batch_size = 32
    config.model.width = 16

    # The same for every arm of the study: plain momentum, since LARS has no Nesterov form, and one decay schedule.
    config.optimizer.nesterov = False
    config.optimizer.trust_coefficient = 0.02
    config.schedule.base_rate = 0.01
    config.schedule.base_batch_size = 32
    config.schedule.warmup_epochs = 0.0
    config.schedule.warmup_init_rate = 0.0
    return config
