import os
from types import SimpleNamespace

import pytest

from jaxdp.data import memory
from jaxdp.data.catalog import open_source
from tests.data.sets import World, check


def test_insufficient_memory_is_reported_before_reading(digits, monkeypatch):
    source = open_source(digits)
    free = 1000
    monkeypatch.setattr(memory, "free_bytes", lambda *, shared: (free + 0 * shared, "in RAM"))
    with pytest.raises(
        ValueError, match=r"0\.00 GiB of memory on here \(1 of 3 nodes .*, but only 0\.00 GiB are free in RAM: start"
    ):
        check(source, World(0, 3))
    free = (1437 + 360) * source.example_bytes("train", encoded=False) // 3
    check(source, World(0, 3))
    rows = 100
    free += 1 + int(4 * rows * 2 / 3 * source.example_bytes("train", encoded=False))
    check(source, World(0, 3), rows_ahead=rows)
    with pytest.raises(ValueError, match="start the job on more nodes, or store smaller images"):
        check(source, World(0, 3), rows_ahead=rows + 1)
    free = 1 + int(
        1437 * source.example_bytes("train", encoded=True) + 360 * source.example_bytes("test", encoded=True)
    )
    check(source, World(), encoded=True)
    free //= 2
    with pytest.raises(ValueError, match=r"free in RAM: start the job on more nodes$"):
        check(source, World(), encoded=True)


# For each version of control groups: the folder of a group, the names of its files and how it says "no limit".
VERSIONS = [
    (
        "4:memory:/job/step\n3:cpu,cpuacct:/else\n0::/\n",
        *(
            "memory/job/step",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
            str(2**63 - 4096),
        ),
    ),
    ("0::/job/step\n", *("job/step", "memory.max", "memory.current", "inactive_file", "max")),
]


@pytest.mark.parametrize(("own", "folder", "limit", "used", "idle", "unlimited"), VERSIONS)
def test_free_memory_follows_the_tightest_limit(monkeypatch, tmp_path, own, folder, limit, used, idle, unlimited):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(own)
    in_ram = (500 * 1024, "in RAM")
    assert memory.free_bytes(shared=False, root=tmp_path) == in_ram
    inner = tmp_path / "sys/fs/cgroup" / folder
    inner.mkdir(parents=True)
    # The file cache counts as used memory but can be reclaimed, so it is free.
    for folder in (inner, inner.parent):
        (folder / used).write_text("1000\n")
        (folder / "memory.stat").write_text(f"anon 300\n{idle} 700\n")
    for of_step, of_job, expected in [
        (unlimited, unlimited, in_ram),
        ("3000", unlimited, (2700, "in its control group")),
        (unlimited, "2000", (1700, "in its control group")),
        ("3000", "2000", (1700, "in its control group")),
    ]:
        (inner / limit).write_text(of_step + "\n")
        (inner.parent / limit).write_text(of_job + "\n")
        assert memory.free_bytes(shared=False, root=tmp_path) == expected
    (tmp_path / "dev/shm").mkdir(parents=True)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=500, f_blocks=9))
    assert memory.free_bytes(shared=True, root=tmp_path) == (1500, f"in {tmp_path}/dev/shm")
    assert memory.free_bytes(shared=False, root=tmp_path) == (1700, "in its control group")
