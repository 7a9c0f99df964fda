"""Folders of images: which files are in them, of which classes."""

from __future__ import annotations

import hashlib
import pathlib

# One folder of each of these is needed.
_FOLDERS = (("train",), ("test", "validation", "val"))
# Splits have the names of their folders, but for this one: it is TFDS's name of ImageNet's.
_SPLITS = {"val": "validation"}
_SUFFIXES = (".jpg", ".jpeg", ".png")


def listed(source: pathlib.Path) -> tuple[list[str], dict[str, list[tuple[pathlib.Path, int]]]]:
    """The names of the classes, and the files of each split with their classes, in an order of their own."""
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}: --source is the folder that holds train/CLASS/IMAGE")
    found: dict[str, pathlib.Path] = {}
    for names in _FOLDERS:
        # ImageNet's own "test" has no classes.
        there = [name for name in names if any(path.is_dir() for path in (source / name).glob("*"))]
        if len(there) != 1:
            which = " and ".join(there) or "none"
            raise ValueError(
                f"{source} needs one folder {' or '.join(names)} with a folder for each class in it, it has {which}"
            )
        found[_SPLITS.get(there[0], there[0])] = source / there[0]
    classes = sorted(path.name for path in found["train"].iterdir() if path.is_dir())
    splits = {}
    for split, folder in found.items():
        files = []
        for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
            if of_class.name not in classes:
                raise ValueError(
                    f"{of_class} is a class that {found['train']} does not have: its classes are the folders"
                )
            label = classes.index(of_class.name)
            files += [(path, label) for path in of_class.rglob("*") if path.suffix.lower() in _SUFFIXES]
        if not files:
            raise ValueError(
                f"there is no image in {folder}/CLASS: images are files that end in {', '.join(_SUFFIXES)}"
            )
        # Shards hold all classes, in the same way wherever the folder is.
        splits[split] = sorted(files, key=lambda file: hashlib.sha256(_within(source, file[0]).encode()).digest())
    return classes, splits


def _within(source: pathlib.Path, path: pathlib.Path) -> str:
    return str(path.relative_to(source))


def inventory_of(source: pathlib.Path, splits: dict[str, list[tuple[pathlib.Path, int]]], size: int | None) -> str:
    """A hash of what the data set is made of."""
    entries = [(split, _within(source, path), path.stat().st_size) for split in splits for path, _ in splits[split]]
    return hashlib.sha256(repr((entries, size)).encode()).hexdigest()


def check_inventory(begun: pathlib.Path, inventory: str) -> None:
    """What was begun before is gone on with only if it is of the same files."""
    note = begun / "inventory"
    if note.exists() and note.read_text() != inventory:
        raise ValueError(f"{begun} was begun with other files or another --size: remove it to begin anew")
    note.write_text(inventory)
