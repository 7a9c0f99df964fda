import dataclasses

import pytest

from jaxdp.data.tfds_source import prepare_digits
from tests.data.sets import CONFIG, World


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    config = dataclasses.replace(CONFIG, dir=str(tmp_path_factory.mktemp("digits")))
    prepare_digits(config, World())
    return config
