import pytest

from jaxdp.config.defaults import default_config
from jaxdp.config.run_lengths import RunLengths, check_world
from jaxdp.config.schema import RESUMABLE_SETTINGS, Config, SafetyConfig
from jaxdp.configs.digits import get_config
from jaxdp.optim.config import OptimizerConfig
from jaxdp.settings.build import flattened


def settings(**changes):
    """Returns the default config as a dict with some settings changed, e.g. `optimizer__momentum=0.5`."""
    config = get_config().to_dict()
    for name, value in changes.items():
        *groups, last = name.split("__")
        section = config
        for group in groups:
            section = section[group]
        section[last] = value
    return config


def test_config_round_trips_through_a_dict():
    config = Config.from_dict(settings())
    assert Config.from_dict(config.to_dict()) == config
    assert config.model.options == {"width": 48}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1.0}, r"config\.learning_rate is not a setting: known settings are seed, "),
        ({"optimizer__momentun": 1.0}, r"config\.optimizer\.momentun is not a setting: did you mean 'momentum'\?"),
        ({"batch_size": 1.5}, r"config\.batch_size must be of type int, not 1\.5"),
        ({"batch_size": True}, r"config\.batch_size must be of type int, not True"),
        ({"data__mean": 0.5}, r"config\.data\.mean must be of type tuple.*, not 0\.5"),
        ({"data": 3}, r"config\.data must be a group of settings, not 3"),
        ({"allreduce__colors": "4"}, r"config\.allreduce\.colors must be of type int, not '4'"),
        ({"epochs": 0}, r"config\.epochs must be a number above 0, not 0"),
        ({"epochs": float("nan")}, r"config\.epochs must be a number above 0, not nan"),
        ({"seed": -1}, r"config\.seed must be 0 or more, not -1"),
        ({"optimizer__momentum": 1.0}, r"config\.optimizer\.momentum must be at least 0 and below 1, not 1\.0"),
        ({"optimizer__name": "adam"}, r"config\.optimizer\.name must be one of adamw, lars, sgd, not 'adam'"),
        ({"optimizer__beta2": 1.0}, r"config\.optimizer\.beta2 must be at least 0 and below 1, not 1\.0"),
        ({"optimizer__clip_norm": 0.0}, r"config\.optimizer\.clip_norm must be a number above 0, not 0"),
        ({"label_smoothing": 1.0}, r"config\.label_smoothing must be at least 0 and below 1, not 1\.0"),
        (
            {"schedule__boundaries_epochs": (3.0, 2.0)},
            r"boundaries_epochs must be increasing numbers above 0, not \(3\.0, 2\.0\)",
        ),
        ({"schedule__boundaries_steps": (0,)}, r"boundaries_steps must be increasing numbers above 0, not \(0,\)"),
        (
            {"model__name": "renset"},
            r"config\.model\.name must be one of .*, or your own model as 'package.module:Name', not 'renset'",
        ),
        (
            {"data__storage": "encoded", "data__shuffle": "partition", "data__partitions": 2},
            r"'partition' needs config\.data\.storage 'pixels'",
        ),
        ({"optimizer__name": "lars"}, r"LARS has no Nesterov form: set config\.optimizer\.nesterov to False"),
        (
            {"schedule__decay": "stairs"},
            r"config\.schedule\.decay must be one of constant, cosine, polynomial, step, not 'stairs'",
        ),
        ({"allreduce__engine": "nccl"}, r"config\.allreduce\.engine must be one of native, mpi4jax, xla, not 'nccl'"),
        ({"allreduce__algorithm": "rings"}, r"config\.allreduce\.algorithm must be one of multicolor, .*, not 'rings'"),
        ({"allreduce__wire": "int8"}, r"config\.allreduce\.wire must be one of float32, bfloat16, float16, not 'int8'"),
        (
            {"allreduce__inner": "multicolor"},
            r"config\.allreduce\.inner must be one of ring, direct, .*, not 'multicolor'",
        ),
        ({"allreduce__segment_bytes": 0}, r"config\.allreduce\.segment_bytes must be a number above 0, not 0"),
        (
            {"allreduce__algorithm": "mpi", "allreduce__wire": "float16"},
            r"config\.allreduce\.wire 'float16' needs a config\.allreduce\.algorithm other than 'mpi'",
        ),
        (
            {"allreduce__engine": "xla", "allreduce__wire": "bfloat16"},
            r"config\.allreduce\.wire 'bfloat16' needs config\.allreduce\.engine 'native' or 'mpi4jax'",
        ),
        ({"batch_statistics": "node"}, r"config\.batch_statistics must be one of device, world, not 'node'"),
        ({"data__crop": "centre"}, r"config\.data\.crop must be one of none, padded, resized, not 'centre'"),
        (
            {"data__crop_area": (0.5, 1.1)},
            r"config\.data\.crop_area must be two numbers above 0 and up to 1, the smaller",
        ),
        (
            {"data__crop_ratio": (2.0, 0.5)},
            r"config\.data\.crop_ratio must be two numbers above 0, the smaller one first",
        ),
        ({"data__crop_ratio": (2.0,)}, r"config\.data\.crop_ratio must be two numbers"),
        ({"data__shuffle": "local"}, r"config\.data\.shuffle must be one of global, partition, not 'local'"),
        (
            {"data__shuffle": "partition"},
            r"'partition' needs config\.data\.partitions: set it, ideally to the number of nodes",
        ),
        (
            {"data__shuffle": "partition", "data__partitions": 65},
            r"partitions is 65, but config\.batch_size 64: set config\.data\.partitions to the batch size or less",
        ),
        ({"data__stored_size": 0}, r"config\.data\.stored_size must be a number above 0, not 0"),
        ({"data__std": (0.0,)}, r"std must be above 0: they are \(0\.306,\) and \(0\.0,\)"),
        ({"data__std": (1.0, 1.0)}, "mean and config.data.std must have the same length"),
    ],
)
def test_invalid_setting_is_named_in_the_error(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(settings(**changes))


def test_missing_setting_is_named_in_the_error():
    config = settings()
    del config["schedule"]["base_rate"]
    with pytest.raises(ValueError, match=r"config\.schedule\.base_rate is missing: set it in the config"):
        Config.from_dict(config)


def test_settings_that_are_left_out_get_their_defaults():
    config = settings()
    for group in ("optimizer", "allreduce", "safety", "checkpoint", "cluster"):
        del config[group]
    found = Config.from_dict(config)
    assert found.optimizer == OptimizerConfig()
    assert (found.safety, found.allreduce.segment_bytes) == (SafetyConfig(), 65_536)


def test_defaults_keep_their_own_rules():
    required = {"batch_size": 1, "epochs": 1.0, "data": {"name": "digits", "mean": (0.5,), "std": (0.5,)}}
    defaults = Config.from_dict(required | {"model": {"name": "cnn"}, "schedule": {"base_rate": 0.1}})
    assert Config.from_dict(defaults.to_dict()) == defaults


def test_default_config_holds_every_setting_and_none_for_required_ones():
    flat = flattened(default_config().to_dict())
    assert flat.keys() == flattened(Config.from_dict(settings()).to_dict()).keys() - {"model.width"}
    required = ("batch_size", "data.mean", "data.name", "data.std", "epochs", "model.name", "schedule.base_rate")
    assert all(flat[name] is None for name in required)
    assert flat["optimizer.momentum"] == 0.9


def test_int_is_accepted_as_float_and_list_as_tuple():
    config = Config.from_dict(settings(epochs=3, data__mean=[1]))
    assert (config.epochs, config.data.mean) == (3.0, (1.0,))
    assert isinstance(config.epochs, float)


def test_first_difference_is_reported_except_in_settings_that_may_change():
    one = Config.from_dict(settings())
    free = Config.from_dict(settings(checkpoint__keep=9, allreduce__colors=2, data__dir="x", log_every_steps=1))
    assert one.difference(free, free=RESUMABLE_SETTINGS) is None
    assert one.difference(free) == "config.allreduce.colors is None there and 2 here"
    other = Config.from_dict(settings(model__width=5))
    assert one.difference(other, free=RESUMABLE_SETTINGS) == "config.model.width is 48 there and 5 here"


@pytest.mark.parametrize(
    ("epochs", "batch_size", "num_examples", "total"),
    [(30.0, 64, 1437, 674), (1.0, 10, 100, 10), (0.5, 10, 100, 5), (1.0, 64, 10, 1), (3.0, 100, 250, 8)],
)
def test_last_batch_completes_the_last_epoch(epochs, batch_size, num_examples, total):
    config = Config.from_dict(settings(epochs=epochs, batch_size=batch_size, schedule__warmup_epochs=0.0))
    lengths = RunLengths.of(config, num_examples)
    assert lengths.total_steps == total
    assert (total - 1) * batch_size < epochs * num_examples <= total * batch_size
    assert total in lengths.eval_steps
    assert total in lengths.save_steps


def test_evaluations_and_saves_follow_their_intervals():
    lengths = RunLengths.of(Config.from_dict(settings(eval_every_epochs=10, checkpoint__every_epochs=15.0)), 640)
    assert (sorted(lengths.eval_steps), sorted(lengths.save_steps)) == ([100, 200, 300], [150, 300])


def test_durations_in_steps_override_durations_in_epochs():
    config = settings(steps=25, eval_every_steps=10, checkpoint__every_steps=20, schedule__warmup_steps=5)
    lengths = RunLengths.of(Config.from_dict(config), 640)
    assert (lengths.total_steps, lengths.warmup_steps) == (25, 5)
    assert (sorted(lengths.eval_steps), sorted(lengths.save_steps)) == ([10, 20, 25], [20, 25])
    lengths = RunLengths.of(Config.from_dict(settings(steps=25)), 64)
    assert sorted(lengths.eval_steps) == [5, 10, 15, 20, 25]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule__warmup_epochs": 30.0},
            r"the warmup takes 300 steps, the run 300\. Shorten config\.schedule\.",
        ),
        ({"steps": 20}, r"the warmup takes 20 steps, the run 20"),
        (
            {"schedule__decay": "step", "schedule__boundaries_epochs": (1.0, 5.0)},
            r"boundaries must not lie in the warmup: the first one is at step 10, but the warmup takes 20 steps",
        ),
    ],
)
def test_schedule_that_does_not_fit_the_run_is_rejected(changes, message):
    config = Config.from_dict(settings(**changes))
    with pytest.raises(ValueError, match=message):
        RunLengths.of(config, 640)


def test_peak_rate_is_proportional_to_the_batch_size():
    lengths = RunLengths.of(Config.from_dict(settings(batch_size=256, schedule__base_rate=0.1)), 1000)
    assert lengths.peak_rate == pytest.approx(0.4)


def test_unsuitable_number_of_ranks_is_rejected():
    config = Config.from_dict(settings(batch_size=4, allreduce__colors=3))
    check_world(config, 4)
    with pytest.raises(ValueError, match=r"config\.batch_size is 4 and the job has 5 ranks: raise it to 5 or more"):
        check_world(config, 5)
    with pytest.raises(ValueError, match=r"3 colors need at least 3 ranks, but this job has 2"):
        check_world(config, 2)
