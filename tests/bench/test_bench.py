"""Tests of the benchmarks, most of them run from the command line as a user would."""

import json
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from jobs import TAKES_LONG

from jaxdp.bench import plots, scaling, schedule
from jaxdp.bench.peers import running_steps
from jaxdp.collectives.algorithms import ALGORITHMS, multicolor


def test_allreduce_benchmark_times_checks_and_writes_results(jobs, tmp_path):
    ended = jobs.run(
        4,
        *("-m", "jaxdp.bench", "allreduce", "--sizes=4K,100K", "--colors=1,3", "--segment=10K", "--repeat=3"),
        "--engine=native,mpi4jax",
        *(f"--json={tmp_path / 'rows.json'}", f"--plot={tmp_path / 'plot.png'}"),
    )
    assert ended.code == 0, ended.err
    document = json.loads((tmp_path / "rows.json").read_text())
    rows = document["rows"]
    assert document["ranks"] == 4
    # On one node `hierarchical` has nothing to do and is skipped; MPI's own allreduce and `auto` are measured too.
    expected = {*ALGORITHMS, "mpi", "auto"} - {"hierarchical"}
    assert {row["algorithm"] for row in rows} == expected
    # The 3 further rows per size: a second number of colors on both engines, and mpi4py.
    assert len(rows) == 2 * (2 * len(expected) + 3)
    for row in rows:
        assert row["exact"] is True
        assert row["engine"] in ("native", "mpi4jax", "mpi4py")
        assert row["size_bytes"] in (4_000, 100_000)
        assert min(row["seconds"]) <= row["median_s"] == np.median(row["seconds"]) <= row["p95_s"]
        assert len(row["seconds"]) == 3
        assert row["busbw_gbit_s"] == pytest.approx(1.5 * 8e-9 * row["size_bytes"] / row["median_s"])
        assert (row["predicted_s"] is None) == row["label"].endswith("mpi")
        assert row["label"] in ended.out
    assert {row["ratio_to_mpi"] for row in rows if row["label"] == "mpi4jax mpi"} == {1.0}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bfloat16_wire_is_exact_for_whole_numbers(jobs):
    ended = jobs.run(
        3, "-m", "jaxdp.bench", "allreduce", "--sizes=64K", "--algorithms=ring", "--wire=bfloat16", "--repeat=2"
    )
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "ring wire=bfloat16" in line]
    assert "yes" in line.split()
    assert "NO" not in ended.out


def test_xla_allreduce_is_measured_alone(jobs, tmp_path):
    words = ["--engine=xla", "--sizes=64K", "--repeat=2", f"--json={tmp_path / 'rows.json'}"]
    ended = jobs.run(3, "-m", "jaxdp.bench", "allreduce", *words, devices=2)
    assert ended.code == 0, ended.err
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["algorithm"], row["engine"], row["exact"], row["predicted_s"]) == ("psum", "xla", True, None)


@pytest.mark.parametrize(
    ("ranks", "words", "message"),
    [
        (1, [], "the allreduce benchmark needs at least 2 ranks, this job has 1"),
        (2, ["--sizes=64X"], "'64X' is not a size: write it as 4096, 64K, 25M or 1G"),
        (2, ["--algorithms=rings"], "unknown algorithm 'rings' in --algorithms: choose from all, multicolor"),
        (2, ["--colors=3"], "3 colors need at least 3 ranks, but this job has 2"),
        (2, ["--json=/nowhere/x.json"], "/nowhere/x.json cannot be written: there is no folder /nowhere"),
    ],
)
def test_usage_error_prints_one_message(jobs, ranks, words, message):
    ended = jobs.run(ranks, "-m", "jaxdp.bench", "allreduce", *words)
    assert ended.code == 2
    assert ended.err.count("jaxdp: error:") == 1
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_unknown_benchmark_prints_one_message(jobs):
    ended = jobs.run(0, "-m", "jaxdp.bench", "speed")
    assert (ended.code, ended.out) == (2, "")
    known = "allreduce, step, staging, input, schedule, scaling, weak"
    assert ended.err == f"jaxdp: error: unknown benchmark 'speed': choose from {known}\n"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_schedule_is_described_and_drawn(algorithm, tmp_path, capsys):
    drawing = tmp_path / "trees.svg"
    schedule.main([f"--algorithm={algorithm}", "--ranks=12", "--colors=3", f"--plot={drawing}"])
    said = capsys.readouterr().out
    for name in ("rounds", "bytes", "depth", "fan-in", "predicted"):
        assert f"\n  {name}" in said
    assert xml.etree.ElementTree.parse(drawing).getroot().tag.endswith("svg")


def test_schedule_description_matches_the_schedule(capsys):
    schedule.main(["--algorithm=multicolor", "--ranks=8", "--colors=4"])
    said = capsys.readouterr().out
    assert "rounds    4\n" in said
    assert "depth     2 of the deepest tree\n" in said
    assert "each rank in 1 to 1 of the 4 trees" in said
    assert "sends 1.75 to 1.75 payloads" in said


def test_invalid_schedule_options_print_one_message(capsys):
    with pytest.raises(SystemExit) as ended:
        schedule.main(["--ranks=3", "--colors=9"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("jaxdp: error: 9 colors need at least 9 ranks, but this job has 3")


def test_parents_and_depths_match_the_trees():
    parents = schedule.parents(multicolor(6, colors=2, arity=2))
    # As drawn in the README: rank 0 is the parent of 1 and 2, 1 of 3 and 4, 2 of 5. The second tree is the first,
    # shifted by three ranks.
    np.testing.assert_array_equal(parents, [[-1, 0, 0, 1, 1, 2], [4, 4, 5, -1, 3, 3]])
    np.testing.assert_array_equal(schedule.depths(parents[0]), [0, 1, 1, 2, 2, 2])


def test_scaling_prints_predicted_and_measured_times(tmp_path, capsys):
    rows = [
        {"algorithm": "ring", "label": "ring", "size_bytes": 1_000_000, "median_s": 0.0123},
        {"algorithm": "ring", "label": "ring", "size_bytes": 2_000_000, "median_s": 0.0456},
        {
            "algorithm": "multicolor",
            "label": "multicolor colors=2 arity=2",
            "size_bytes": 1_000_000,
            "median_s": 0.0789,
        },
    ]
    measured = tmp_path / "rows.json"
    measured.write_text(json.dumps({"rows": rows, "ranks": 4}))
    words = ["--size=1M", "--most=16", "--bandwidth=1", "--alpha=1", f"--measured={measured}"]
    scaling.main([*words, f"--plot={tmp_path / 'scaling.png'}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["2", "3", "4", "5", "6", "7", "8", "16"]
    assert "0.0123" in lines[4]
    # The prediction is for 1 MB and 4 colors, so measurements of another size or number of colors are left out.
    assert "0.0456" not in "".join(lines)
    assert "0.0789" not in "".join(lines)
    # The bandwidth term alone: 1.5 payloads of 8 ms each.
    assert float(lines[4].split()[-2]) == pytest.approx(0.012, rel=0.02)
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_file_not_written_by_the_benchmark_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SystemExit):
        scaling.main([f"--measured={tmp_path / 'x.json'}"])
    assert "x.json was not written by `bench allreduce --json`" in capsys.readouterr().err


def test_unwritable_plot_is_a_user_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        plots.scaling({"ring": [(2, 1.0)]}, {}, tmp_path / "no" / "x.png", title="")
    with pytest.raises(ValueError, match="cannot be written"):
        plots.scaling({"ring": [(2, 1.0)]}, {}, tmp_path / "x.nonsense", title="")


# Runs the benchmark as if the packages that it does not need were not installed.
BARE = """
import runpy, sys
sys.modules |= dict.fromkeys(["mpi4jax", "ml_collections", "tensorflow_datasets"])
runpy.run_module("jaxdp.bench", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("engine", "devices"), [("native", 2), pytest.param("xla", 1, marks=TAKES_LONG)])
def test_step_benchmark_measures_the_step_and_its_parts(jobs, tmp_path, engine, devices):
    words = ["--model=cnn", "--image_size=8", "--batch=4", "--repeat=3", "--bucket=100K", f"--engine={engine}"]
    if engine == "native":
        words += [f"--trace={tmp_path / 'trace.json'}", f"--plot={tmp_path / 'step.png'}"]
    ended = jobs.run(2, "-c", BARE, "step", *words, f"--json={tmp_path / 'rows.json'}", devices=devices)
    assert ended.code == 0, ended.err
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["engine"], row["ranks"], row["batch"], len(row["seconds"])) == (engine, 2, 4, 3)
    assert row["buckets"] > 1
    assert row["step_s"] == np.median(row["seconds"]) > 0
    assert row["transfer_s"] == pytest.approx(row["gradient_bytes"] * 8e-9 / row["goodput_gbit_s"])
    first = row["forward_s"] + row["first_bucket_s"]
    assert row["floor_s"] == pytest.approx(first + max(row["compute_s"] - first, row["transfer_s"]))
    if engine == "native":
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        names = {event["name"] for event in events if event["pid"] == 1}
        assert {"step", "bucket 0, device 0", "bucket 1, device 1"} <= names
        assert len(names) == 1 + devices * row["buckets"]
        assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_staging_benchmark_measures_each_stage(jobs, tmp_path):
    words = ["--bucket=30", "--buckets=3", "--repeat=2", f"--json={tmp_path / 'rows.json'}"]
    ended = jobs.run(2, "-m", "jaxdp.bench", "staging", *words, devices=3)
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["leg"] for row in rows][:4] == [
        *("devices to pinned memory", "over the ranks", "host to devices", "all, bucket by bucket")
    ]
    for row in rows:
        # The bucket size is rounded up to a whole number of float32 values.
        assert (row["ranks"], row["devices"], row["num_bytes"], len(row["seconds"])) == (2, "3 x cpu", 3 * 32, 2)
        assert row["gb_s"] == pytest.approx(96e-9 / np.median(row["seconds"]))
        assert row["leg"] in ended.out


def test_input_benchmark_measures_loading_images_onto_devices(jobs, tmp_path):
    words = ["--sizes=8", "--batch=4", "--steps=8", "--repeat=2", "--bytes=10K", "--step", "--model=cnn"]
    ended = jobs.run(2, "-m", "jaxdp.bench", "input", *words, f"--json={tmp_path / 'rows.json'}", devices=2)
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["loader"] for row in rows] == ["jaxdp", "jaxdp on the host", "memcpy", "jaxdp beside a step"]
    for row in rows:
        assert row["bytes_per_second"] == pytest.approx(row["images_per_second"] * 8 * 8 * 3)
        assert row["crossing_bytes_per_step"] == 0
    assert rows[0]["stall_fraction"] is None
    assert 0 <= rows[-1]["stall_fraction"] <= 1


FAKE = """#!/bin/sh
# Replies like peer_loaders.py, with two settings of one loader.
echo '[["Sieve", "slow"], ["Sieve", "fast"]]'
while read -r way; do if [ "$way" = 0 ]; then echo 8.0; else echo 4.0; fi; done
"""


def test_third_party_loaders_report_only_their_fastest_setting(jobs, tmp_path):
    python, rows = tmp_path / "python", tmp_path / "rows.json"
    python.write_text(FAKE)
    python.chmod(0o755)
    words = ["--sizes=8", "--batch=4", "--bytes=100K", "--repeat=2", "--steps=8", f"--peers={python}", f"--json={rows}"]
    ended = jobs.run(0, "-m", "jaxdp.bench", "input", *words)
    assert ended.code == 0, ended.err
    found = {row["loader"]: row["images_per_second"] for row in json.loads(rows.read_text())["rows"]}
    assert list(found) == ["jaxdp", "jaxdp on the host", "memcpy", "Sieve: fast"]
    assert found["Sieve: fast"] == 8 * 4 / 4.0


def test_third_party_steps_are_measured_on_request(tmp_path):
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(FAKE.replace("#!/bin/sh", f'#!/bin/sh\necho "$@" > {asked}'))
    python.chmod(0o755)
    with running_steps(python, model="resnet50", batch=4, image_size=64, dtype="bfloat16", threads=2) as peers:
        assert [peers.measure(way) for way in reversed(peers.ways)] == [4.0, 8.0]
    program, *words = asked.read_text().split()
    assert program.endswith("peer_steps.py")
    assert words == ["resnet50", "4", "64", "bfloat16", "2"]


def test_model_missing_from_torchvision_is_refused(jobs):
    words = ["--model=cnn", f"--peers={sys.executable}"]
    ended = jobs.run(0, "-m", "jaxdp.bench", "step", *words)
    assert ended.code == 2
    assert "--peers cannot measure --model='cnn', which torchvision does not have: use --model=resnet50" in ended.err


@pytest.mark.parametrize(
    ("ranks", "python", "message"),
    [
        (0, sys.executable, "the Python of --peers has neither Grain nor torch: create one with launch/peers"),
        (
            2,
            sys.executable,
            f"cannot use --peers={sys.executable!r}: give a Python made by launch/peers, and start without mpirun",
        ),
        (0, "/nowhere", "cannot use --peers='/nowhere': give a Python made by launch/peers, and start without mpirun"),
    ],
)
def test_invalid_peers_option_is_refused(jobs, ranks, python, message):
    ended = jobs.run(ranks, "-m", "jaxdp.bench", "input", "--sizes=8", "--batch=4", "--bytes=100K", f"--peers={python}")
    assert ended.code == 2
    assert ended.err.count("jaxdp: error: ") == 1
    assert message in ended.err
    assert "Traceback" not in ended.err


@TAKES_LONG
def test_load_benchmark_compares_loading_with_raw_file_reads(jobs, tmp_path):
    jobs.train(1, "for-load", "--stop_at_step=1")
    words = ["--sizes=8", "--batch=4", "--bytes=100K", "--repeat=1", "--steps=8", "--load=digits"]
    ended = jobs.run(2, "-m", "jaxdp.bench", "input", *words, f"--json={tmp_path / 'rows.json'}")
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"][-3:]
    assert [row["loader"] for row in rows] == ["load pixels", "load files", "raw read"]
    (shard,) = (jobs.folder / "data" / "digits").rglob("*train*.array_record*")
    for row in rows:
        seconds = 1437 / row["images_per_second"]
        assert row["bytes_per_second"] * seconds == pytest.approx(shard.stat().st_size)
