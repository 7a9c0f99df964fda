"""Lists the image files in folders, by split and class."""

from __future__ import annotations

import hashlib
import pathlib

# Exactly one folder of each of these groups is needed.
_FOLDERS = (("train",), ("test", "validation", "val"))
# Splits are named after their folders, except this one: TFDS names the split "validation" in ImageNet.
_SPLITS = {"val": "validation"}
_SUFFIXES = (".jpg", ".jpeg", ".png")


def listed(source: pathlib.Path) -> tuple[list[str], dict[str, list[tuple[pathlib.Path, int]]]]:
    """Lists the names of the classes, and the files of each split with the indices of their classes.

    Files are ordered by a hash of their paths within `source`.

    Raises:
      ValueError: a folder of a split or of a class is missing, or a split has no images.
    """
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}: --source must be the folder with train/CLASS/IMAGE")
    found: dict[str, pathlib.Path] = {}
    for names in _FOLDERS:
        # Ignore folders without classes, such as ImageNet's "test".
        there = [name for name in names if any(path.is_dir() for path in (source / name).glob("*"))]
        if len(there) != 1:
            which = " and ".join(there) or "none"
            raise ValueError(
                f"{source} must contain exactly one folder named {' or '.join(names)} with a subfolder per class, but "
                f"has {which}"
            )
        found[_SPLITS.get(there[0], there[0])] = source / there[0]
    classes = sorted(path.name for path in found["train"].iterdir() if path.is_dir())
    splits = {}
    for split, folder in found.items():
        files = []
        for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
            if of_class.name not in classes:
                raise ValueError(
                    f"{of_class} is a class that {found['train']} does not have: add its folder there, or remove this "
                    "one"
                )
            label = classes.index(of_class.name)
            files += [(path, label) for path in of_class.rglob("*") if path.suffix.lower() in _SUFFIXES]
        if not files:
            raise ValueError(
                f"no images found in {folder}/CLASS: the names of image files must end in {', '.join(_SUFFIXES)}"
            )
        # Mix all classes in every shard, in an order that does not depend on where the folder is.
        splits[split] = sorted(files, key=lambda file: hashlib.sha256(_within(source, file[0]).encode()).digest())
    return classes, splits


def _within(source: pathlib.Path, path: pathlib.Path) -> str:
    return str(path.relative_to(source))


def inventory_of(source: pathlib.Path, splits: dict[str, list[tuple[pathlib.Path, int]]], size: int | None) -> str:
    """Hash of the image size and of all files of a data set, with their paths, splits and sizes."""
    entries = [(split, _within(source, path), path.stat().st_size) for split in splits for path, _ in splits[split]]
    return hashlib.sha256(repr((entries, size)).encode()).hexdigest()


def check_inventory(begun: pathlib.Path, inventory: str) -> None:
    """Allows resuming an earlier preparation only if its list of files and its image size are unchanged.

    Raises:
      ValueError: they have changed.
    """
    note = begun / "inventory"
    if note.exists() and note.read_text() != inventory:
        raise ValueError(f"{begun} was started with other files or another --size: delete it to start over")
    note.write_text(inventory)
