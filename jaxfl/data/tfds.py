"""Data that tensorflow-datasets (TFDS) prepared: read without tensorflow, prepared with it.

TFDS is imported where it is used. It is never left to look for data by itself: without a
network it would try for minutes.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data.raw_files import Published

_INSTALL = "pip install 'jaxfl[tfds]'"


def read_images(
    published: Published, folder: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; images uint8 of this shape."""
    parts: list[np.ndarray] = []
    for samples in _read(published, folder, ("image", "label")):
        images = np.stack([sample["image"] for sample in samples])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"{folder} must hold uint8 images of shape {shape}; "
                f"got {images.dtype} of shape {images.shape[1:]}"
            )
        parts += [images, np.array([sample["label"] for sample in samples])]
    train, train_labels, test, test_labels = parts
    return train, train_labels, test, test_labels


def read_texts(
    published: Published, folder: Path, fields: tuple[str, ...]
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Training texts and labels, test texts and labels; the fields are joined by a space."""
    parts: list[Any] = []
    for samples in _read(published, folder, (*fields, "label")):
        parts.append([" ".join(text_of(sample[field]) for field in fields) for sample in samples])
        parts.append(np.array([sample["label"] for sample in samples]))
    train, train_labels, test, test_labels = parts
    return train, train_labels, test, test_labels


def prepare_with_tfds(published: Published, root: Path) -> Path:
    """Prepares a data set below ``root``; see ``jaxfl.data.prepare``."""
    tfds = _import_tfds()
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"preparing {published.name} needs tensorflow: {_INSTALL}")
    sources = root / published.name
    try:
        builder = tfds.builder(published.tfds, data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_dir=root / "downloads",
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(
                manual_dir=sources if sources.is_dir() else None
            ),
        )
    except Exception as error:
        raise ValueError(f"{published.name} could not be prepared: {_line(error)}") from error
    return Path(builder.data_dir)


def read_any(folder: Path, again: str) -> tuple[tuple[str, str], dict[str, list[Any]]]:
    """The names of input and label, and all samples of every split, decoded.

    Args:
      folder: a prepared one.
      again: how to prepare it anew, for errors.
    """
    _check_format(folder, again)
    try:
        info = _import_tfds().builder_from_directory(folder).info
        keys, splits = info.supervised_keys, list(info.splits)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {_line(error)}; {again}") from error
    if keys is None or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{folder.parent.name} is no set of inputs and labels: it says {keys}")
    return keys, {split: _samples(folder, split, again) for split in splits}


def _read(published: Published, folder: Path, fields: tuple[str, ...]) -> list[list[Any]]:
    """All training samples, all test samples, decoded; their numbers checked."""
    again = f"delete it and {published.how_to_prepare(folder.parent.parent)}"
    _check_format(folder, again)
    parts = []
    for split, wanted in (("train", published.train), ("test", published.test)):
        samples = _samples(folder, split, again)
        if len(samples) != wanted:
            raise ValueError(
                f"{folder}: {split} data must have {wanted} samples; got {len(samples)}; {again}"
            )
        missing = [field for field in fields if field not in samples[0]]
        if missing:
            raise ValueError(f"{folder}: samples have no {', '.join(missing)}; {again}")
        parts.append(samples)
    return parts


def _check_format(folder: Path, again: str) -> None:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/dataset_info.json cannot be read; {again}") from error
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise ValueError(f"{folder} is {file_format}; only array_record can be read; {again}")


def _samples(folder: Path, split: str, again: str) -> list[Any]:
    try:
        source = _import_tfds().builder_from_directory(folder).as_data_source(split=split)
        return source.__getitems__(range(len(source)))
    except Exception as error:
        raise ValueError(
            f"{folder}: {split} data cannot be read: {_line(error)}; {again}"
        ) from error


def _import_tfds() -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ValueError(
            f"data prepared by tensorflow-datasets needs the extra tfds: {_INSTALL} ({error})"
        ) from error


def text_of(value: Any) -> str:
    """A text that may still be bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
