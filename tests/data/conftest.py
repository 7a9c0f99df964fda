import dataclasses

import pytest

from jaxdp.data.tfds_source import _write_digits
from tests.data.sets import CONFIG


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    config = dataclasses.replace(CONFIG, dir=str(tmp_path_factory.mktemp("digits")))
    _write_digits(config)
    return config
