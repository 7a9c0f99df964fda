"""Complete jobs under mpirun: they train, stop, resume and report usage errors."""

import json
import os
import re
import signal

import pytest
from jobs import BOTH_MPIS, NEWEST_JAX, SHORT, TAKES_LONG

LARS = ("--config.optimizer.name=lars", "--config.optimizer.nesterov=False")
PARTITIONS = ("--config.data.shuffle=partition", "--config.data.partitions=3")
RECIPE = (
    "--config.microbatches=2",
    "--config.average_decay=0.9",
    "--config.label_smoothing=0.1",
    "--config.optimizer.clip_norm=1.0",
)
RESNET = "--config=tests/configs/resnet.py"


@pytest.fixture(scope="module")
def digits(jobs):
    """A complete run of the default config on 2 ranks."""
    return jobs.train(2, "digits", "--config.allreduce.colors=2")


@NEWEST_JAX
def test_default_config_trains_to_98_percent(jobs, digits):
    lines = jobs.metrics("digits")
    summary = lines[-1]
    assert summary["summary"] is True
    assert summary["test_accuracy"] >= 0.98
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert f"finished: test accuracy {summary['test_accuracy']:.4f}" in digits.out
    assert f"state hash {summary['state_hash']}" in digits.out


@NEWEST_JAX
def test_mpi4jax_engine_trains_to_98_percent(jobs):
    ended = jobs.train(2, "digits-mpi4jax", "--config.allreduce.engine=mpi4jax")
    assert "mpi4jax engine" in ended.out
    assert ended.err == ""
    assert jobs.metrics("digits-mpi4jax")[-1]["test_accuracy"] >= 0.98


@pytest.mark.usefixtures("digits")
def test_metrics_have_the_expected_names(jobs):
    lines = jobs.metrics("digits")
    training = [line for line in lines if "loss" in line]
    evaluation = [line for line in lines if "test_loss" in line]
    assert all({"step", "loss", "accuracy", "learning_rate", "images_per_second"} <= line.keys() for line in training)
    assert all({"step", "test_loss", "test_accuracy"} <= line.keys() for line in evaluation)
    # Every 5 of the 30 epochs.
    evaluated = {113, 225, 337, 450, 562, 674}
    assert {line["step"] for line in evaluation} == evaluated
    assert [line["step"] for line in training] == sorted({*range(20, 674, 20), *evaluated})
    assert list((jobs.folder / "digits" / "tensorboard").iterdir())


def test_settings_and_progress_are_printed(digits):
    for words in [
        "2 ranks",
        "multicolor colors=2 arity=2; 1 bucket, native engine, verified",
        "1,437 + 360 images",
        "64 = 32 per rank",
        "674 = 30 epochs",
    ]:
        assert words in digits.out
    assert "step 20/674  epoch 0.89  loss" in digits.out
    assert digits.err == ""


@pytest.mark.usefixtures("digits")
def test_finished_run_has_nothing_to_do(jobs):
    before = jobs.metrics("digits")
    again = jobs.train(2, "digits", "--config.allreduce.colors=2")
    assert "nothing to do: step 674 of 674 is already done" in again.out
    assert jobs.metrics("digits") == before


@pytest.mark.usefixtures("digits")
def test_evaluate_finds_the_same_accuracy_on_any_number_of_ranks(jobs):
    """Also covers fewer ranks than the run has colors."""
    summary = jobs.metrics("digits")[-1]
    for ranks in (0, 3):
        ended = jobs.run(ranks, "-m", "jaxdp.evaluate", f"--workdir={jobs.folder / 'digits'}")
        assert ended.code == 0, ended.err
        assert f"test accuracy {summary['test_accuracy']:.4f}" in ended.out


@TAKES_LONG
def test_loss_does_not_depend_on_the_number_of_ranks(jobs):
    """Only float32 rounding differs, which a low rate limits. tests/mpi/test_training.py checks 11 digits in float64.

    Observed: some pairs of runs agree to 1e-7, other pairs to 7e-5.
    """
    losses = {}
    for ranks, devices in [(1, 1), (3, 1), (2, 2)]:
        workdir = f"losses-{ranks}x{devices}"
        jobs.train(ranks, workdir, *SHORT, "--config.schedule.base_rate=0.002", devices=devices)
        losses[ranks, devices] = [line["loss"] for line in jobs.metrics(workdir) if "loss" in line]
    assert losses[1, 1]
    for values in losses.values():
        assert values == pytest.approx(losses[1, 1], rel=5e-4)


@TAKES_LONG
def test_run_resumes_on_another_rank_count_with_the_next_examples(jobs):
    slow = (*SHORT, "--config.schedule.base_rate=0.002", "--config.log_every_steps=1")
    jobs.train(2, "same-ranks", *slow)
    for ranks, stop in ((2, 7), (1, 25), (3, 45)):
        jobs.train(ranks, "other-ranks", *slow, f"--stop_at_step={stop}")
    same, other = (
        [line["loss"] for line in jobs.metrics(run) if "loss" in line] for run in ("same-ranks", "other-ranks")
    )
    assert len(same) == 45
    assert other == pytest.approx(same, rel=5e-4)


@pytest.mark.parametrize(
    ("ranks", "devices", "arguments", "stops"),
    [
        (0, 1, SHORT, (29,)),
        pytest.param(2, 2, SHORT, (29,), marks=TAKES_LONG),
        (2, 1, (*SHORT, *PARTITIONS), (29,)),
        pytest.param(3, 1, (*SHORT, RESNET, *RECIPE), (29,), marks=TAKES_LONG),
        pytest.param(2, 1, (*SHORT, *LARS), (29,), marks=TAKES_LONG),
    ],
    ids=["without mpirun", "2x2 devices", "partitions on 2", "resnet on 3, with more of the recipe", "lars on 2"],
)
def test_stopped_run_resumes_bit_identically(jobs, ranks, devices, arguments, stops, request):
    name = request.node.callspec.id.replace(" ", "-")
    whole, parts = f"whole-{name}", f"parts-{name}"
    jobs.train(ranks, whole, *arguments, devices=devices)
    for stop in stops:
        ended = jobs.train(ranks, parts, *arguments, f"--stop_at_step={stop}", devices=devices)
        assert f"stopped at step {stop}" in ended.out
    ended = jobs.train(ranks, parts, *arguments, devices=devices)
    assert "resume    from step 29" in ended.out
    assert jobs.saved(parts, 45) == jobs.saved(whole, 45)
    timed = ("seconds", "images_per_second", "slowest_rank", "ranks")
    last = [{key: value for key, value in jobs.metrics(run)[-1].items() if key not in timed} for run in (parts, whole)]
    assert last[0] == last[1]
    steps = [line["step"] for line in jobs.metrics(parts) if "loss" in line]
    assert steps == sorted(set(steps))


OFTEN = (
    *SHORT,
    "--config.checkpoint.every_epochs=0.25",
    "--config.log_every_steps=1",
    "--config.checkpoint.keep=2",
)


@pytest.fixture(scope="module")
def undisturbed(jobs):
    """Checkpoint metadata at the end of a run without interruptions."""
    assert jobs.train(2, "undisturbed", *OFTEN).err == ""
    return jobs.saved("undisturbed", 45)


def test_state_hash_tells_whether_runs_end_with_the_same_bits(jobs):
    """Also covers a run that was killed after its last save, before it wrote its summary."""
    few = ("--config.steps=4", "--config.schedule.warmup_epochs=0.0")
    seeds = {"seed-0": 0, "seed-0-again": 0, "seed-1": 1}
    for run, seed in seeds.items():
        jobs.train(0, run, *few, f"--config.seed={seed}")
    metrics = jobs.folder / "seed-0" / "metrics.jsonl"
    *before, last = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(before))
    jobs.train(0, "seed-0", *few)
    first, again, other = (jobs.metrics(run)[-1]["state_hash"] for run in seeds)
    assert first == again == json.loads(last)["state_hash"]
    assert first != other


def test_encoded_storage_trains_bit_identically(jobs, undisturbed):
    jobs.train(2, "encoded", *OFTEN, "--config.data.storage=encoded")
    assert jobs.saved("encoded", 45) == undisturbed


def test_run_resumes_from_the_checkpoint_before_a_damaged_one(jobs, undisturbed):
    jobs.train(2, "damaged", *OFTEN, "--stop_at_step=30")
    newest = jobs.folder / "damaged" / "checkpoints" / "30"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    ended = jobs.train(2, "damaged", *OFTEN)
    assert re.search(r"jaxdp: warning: the checkpoint .*/30 .*: kept aside as 30\.damaged", ended.err)
    assert "resume    from step 29" in ended.out
    assert jobs.saved("damaged", 45) == undisturbed


@BOTH_MPIS
def test_killed_run_resumes_bit_identically(jobs, undisturbed):
    command = ("-m", "jaxdp.train", *OFTEN, f"--workdir={jobs.folder / 'killed'}")
    for past_step in (8, 25):
        with jobs.start(2, *command) as job:
            jobs.wait_for_step("killed", past_step)
            os.kill(job.pid, signal.SIGKILL if past_step == 8 else signal.SIGINT)
            job.communicate(timeout=30)
    ended = jobs.train(2, "killed", *OFTEN)
    assert "resume    from step" in ended.out
    assert jobs.saved("killed", 45) == undisturbed
    assert [line["step"] for line in jobs.metrics("killed") if "loss" in line] == list(range(1, 46))
    kept = [path for path in (jobs.folder / "killed" / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(kept) == 2


@pytest.mark.usefixtures("digits")
def test_second_start_compiles_nothing(jobs):
    """All programs of the step come from the compilation cache, which gets no new file."""

    def cached():
        return {path.name for path in (jobs.folder / "cache").rglob("*") if path.is_file()}

    before = cached()
    assert before
    jobs.train(2, "second-start", "--stop_at_step=3")
    assert cached() == before


# Mistakes made on several ranks. tests/cli/test_mistakes.py covers those of a single process.
MISTAKES = {
    "--config=nosuch.py": "there is no config nosuch.py",
    "--config.batch_size=2": "config.batch_size is 2 and the job has 3 ranks",
    "--config.allreduce.colors=9": "9 colors need at least 9 ranks, but this job has 3",
    "--config.seed=7": "contains a run with another config: config.seed is 0 there and 7 here",
}


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("argument", MISTAKES)
def test_usage_error_on_several_ranks_is_one_message(jobs, argument):
    ended = jobs.run(3, "-m", "jaxdp.train", argument, f"--workdir={jobs.folder / 'digits'}", timeout=30)
    assert ended.code == 2
    assert ended.seconds < 10
    messages = [line for line in ended.err.splitlines() if "jaxdp: error:" in line]
    assert len(messages) == 1
    assert MISTAKES[argument] in messages[0]
    assert "Traceback" not in ended.err


def test_norms_of_all_arrays_are_written_at_their_interval(jobs):
    jobs.train(2, "norms", *SHORT, *LARS, "--config.norms_every_steps=20", "--config.optimizer.trust_coefficient=0.02")
    lines = [line for line in jobs.metrics("norms") if "trust_ratio" in line]
    assert [line["step"] for line in lines] == [20, 40]
    for line in lines:
        names = set(line["trust_ratio"])
        assert set(line["parameter_norm"]) == set(line["gradient_norm"]) == names
        assert {"conv1.kernel", "head.bias"} <= names
        norm, gradient = line["parameter_norm"]["conv1.kernel"], line["gradient_norm"]["conv1.kernel"]
        assert line["trust_ratio"]["conv1.kernel"] == pytest.approx(0.02 * norm / (gradient + 5e-3 * norm), rel=1e-4)
        assert line["trust_ratio"]["head.bias"] == 1


def test_requested_steps_are_profiled(jobs):
    jobs.train(2, "profiled", *SHORT, "--profile_steps=5:7", "--stop_at_step=10")
    assert list((jobs.folder / "profiled" / "profile").rglob("*.xplane.pb"))
    ended = jobs.run(2, "-m", "jaxdp.train", *SHORT, "--profile_steps=5:7", f"--workdir={jobs.folder / 'profiled'}")
    assert ended.code == 2
    assert "this job runs steps 11 to 45: --profile_steps=5:7 is outside that range" in ended.err


@TAKES_LONG
def test_world_batch_statistics_agree_between_engines(jobs):
    """Only float32 rounding differs. tests/mpi/test_training.py checks native and mpi4jax to 9 digits in float64."""
    losses = []
    for ranks, devices, engine in ((1, 1, "native"), (2, 2, "xla")):
        statistics = ("--config.batch_statistics=world", "--config.schedule.base_rate=0.002", RESNET)
        workdir = f"world-{ranks}x{devices}-{engine}"
        arguments = (*SHORT, *statistics, f"--config.allreduce.engine={engine}", "--stop_at_step=20")
        jobs.train(ranks, workdir, *arguments, devices=devices)
        losses.append([line["loss"] for line in jobs.metrics(workdir) if "loss" in line])
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=5e-4)


def test_usage_error_leaves_no_workdir_behind(jobs):
    ended = jobs.run(2, "-m", "jaxdp.train", "--config.data.name=nosuch", f"--workdir={jobs.folder / 'mistaken'}")
    assert ended.code == 2
    assert "there is no data set 'nosuch'" in ended.err
    assert not (jobs.folder / "mistaken").exists()


def test_launcher_of_another_mpi_is_rejected(jobs, monkeypatch):
    """Such a launcher starts independent single-rank jobs, each of which would train alone."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    results = []
    for rank in range(2):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        results.append(jobs.run(0, "-m", "jaxdp.train", f"--workdir={jobs.folder / 'other-mpi'}", timeout=30))
    assert [ended.code for ended in results] == [2, 2]
    assert "the launcher started 4 ranks, but MPI sees 1" in results[0].err
    assert "jaxdp: error" not in results[1].err


def test_run_does_not_resume_on_a_changed_data_set(jobs):
    jobs.train(2, "changed", *SHORT, "--stop_at_step=2")
    info = next((jobs.folder / "data" / "digits").rglob("dataset_info.json"))
    before = info.read_text()
    try:
        document = json.loads(before)
        document["splits"][0]["numBytes"] = "1"
        info.write_text(json.dumps(document))
        ended = jobs.run(2, "-m", "jaxdp.train", *SHORT, f"--workdir={jobs.folder / 'changed'}")
    finally:
        info.write_text(before)
    assert ended.code == 2
    assert re.search(r"cannot resume from the checkpoint in .*: its data is 'digits/1\.0\.0 ", ended.err)
    assert len([line for line in ended.err.splitlines() if "jaxdp: error:" in line]) == 1


def test_help_describes_the_command(jobs):
    ended = jobs.run(2, "-m", "jaxdp.train", "--help")
    assert ended.code == 0
    assert ended.out.count("Trains a network on all ranks.") == 1


def test_only_rank_0_prints(digits):
    starts = [line for line in digits.out.splitlines() if line.startswith("jaxdp ")]
    assert len(starts) == 1
    progress = [line for line in digits.out.splitlines() if "/674" in line]
    assert len(progress) == len(set(progress)) > 33


def test_resumed_run_keeps_the_algorithms_chosen_by_auto(jobs):
    auto = (*SHORT, "--config.allreduce.algorithm=auto")
    first = jobs.train(3, "auto", *auto, "--stop_at_step=5")
    assert "chosen from measurements" in first.out
    again = jobs.train(3, "auto", *auto, "--stop_at_step=10")
    assert "as chosen when the run began" in again.out
    assert jobs.saved("auto", 10)["chosen"] == jobs.saved("auto", 5)["chosen"]
    other = jobs.train(2, "auto", *auto, "--stop_at_step=12")
    assert "chosen from measurements" in other.out
    assert jobs.saved("auto", 12)["chosen"]["num_ranks"] == 2


XLA = (*SHORT, "--config.allreduce.engine=xla")


@pytest.fixture(scope="module")
def by_xla(jobs):
    """A complete short run with JAX's own collectives on 2 ranks with 2 devices each."""
    return jobs.train(2, "xla", *XLA, devices=2)


@BOTH_MPIS
@NEWEST_JAX
def test_xla_engine_trains_like_the_native_engine(jobs, by_xla):
    assert "by XLA (gloo)" in by_xla.out
    jobs.train(2, "xla_rival", *SHORT, devices=2)
    # Float32 values are summed in another order; see test_loss_does_not_depend_on_the_number_of_ranks.
    for name, tolerance in [("loss", {"rel": 5e-3}), ("test_accuracy", {"abs": 0.02})]:
        mine, other = (
            [(line["step"], line[name]) for line in jobs.metrics(run) if name in line] for run in ("xla", "xla_rival")
        )
        assert len(mine) > 1
        assert mine == [(step, pytest.approx(value, **tolerance)) for step, value in other]


@pytest.mark.usefixtures("by_xla")
def test_xla_engine_saves_resumes_and_evaluates(jobs):
    jobs.train(2, "xla_stopped", *XLA, "--stop_at_step=20", devices=2)
    again = jobs.train(2, "xla_stopped", *XLA, devices=2)
    assert "resume    from step 20" in again.out
    last = max(line["step"] for line in jobs.metrics("xla"))
    assert jobs.saved("xla_stopped", last)["fingerprint"] == jobs.saved("xla", last)["fingerprint"]
    ended = jobs.run(3, "-m", "jaxdp.evaluate", f"--workdir={jobs.folder / 'xla'}")
    assert ended.code == 0, ended.err
    summary = jobs.metrics("xla")[-1]
    assert f"test accuracy {summary['test_accuracy']:.4f}" in ended.out
