"""TensorFlow Datasets without TensorFlow: the import, the data folder and prepared sets."""

from __future__ import annotations

import pathlib
from types import ModuleType
from typing import Any


def import_quiet_tfds() -> ModuleType:
    """Imports TensorFlow Datasets without TensorFlow, and silences it for the rest of the process.

    TFDS then shows no progress bars, and absl logs only errors: TFDS logs its advice to install OpenCV at the first
    image, long after the import.
    """
    import absl.logging
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    return tfds


def data_folder(given: str | pathlib.Path | None) -> pathlib.Path:
    """Returns the folder of the data sets: the given one, or TFDS's (TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    return pathlib.Path(given or import_quiet_tfds().core.constants.DATA_DIR).expanduser()


def prepared_builder(name: str, folder: pathlib.Path) -> Any | None:
    """Returns TFDS's builder of a data set prepared in this folder, or None if the data set is missing.

    Finds any prepared version unless one is named; TFDS alone only looks for the version in its own code.
    """
    tfds = import_quiet_tfds()
    version = {} if ":" in name else {"version": "*.*.*"}
    try:
        builder = tfds.builder(name, data_dir=folder, **version)
    except tfds.core.DatasetNotFoundError:
        return None
    return builder if builder.is_prepared() else None
