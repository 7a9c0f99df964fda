"""The default config: a small CNN on scikit-learn's digits, 1,437 real 8x8 images for training and 360 for testing.

Source: this project. Hardware: 2 CPU cores.

    ./launch/train -n 2
    mpirun -n 2 python -m jaxdp.train --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.deterministic = False
    config.init_from = config_dict.placeholder(str)
    config.init_skip = ()
    config.batch_size = 64
    config.microbatches = 1
    config.epochs = 30.0
    config.steps = config_dict.placeholder(int)
    config.eval_every_epochs = 5.0
    config.eval_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 20
    config.norms_every_steps = config_dict.placeholder(int)
    config.label_smoothing = 0.0
    config.batch_statistics = "device"
    config.average_decay = config_dict.placeholder(float)
    config.stop_after_skipped_steps = 10

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"
    config.data.dir = config_dict.placeholder(str)
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.mean = (0.306,)
    config.data.std = (0.376,)
    config.data.storage = "pixels"
    config.data.stored_size = config_dict.placeholder(int)
    config.data.image_size = config_dict.placeholder(int)
    config.data.crop = "none"
    config.data.crop_padding = 4
    config.data.crop_area = (0.08, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = False
    config.data.augment = config_dict.placeholder(str)
    config.data.shuffle = "global"
    config.data.partitions = config_dict.placeholder(int)
    config.data.exchange_every = 1
    config.data.groups = 1
    config.data.exchange_steps = 16
    config.data.prefetch = 2

    config.model = ml_collections.ConfigDict()
    config.model.name = "cnn"
    config.model.width = 48

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-3
    config.optimizer.trust_coefficient = 0.001
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.vectors_too = False
    config.optimizer.clip_norm = config_dict.placeholder(float)

    config.schedule = ml_collections.ConfigDict()
    config.schedule.base_rate = 0.02
    config.schedule.base_batch_size = 64
    config.schedule.warmup_epochs = 2.0
    config.schedule.warmup_steps = config_dict.placeholder(int)
    config.schedule.warmup_init_rate = 0.002
    config.schedule.decay = "cosine"
    config.schedule.power = 2.0
    config.schedule.end_rate = 0.0
    config.schedule.boundaries_epochs = ()
    config.schedule.boundaries_steps = config_dict.placeholder(tuple)
    config.schedule.factor = 0.1

    config.allreduce = ml_collections.ConfigDict()
    config.allreduce.engine = "native"
    config.allreduce.algorithm = "multicolor"
    config.allreduce.colors = config_dict.placeholder(int)
    config.allreduce.arity = config_dict.placeholder(int)
    config.allreduce.inner = "direct"
    config.allreduce.outer = "multicolor"
    config.allreduce.ranks_per_node = config_dict.placeholder(int)
    config.allreduce.segment_bytes = 64 * 1024
    config.allreduce.wire = "float32"
    config.allreduce.bucket_bytes = 4_000_000

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_epochs = 5.0
    config.checkpoint.every_steps = config_dict.placeholder(int)
    config.checkpoint.keep = 3
    config.checkpoint.keep_best = config_dict.placeholder(int)

    config.safety = ml_collections.ConfigDict()
    config.safety.compare_every_steps = 100
    config.safety.on_divergence = "abort"
    config.safety.watchdog_seconds = 300.0

    config.cluster = ml_collections.ConfigDict()
    config.cluster.nodes = 1
    config.cluster.ranks_per_node = 2
    config.cluster.devices_per_rank = 1
    config.cluster.link_gbit = 100.0
    config.cluster.latency_us = 2.0
    config.cluster.images_per_second = 10_000.0
    return config
