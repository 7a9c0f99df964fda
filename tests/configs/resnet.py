"""A narrow ResNet with two blocks on digits; it has batch statistics and compiles in seconds."""

from jaxdp.configs.digits import get_config as digits


def get_config():
    config = digits()
    config.model = {
        "name": "resnet",
        "stage_sizes": (1, 1),
        "width": 4,
        "stem": "cifar",
        "zero_gamma": True,
        "norm_momentum": 0.9,
        "norm_epsilon": 1e-5,
    }
    return config
