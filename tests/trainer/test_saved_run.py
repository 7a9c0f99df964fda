"""Initial weights that are loaded from an archive or a run."""

import re

import numpy as np
import pytest

from jaxdp.trainer.saved_run import SavedRun, load_initial_weights

PARAMS = {"conv": {"kernel": np.zeros((3, 2), np.float32)}, "head": {"bias": np.zeros(2, np.float32)}}
STATS = {"norms": {0: {"mean": np.zeros(2, np.float32)}}}
GIVEN = {
    "conv.kernel": np.ones((3, 2)),
    "head.bias": np.full(2, 2.0),
    "norms.0.mean": np.full(2, 3.0),
    "more": np.ones(1),
}


def begin(path, given, skip=()):
    np.savez(path, **given)
    return load_initial_weights(path, PARAMS, STATS, skip=skip)


def test_each_array_takes_its_values_from_the_archive(tmp_path):
    params, stats = begin(tmp_path / "given.npz", GIVEN)
    np.testing.assert_array_equal(params["conv"]["kernel"], 1)
    np.testing.assert_array_equal(params["head"]["bias"], 2)
    np.testing.assert_array_equal(stats["norms"][0]["mean"], 3)
    assert params["conv"]["kernel"].dtype == np.float32


def test_skipped_arrays_keep_their_initial_values(tmp_path):
    other_head = GIVEN | {"head.bias": np.ones(1000)}
    params, _ = begin(tmp_path / "given.npz", other_head, skip=("head",))
    np.testing.assert_array_equal(params["conv"]["kernel"], 1)
    np.testing.assert_array_equal(params["head"]["bias"], 0)
    params, stats = begin(tmp_path / "given.npz", GIVEN, skip=("conv.kernel", "norms.0"))
    assert (params["conv"]["kernel"].max(), params["head"]["bias"].max()) == (0, 2)
    assert stats["norms"][0]["mean"].max() == 0


@pytest.mark.parametrize(
    ("changes", "skip", "message"),
    [
        (
            {"head.bias": np.ones(1000)},
            (),
            "head.bias is 1000 in the saved weights, but 2 in the model. .* config.init_skip, e.g. ('head',)",
        ),
        ({"conv.kernel": np.ones((2, 3))}, (), "conv.kernel is 2x3 in the saved weights, but 3x2 in the model"),
        ({"norms.0.mean": None}, (), "norms.0.mean is missing in the saved weights, but 2 in the model"),
        ({}, ("hea",), "config.init_skip contains 'hea', which matches no parameter of the model"),
    ],
)
def test_array_that_does_not_fit_is_named_in_the_error(tmp_path, changes, skip, message):
    given = {name: values for name, values in (GIVEN | changes).items() if values is not None}
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(ValueError, match=pattern):
        begin(tmp_path / "given.npz", given, skip)


def test_missing_run_or_unreadable_archive_is_named_in_the_error(tmp_path):
    with pytest.raises(ValueError, match=r"there is no run in .*: config\.json is missing"):
        SavedRun.read(tmp_path)
    with pytest.raises(ValueError, match=r"config\.init_from '.*nosuch\.npz' cannot be read"):
        load_initial_weights(tmp_path / "nosuch.npz", PARAMS, STATS, skip=())
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"config\.init_from '.*broken\.npz' cannot be read"):
        load_initial_weights(tmp_path / "broken.npz", PARAMS, STATS, skip=())
