"""The hash by which ranks notice that they run different code."""

from jaxdp.trainer.preflight import code_hash

FILES = {"a.py": "x = 1", "inner/b.cc": "int x;", "inner/c.h": "int y;", "notes.txt": "nothing"}


def hash_of(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return code_hash(folder)


def test_code_hash_depends_on_sources_and_nothing_else(tmp_path):
    first = hash_of(tmp_path / "first", FILES)
    assert hash_of(tmp_path / "other folder", FILES | {"notes.txt": "changed", "inner/d.so": ""}) == first
    changes = [{"a.py": "x = 2"}, {"inner/b.cc": "int z;"}, {"inner/c.h": ""}, {"more.py": ""}]
    hashes = [hash_of(tmp_path / str(index), FILES | change) for index, change in enumerate(changes)]
    renamed = {name.replace("a.py", "e.py"): content for name, content in FILES.items()}
    assert len({first, *hashes, hash_of(tmp_path / "renamed", renamed)}) == 6
