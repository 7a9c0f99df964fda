"""Usage errors: each gives one message with the rule, the value that broke it and the remedy."""

import json
import re
import shutil

import numpy as np
import pytest

# For each command line, what its message must contain: rule, value and remedy. A rule that is a list or a range is also
# the remedy. RUN is a run of the default config that was stopped at step 3, DAMAGED a run whose checkpoints are all
# damaged, FILES a folder with files that the fixture writes, NEW a folder that does not exist.
TRAIN = "train --workdir=NEW "
SAME_RUN = "train --workdir=RUN "
RESNET = TRAIN + "--config=tests/configs/resnet.py "
MISTAKES = {
    # The command line.
    TRAIN + "--config=nosuch.py": ("no config", "nosuch.py", "give the path of a config file"),
    TRAIN + "--config.lr=3": ("is not a setting", "config.lr", "schema.py lists all settings"),
    TRAIN + "--config.optimizer.momentumm=3": ("not a setting", "momentumm", "did you mean config.optimizer.momentum"),
    TRAIN + "--config.batch_size=x": ("invalid command line", "'x'", "invalid literal for int"),
    TRAIN + "--bogus": ("unrecognized arguments", "--bogus", "see --help"),
    TRAIN + "digits": ("unrecognized arguments", ": digits", "see --help"),
    TRAIN + "--stop_at_step=0": ("must be 1 or more", "not '0'", "--stop_at_step"),
    TRAIN + "--profile_steps=100": ("the first and the last step", "'100'", "such as 100:110"),
    TRAIN + "--profile_steps=9:5": ("the first and the last step", "'9:5'", "such as 100:110"),
    # Config files.
    TRAIN + "--config=FILES/syntax.py": ("cannot be run", "syntax.py", "SyntaxError"),
    TRAIN + "--config=FILES/number.py": ("must return an ml_collections.ConfigDict", "number.py", "from get_config()"),
    TRAIN + "--config=FILES/seed.py": (
        "is missing",
        "config.batch_size",
        "set it in the config",
    ),
    TRAIN + "--config=FILES/raises.py": ("cannot be run", "raises.py", "KeyError: 'x'"),
    TRAIN + "--config=FILES/empty": ("no config", "FILES/empty", "give the path of a config file, or the name"),
    # Single settings.
    TRAIN + "--config.epochs=0": ("a number above 0", "not 0", "config.epochs"),
    TRAIN + "--config.epochs=nan": ("a number above 0", "not nan", "config.epochs"),
    TRAIN + "--config.seed=-1": ("0 or more", "not -1", "config.seed"),
    TRAIN + "--config.optimizer.momentum=1.0": ("at least 0 and below 1", "not 1.0", "config.optimizer.momentum"),
    TRAIN + "--config.optimizer.name=adam": ("optimizer.name", "'adam'", "one of adamw, lars, sgd"),
    TRAIN + "--config.schedule.decay=stairs": ("schedule.decay", "'stairs'", "one of constant, cosine"),
    TRAIN + "--config.allreduce.engine=nccl": ("allreduce.engine", "'nccl'", "one of native, mpi4jax, xla"),
    TRAIN + "--config.allreduce.algorithm=rings": ("allreduce.algorithm", "'rings'", "one of multicolor"),
    TRAIN + "--config.allreduce.wire=int8": ("allreduce.wire", "'int8'", "one of float32, bfloat16"),
    TRAIN + "--config.allreduce.arity=0": ("a number above 0", "not 0", "config.allreduce.arity"),
    TRAIN + "--config.batch_statistics=node": ("batch_statistics", "'node'", "one of device, world"),
    TRAIN + "--config.data.crop=centre": ("data.crop", "'centre'", "one of none, padded, resized"),
    TRAIN + "--config.data.crop_area=(0.5,1.1)": (
        "two numbers above 0 and up to 1",
        "not (0.5, 1.1)",
        "the smaller one first",
    ),
    TRAIN + "--config.data.std=(0.0,)": ("std must be above 0", "(0.0,)", "must have the same length"),
    TRAIN + "--config.safety.on_divergence=warn": ("on_divergence", "'warn'", "one of abort, dump"),
    TRAIN + "--config.safety.watchdog_seconds=0": ("a number above 0", "not 0", "config.safety.watchdog_seconds"),
    # Incompatible settings.
    TRAIN + "--config.optimizer.name=lars": ("no Nesterov form", "LARS", "set config.optimizer.nesterov to False"),
    TRAIN + "--config.schedule.warmup_epochs=40": (
        "must end before the run",
        "899 steps",
        "Shorten config.schedule.warm",
    ),
    TRAIN + "--config.schedule.decay=step --config.schedule.boundaries_epochs=(1.0,)": (
        "must not lie in the warmup",
        "the first one is at step 23",
        "the warmup takes 45 steps",
    ),
    TRAIN + "--config.allreduce.algorithm=mpi --config.allreduce.wire=float16": (
        "cannot send rounded values",
        "'float16'",
        "needs a config.allreduce.algorithm other than",
    ),
    TRAIN + "--config.allreduce.engine=xla --config.allreduce.wire=bfloat16": (
        "cannot send rounded values",
        "'bfloat16'",
        "needs config.allreduce.engine 'native' or 'mpi4jax'",
    ),
    TRAIN + "--config.allreduce.colors=9": (
        "colors need at least 9 ranks",
        "this job has 1",
        "set config.allreduce.colors to 1 or less",
    ),
    TRAIN + "--config.data.shuffle=partition": ("needs config.data.partitions", "'partition'", "number of nodes"),
    TRAIN + "--config.data.shuffle=partition --config.data.partitions=65": (
        "contributes to each batch",
        "config.data.partitions is 65",
        "set config.data.partitions to the batch size or less",
    ),
    # Models.
    TRAIN + "--config.model.name=vgg": ("model.name", "'vgg'", "your own model as 'package.module:Name'"),
    TRAIN + "--config.model.name=nosuch:Net": ("cannot be imported", "'nosuch:Net'", "install it, or start the job in"),
    TRAIN + "--config.model.name=os:Net": ("model.name", "'os:Net'", "has no attribute 'Net'"),
    TRAIN + "--config.model.name=resnet18": ("is missing", "config.model.stem", "set it in the config"),
    RESNET + "--config.model.stem=tall": ("config.model.stem", "'tall'", "must be one of imagenet, cifar"),
    # Data.
    TRAIN + "--config.data.name=nosuch": ("there is no data set", "'nosuch'", "prepare it with launch/prepare nosuch"),
    TRAIN + "--config.data.dir=FILES/empty --config.data.name=mnist": (
        "there is no data set 'mnist'",
        "FILES/empty",
        "prepare it with launch/prepare mnist",
    ),
    TRAIN + "--config.data.name=nosuch:data": ("cannot be imported", "'nosuch:data'", "install it, or start the job"),
    TRAIN + "--config.data.name=synthetic:9": (
        "synthetic data set",
        "'synthetic:9'",
        "e.g. synthetic:50000:10000:32:10",
    ),
    TRAIN + "--config.data.train_split=trainn": (
        "'digits' has the splits train, test",
        "train_split is 'trainn'",
        "choose one of them",
    ),
    TRAIN + "--config.data.mean=(0.1,0.2) --config.data.std=(1.0,1.0)": ("2 values", "1 channels", "give one value"),
    TRAIN + "--config.data.image_size=9": ("image_size is 9", "(8, 8, 1)", "set it to 8 or less"),
    TRAIN + "--config.data.augment=os:nosuch": ("data.augment", "'os:nosuch'", "has no attribute 'nosuch'"),
    TRAIN + "--config.data.augment=fade": ("config.data.augment", "not 'fade'", "written as 'package.module:Name'"),
    # Folders and their contents.
    "train --workdir=/dev/null/run": ("cannot be written", "/dev/null/run", "choose another --workdir"),
    SAME_RUN + "--config.seed=7": ("another config", "config.seed is 0 there and 7 here", "choose another --workdir"),
    "train --workdir=FILES/torn": ("cannot read", "FILES/torn/config.json", "choose another folder"),
    "train --workdir=DAMAGED": (
        "every checkpoint .* is damaged",
        "DAMAGED",
        "choose another --workdir, or delete this one",
    ),
    TRAIN + "--config.init_from=nosuch": ("no run in nosuch", "nosuch", "choose another folder"),
    TRAIN + "--config.init_from=FILES/torn.npz": ("init_from", "FILES/torn.npz", "cannot be read"),
    TRAIN + "--config.init_from=FILES/other.npz": (
        "does not fit the model",
        "missing in the saved weights",
        "list their prefixes",
    ),
    TRAIN + "--config.init_from=RUN --config.model.width=16": (
        "does not fit the model",
        "conv1.bias is 48 in the saved weights, but 16 in the model",
        "list their prefixes",
    ),
    TRAIN + "--config.init_from=RUN --config.init_skip=('tail',)": ("matches no parameter", "'tail'", "remove it"),
    "evaluate": ("no run given", "pass its folder", "e.g. --workdir=runs/digits"),
    "evaluate --workdir=NEW": ("there is no run in", "NEW", "choose another folder"),
    "evaluate --workdir=RUN digits": ("unrecognized arguments", ": digits", "see --help"),
    "predict --workdir=RUN nosuch.png": ("no image", "nosuch.png", "give image files, or folders of image files"),
    "predict --workdir=RUN FILES/syntax.py": ("can be decoded", "syntax.py", "leave it out"),
    "predict --workdir=NEW FILES/syntax.py": ("there is no run in", "NEW", "choose another folder"),
}


@pytest.fixture(scope="module")
def told(jobs):
    """Exit code, stderr and seconds of each mistake, all made in one process, after two valid runs in another one."""
    folder = jobs.folder / "mistakes"
    files = folder / "FILES"
    (files / "empty").mkdir(parents=True)
    (files / "torn").mkdir()
    (files / "torn" / "config.json").write_text('{"seed": ')
    (files / "torn.npz").write_bytes(b"PK\3\4 and no more")
    np.savez(files / "other.npz", **{"conv1.kernel": np.zeros((3, 3, 1, 48), np.float32)})
    (files / "syntax.py").write_text("def get_config(:")
    (files / "raises.py").write_text("def get_config():\n    return {}['x']")
    (files / "number.py").write_text("def get_config():\n    return 3")
    (files / "seed.py").write_text(
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})"
    )
    places = re.compile("RUN|DAMAGED|FILES|NEW")

    def run(lines, name):
        commands = [[places.sub(lambda found: str(folder / found[0]), word) for word in line.split()] for line in lines]
        (folder / name).write_text(json.dumps(commands))
        ended = jobs.run(0, "-m", "tests.run_command_lines", str(folder / name), timeout=400)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    for code, err, _ in run(
        ["train --stop_at_step=3 --workdir=RUN", "train --stop_at_step=3 --workdir=DAMAGED"], "right"
    ):
        assert (code, err) == (0, "")
    for path in (folder / "DAMAGED" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    before = {path: path.stat().st_mtime for path in (folder / "RUN").rglob("*")}
    outcomes = dict(zip(MISTAKES, run(MISTAKES, "wrong"), strict=True))
    # The mistakes have changed no run and created no folder.
    assert {path: path.stat().st_mtime for path in (folder / "RUN").rglob("*")} == before
    assert not (folder / "NEW").exists()
    yield outcomes
    shutil.rmtree(folder)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gives_one_message_with_rule_value_and_remedy(told, mistake):
    code, err, seconds = told[mistake]
    assert code == 2, err
    assert seconds < 10
    assert "Traceback" not in err
    (message,) = [line for line in err.splitlines() if "jaxdp: error: " in line]
    for part in MISTAKES[mistake]:
        assert part in message or re.search(part, message), message
