"""Opens data sets of TensorFlow Datasets (TFDS) that are prepared in array_record format."""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.data import tfds_compat
from jaxdp.data.source import Source

if TYPE_CHECKING:
    from jaxdp.data.config import DataConfig
    from jaxdp.runtime.world import World


def prepare_digits(config: DataConfig, world: World) -> None:
    """Writes the bundled digits data set to the data folder, if the config uses it and it is missing.

    Rank 0 writes first, then the first rank of each host in case the hosts do not share the folder.
    """
    if config.name != "digits":
        return
    for writes in (world.is_root, world.local_rank == 0):
        with world.agree_or_exit():
            if writes:
                _write_digits(config)


def open_tfds(name: str, data_dir: str | None, splits: Mapping[str, str], stored_size: int | None) -> Source:
    """Opens a prepared TFDS data set.

    Args:
      name: name of the data set.
      data_dir: folder with the prepared data sets; None for TFDS's own.
      splits: for "train" and "test", the name of the split to use.
      stored_size: height and width to which images are fitted; None keeps their size.

    Raises:
      ValueError: the data set does not exist, is not prepared as array_record, or has no images with labels. The
        message says what to do.
    """
    tfds, folder = tfds_compat.import_quiet_tfds(), tfds_compat.data_folder(data_dir)
    remedy = (
        f"prepare it with launch/prepare {name} --dir={folder}, convert folders of images with python -m "
        "jaxdp.data.prepare, or set config.data.dir to the folder that contains it"
    )
    try:
        builder = tfds_compat.prepared_builder(name, folder)
        file_format = builder and builder.info.file_format
    except Exception as error:  # TFDS raises many kinds of exceptions, for names, versions and damaged metadata.
        raise ValueError(f"the data set {name!r} in {folder} cannot be opened: {error}: {remedy}") from error
    if builder is None:
        raise ValueError(f"there is no data set {name!r} in {folder}: {remedy}")
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        if file_format is tfds.core.FileFormat.TFRECORD:
            remedy = f"convert it with launch/prepare {name} --dir=OTHER --from={folder}"
        stored = file_format.value if file_format else "none"
        raise ValueError(
            f"jaxdp reads data sets in array_record format, but {name!r} in {folder} is in {stored}: {remedy}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        raise ValueError(
            f"jaxdp needs data sets with the features 'image' and 'label' (a ClassLabel), but {name!r} has "
            f"{', '.join(sorted(features))}: choose another data set"
        )
    for setting, split in splits.items():
        if split not in builder.info.splits:
            raise ValueError(
                f"config.data.{setting}_split is {split!r}, but {name!r} has the splits "
                f"{', '.join(builder.info.splits)}: choose one of them"
            )
    shape = features["image"].shape
    dtype = np.dtype(features["image"].np_dtype)
    if len(shape) != 3 or shape[2] is None or dtype != np.uint8:
        raise ValueError(
            f"jaxdp needs uint8 images of shape [H, W, C], but those of {name!r} are {dtype} of shape {shape}: choose "
            "another data set"
        )
    if None in shape and stored_size is None:
        raise ValueError(
            f"the images of {name!r} differ in size, {shape}: set config.data.stored_size to the height and width with "
            "which to store them in memory"
        )
    stored = shape if stored_size is None else (stored_size, stored_size, shape[2])

    def files(split: str) -> Any:
        return builder.as_data_source(split=splits[split], decoders={"image": tfds.decode.SkipDecoding()})

    infos = {name: builder.info.splits[split] for name, split in splits.items()}
    return Source(
        name=builder.info.full_name,
        where=str(builder.data_path),
        sizes={name: info.num_examples for name, info in infos.items()},
        image_shape=stored,
        num_classes=features["label"].num_classes,
        records=lambda split: builder.as_data_source(split=splits[split]),
        files=files,
        file_bytes={name: info.num_bytes for name, info in infos.items()},
        shards={name: [pathlib.Path(path) for path in info.filepaths] for name, info in infos.items()},
        content=repr([(split, infos[split].shard_lengths, infos[split].num_bytes) for split in sorted(infos)]),
        class_names=tuple(features["label"].names),
        resized=stored != shape,
    )


def _digits(folder: pathlib.Path) -> Any:
    from jaxdp.data.digits import Digits

    return Digits(data_dir=folder, file_format="array_record")


def _write_digits(config: DataConfig) -> None:
    folder = tfds_compat.data_folder(config.dir)
    if _is_prepared(folder, "digits"):
        return
    try:
        # TFDS reports a download, although nothing is downloaded here.
        with contextlib.redirect_stdout(io.StringIO()):
            _digits(folder).download_and_prepare()
    except OSError as error:
        if _is_prepared(folder, "digits"):  # Another job has written it.
            return
        raise ValueError(
            f"cannot write the data set 'digits' to {folder}: {error}: set config.data.dir to a writable folder"
        ) from error


def _is_prepared(folder: pathlib.Path, name: str) -> bool:
    # TFDS writes to a folder with ".incomplete" in its name, and renames it when it is complete.
    found = (folder / name.split(":")[0]).rglob("dataset_info.json")
    return any(".incomplete" not in path.parent.name for path in found)
