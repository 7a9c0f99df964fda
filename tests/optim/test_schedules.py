import dataclasses

import numpy as np
import pytest

from jaxdp.config.run_lengths import RunLengths
from jaxdp.config.schema import Config
from jaxdp.configs.digits import get_config
from jaxdp.optim.schedules import make_schedule

# 100 steps, of which 20 are warmup; the peak rate is 0.1 x 40 / 10 = 0.4.
CONFIG = dataclasses.replace(Config.from_dict(get_config().to_dict()), batch_size=40, epochs=10.0)
SCHEDULE = dataclasses.replace(
    CONFIG.schedule, base_rate=0.1, base_batch_size=10, warmup_epochs=2.0, warmup_init_rate=0.1, end_rate=0.004
)


def rate_of(**changes):
    config = dataclasses.replace(CONFIG, schedule=dataclasses.replace(SCHEDULE, **changes))
    return make_schedule(config.schedule, RunLengths.of(config, 400))


@pytest.mark.parametrize("decay", ["cosine", "polynomial"])
def test_warmup_is_linear_to_the_scaled_rate(decay):
    rate = rate_of(decay=decay)
    np.testing.assert_allclose([rate(0), rate(10), rate(20)], [0.1, 0.25, 0.4], rtol=1e-6)


def test_cosine_decay_matches_the_formula():
    rate = rate_of(decay="cosine")
    expected = [0.004 + 0.396 * (1 + np.cos(np.pi * t)) / 2 for t in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose([rate(40), rate(60), rate(100)], expected, rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_decay_matches_the_formula(power):
    rate = rate_of(decay="polynomial", power=power)
    expected = [0.004 + 0.396 * (1 - t) ** power for t in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose([rate(40), rate(60), rate(100)], expected, rtol=1e-5)


@pytest.mark.parametrize("boundaries", [{"boundaries_epochs": (3.0, 6.0)}, {"boundaries_steps": (30, 60)}])
def test_rate_drops_at_each_boundary(boundaries):
    rate = rate_of(decay="step", factor=0.1, **boundaries)
    found = [float(rate(step)) for step in (19, 20, 29, 30, 59, 60, 99)]
    np.testing.assert_allclose(found, [0.385, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rtol=1e-6)


def test_constant_rate_does_not_decay():
    rate = rate_of(decay="constant")
    np.testing.assert_allclose([rate(10), rate(20), rate(99)], [0.25, 0.4, 0.4], rtol=1e-6)


def test_warmup_steps_take_precedence_over_warmup_epochs():
    rate = rate_of(warmup_steps=10)
    np.testing.assert_allclose([rate(5), rate(10)], [0.25, 0.4], rtol=1e-6)


def test_without_warmup_the_first_rate_is_the_peak():
    assert float(rate_of(warmup_epochs=0.0)(0)) == pytest.approx(0.4)
