"""Classification sets that other libraries hold: Hugging Face's, TFDS's."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.arguments import seed_of
from jaxfl.data import tfds
from jaxfl.data.dataset import Dataset
from jaxfl.data.raw_files import Published, data_root
from jaxfl.data.text import count_words, encode

TESTS = ("test", "validation", "valid")
"""Splits that a model can be tested on, the first there is."""


def from_huggingface(
    dataset: Any,
    *,
    image: str | None = None,
    text: str | None = None,
    label: str = "label",
    client: str | None = None,
    test: Any = 0.2,
    length: int = 64,
    vocabulary: int = 20_000,
    seed: int = 0,
    name: str = "huggingface",
) -> Dataset:
    """A classification set of Hugging Face's ``datasets`` library.

    Images of bytes stay bytes and are normalised by each channel's mean and standard deviation
    over the training part; grey ones get a channel axis. Other arrays of numbers become float32
    as they are. Texts become ids as those of ``ag_news``. Labels that are words are numbered in
    alphabetical order. All samples are held in memory.

    Args:
      dataset: a ``Dataset``, a ``DatasetDict`` with a part "train" (and "test" or "validation"),
        or the folder of one that ``save_to_disk`` wrote (reading it needs the extra ``hf``).
      image: the column of images, or of any arrays of one shape.
      text: the column of texts, instead.
      label: the column of classes.
      client: the column that says whose a sample is, for ``Natural`` partitions.
      test: the test part where ``dataset`` has none: a ``Dataset``, or a random share.
      length: words of a text that are kept.
      vocabulary: different ids of words, padding and unknown among them.
      seed: of the random share.
      name: the data set's, in tables.

    Raises:
      ValueError: no such column, values that are missing, images of several shapes, labels or a
        share that are none, or the extra is missing.
    """
    if (image is None) == (text is None):
        raise ValueError(f"{name}: give image= or text=, the column of inputs; got {image}, {text}")
    train, rest = _parts(dataset, test, name)
    columns = {"inputs": image or text, "labels": label, "clients": client}
    wanted = {what: column for what, column in columns.items() if column is not None}
    found = _columns(train, wanted, name)
    if rest is None:
        count = len(found["labels"])
        tests = _share(test, count, seed, name)
        held = {what: values[tests] for what, values in found.items()}
        found = {what: np.delete(values, tests, axis=0) for what, values in found.items()}
    else:
        held = _columns(rest, {k: v for k, v in wanted.items() if k != "clients"}, name)
    labels, test_labels, classes = _numbered(found["labels"], held["labels"], name)
    given = {"name": name, "labels": labels, "test_labels": test_labels, "classes": classes}
    if "clients" in found:
        given["client_ids"] = found["clients"]
    if text is not None:
        texts, test_texts = ([str(x) for x in part["inputs"]] for part in (found, held))
        return of_texts(texts, test_texts, length, vocabulary, **given)
    return of_arrays(found["inputs"], held["inputs"], **given)


def from_tfds(
    name: str,
    data_dir: str | Path | None = None,
    *,
    length: int = 64,
    vocabulary: int = 20_000,
) -> Dataset:
    """Any image or text classification set that tensorflow-datasets has prepared.

    Read without tensorflow, as ``array_record``, from ``data_dir/name``; nothing is looked for on
    a network. Which are inputs and labels the set says itself. The test part is its split "test",
    or else "validation". Inputs become what ``from_huggingface`` makes of them.

    Args:
      name: as TFDS calls it, with its configuration where it has one: ``"kmnist"``,
        ``"cifar10_corrupted/fog_1"``.
      data_dir: where it was prepared; default: the environment's ``JAXFL_DATA_DIR``.
      length: words of a text that are kept.
      vocabulary: different ids of words, padding and unknown among them.

    Raises:
      ValueError: it is not there, is no set of inputs and labels, has no test part, or holds images
        of several shapes; the extra ``tfds`` is missing.
    """
    root = data_root(name, data_dir)
    how = f"run tfds build {name} --data_dir {root} --file_format array_record"
    folder = Published(name, ({},), "", 0, 0, tfds=name).find_prepared(root)
    if folder is None:
        raise ValueError(f"{name}: {root / name} holds no prepared folder; {how}")
    (inputs, label), splits = tfds.read_any(folder, f"delete it and {how}")
    rest = next((split for split in TESTS if splits.get(split)), None)
    if not splits.get("train") or rest is None:
        raise ValueError(f"{name}: needs samples to train and to test; has {', '.join(splits)}")
    train, test = splits["train"], splits[rest]
    own, tests = (np.array([sample[label] for sample in part]) for part in (train, test))
    labels, test_labels, classes = _numbered(own, tests, name)
    given = {"name": name, "labels": labels, "test_labels": test_labels, "classes": classes}
    column, test_column = ([sample[inputs] for sample in part] for part in (train, test))
    if isinstance(column[0], bytes | str):
        texts, test_texts = (list(map(tfds.text_of, part)) for part in (column, test_column))
        return of_texts(texts, test_texts, length, vocabulary, **given)
    return of_arrays(_stacked(column, name), _stacked(test_column, name), **given)


def of_texts(
    train: Sequence[str], test: Sequence[str], length: int, vocabulary: int, **given: Any
) -> Dataset:
    """A data set of texts as word ids."""
    for what, value, least in (("length", length, 1), ("vocabulary", vocabulary, 3)):
        if value < least:
            raise ValueError(f"{given['name']}: {what} must be at least {least}; got {value}")
    words = count_words(train, vocabulary)
    inputs, test_inputs = (encode(texts, words, length) for texts in (train, test))
    return Dataset(inputs=inputs, test_inputs=test_inputs, **given)


def of_arrays(train: np.ndarray, test: np.ndarray, **given: Any) -> Dataset:
    """A data set of images of bytes, normalised by their channels, or of other numbers."""
    for part in (train, test):
        if part.dtype == object or part.dtype.kind not in "buif":
            raise ValueError(
                f"{given['name']}: inputs must be numbers, arrays of one shape; got {part.dtype}"
            )
    if train.dtype != np.uint8:
        train, test = (part.astype(np.float32) for part in (train, test))
        return Dataset(inputs=train, test_inputs=test, **given)
    if train.ndim == 3:
        train, test = train[..., None], test[..., None]
    found = Dataset(inputs=train, test_inputs=test, **given)
    numbers = found.summary()
    std = tuple(value or 1.0 for value in numbers.std)
    return dataclasses.replace(found, mean=numbers.mean, std=std)


def _parts(dataset: Any, test: Any, name: str) -> tuple[Any, Any]:
    """The training and the test part; None for one that is to be held out."""
    if isinstance(dataset, str | Path):
        try:
            dataset = importlib.import_module("datasets").load_from_disk(str(dataset))
        except ImportError as error:
            raise ValueError(
                f"{name}: reading {dataset} needs the extra hf: pip install 'jaxfl[hf]' ({error})"
            ) from error
    if not isinstance(dataset, Mapping):
        return dataset, None if isinstance(test, int | float) else test
    rest = next((dataset[part] for part in TESTS if part in dataset), None)
    if "train" not in dataset:
        raise ValueError(f"{name}: needs a part train; has {', '.join(dataset)}")
    return dataset["train"], rest if rest is not None or isinstance(test, int | float) else test


def _columns(part: Any, wanted: Mapping[str, str], name: str) -> dict[str, np.ndarray]:
    """Columns of a ``datasets.Dataset`` as arrays, by what they are wanted for."""
    known = getattr(part, "column_names", None)
    if known is None:
        raise ValueError(f"{name}: needs a datasets.Dataset; got {type(part).__name__}")
    for what, column in wanted.items():
        if column not in known:
            raise ValueError(
                f"{name}: no column {column!r} for the {what}; there are {', '.join(known)}"
            )
    found = part.select_columns(list(set(wanted.values()))).with_format("numpy")[:]
    arrays = {what: np.asarray(found[column]) for what, column in wanted.items()}
    for what, column in wanted.items():
        missing = _missing(arrays[what])
        if missing:
            raise ValueError(
                f"{name}: column {column!r} for the {what} lacks {missing} of {len(arrays[what])} "
                f"values: leave those samples out, dataset.filter(lambda s: s[{column!r}] is not "
                "None)"
            )
    return arrays


def _missing(values: np.ndarray) -> int:
    """How many are None, which in a column of numbers is NaN."""
    if values.dtype == object:
        return sum(value is None for value in values)
    return int(np.isnan(values).sum()) if values.ndim == 1 and values.dtype.kind == "f" else 0


def _share(test: Any, count: int, seed: int, name: str) -> np.ndarray:
    """The places of a random share of so many samples, in order."""
    tests = round(test * count)
    if not 0 < tests < count:
        raise ValueError(
            f"{name}: test must leave samples on both sides; got a share of {test} of {count}"
        )
    return np.sort(np.random.default_rng(seed_of(seed)).permutation(count)[:tests])


def _numbered(
    labels: np.ndarray, test_labels: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels as int32 from 0, words in alphabetical order, and how many classes there are."""
    both = np.concatenate([labels, test_labels])
    if both.ndim != 1 or both.dtype.kind not in "iubUSO":
        raise ValueError(f"{name}: labels must be integers or words; got {both.dtype}")
    if both.dtype.kind in "USO":
        _, both = np.unique(both.astype(str), return_inverse=True)
    both = both.astype(np.int32)
    return both[: len(labels)], both[len(labels) :], int(both.max(initial=0)) + 1


def _stacked(arrays: Sequence[Any], name: str) -> np.ndarray:
    shapes = sorted({np.shape(array) for array in arrays})
    if len(shapes) > 1:
        raise ValueError(f"{name}: inputs must have one shape; got {shapes[0]} and {shapes[1]}")
    return np.stack(arrays)
