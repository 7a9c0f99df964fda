import pytest
from jobs import COMPILE_QUICKLY

from jaxdp.runtime import gpus
from jaxdp.runtime.gpus import Share, Visible


def shares(num_gpus, num_ranks):
    everything = Visible(tuple(map(str, range(num_gpus))), assigned=False)
    return [gpus.share([everything] * num_ranks, rank) for rank in range(num_ranks)]


@pytest.mark.parametrize(
    ("num_gpus", "num_ranks", "expected"),
    [
        (0, 2, [Share(()), Share(())]),
        (4, 1, [Share(("0", "1", "2", "3"))]),
        (4, 2, [Share(("0", "1")), Share(("2", "3"))]),
        (3, 2, [Share(("0",)), Share(("1", "2"))]),
        (2, 2, [Share(("0",)), Share(("1",))]),
        (1, 2, [Share(("0",), 2), Share(("0",), 2)]),
        (2, 3, [Share(("0",), 2), Share(("1",), 1), Share(("0",), 2)]),
    ],
)
def test_ranks_of_a_node_divide_its_gpus(num_gpus, num_ranks, expected):
    assert shares(num_gpus, num_ranks) == expected


def test_gpus_assigned_by_the_launcher_are_kept():
    for names in (["0"], ["0"]), (["0"], ["1"]):
        assigned = [Visible(tuple(of_rank), assigned=True) for of_rank in names]
        assert [gpus.share(assigned, rank) for rank in (0, 1)] == [Share(tuple(of_rank)) for of_rank in names]


def test_ranks_with_the_same_assigned_gpus_divide_them():
    one, other = Visible(("0", "1"), assigned=True), Visible(("2", "3"), assigned=True)
    assert [gpus.share([one, other, one, other], rank).names for rank in range(4)] == [("0",), ("2",), ("1",), ("3",)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", Visible((), assigned=True)),
        ("3", Visible(("3",), assigned=True)),
        ("0,GPU-ab", Visible(("0", "GPU-ab"), assigned=True)),
    ],
)
def test_cuda_visible_devices_is_parsed(monkeypatch, value, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpus.visible() == expected


def test_all_gpus_of_the_driver_are_visible_without_assignment(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for slot in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / slot).mkdir()
    assert gpus.visible(tmp_path) == Visible(("0", "1"), assigned=False)


def test_xla_accepts_the_flags_of_a_deterministic_run(jobs):
    """XLA ends a process that is given an unknown flag."""
    prepared = "process.prepare_process(threads=1, gpus=Share(()), deterministic=True)"
    shown = "import os, jax; jax.devices(); print(os.environ['XLA_FLAGS'])"
    imports = "from jaxdp.runtime import process; from jaxdp.runtime.gpus import Share"
    ended = jobs.run(0, "-c", f"{imports}; {prepared}; {shown}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.split() == [
        COMPILE_QUICKLY,
        "--xla_gpu_exclude_nondeterministic_ops=true",
        "--xla_gpu_autotune_level=0",
    ]


def test_each_rank_of_a_job_has_its_own_gpus(jobs, monkeypatch):
    code = (
        "import os, jaxdp\n"
        "def tell(world):\n"
        "    of_ranks = world.host_comm.gather(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    world.rank == 0 and print(*of_ranks)\n"
        "jaxdp.run(tell)"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    ended = jobs.run(2, "-c", code)
    assert ended.code == 0, ended.err
    assert ended.out.split() == ["4,5", "6,7"]
