"""Texts as rows of word ids: AG News."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfl.data import tfds
from jaxfl.data.dataset import Dataset
from jaxfl.data.raw_files import Place, Published
from jaxfl.types import PADDING

UNKNOWN = PADDING + 1

_TEST = "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
AG_NEWS = Published(
    name="ag_news",
    forms=(
        # Of the whole training file only the md5 is published.
        {"train.csv": "md5:b1a00f826fdfbd249f79597b59e1dc12", "test.csv": _TEST},
        {
            "train_part.csv": "ff9d7777fcb47e5e66e17065b4e8bd528029160cb72eecab634666899c323550",
            "test.csv": _TEST,
        },
    ),
    origin="X. Zhang's text classification data sets (arXiv 1509.01626)",
    train=120_000,
    test=7_600,
    tfds="ag_news_subset",
)


def ag_news(
    length: int = 64,
    vocabulary: int = 20_000,
    data_dir: str | Path | None = None,
    source: str | None = None,
    public: int = 0,
    next_words: bool = False,
) -> Dataset:
    """AG News: title and description of news in 4 classes, 120,000 training and 7,600 test texts.

    A text becomes ``length`` int32 ids: words (runs of letters, digits and underscores, in lower
    case) of the training part by falling frequency from id 2; id 1 is any other word, id 0
    pads a short text at its end; a long one is cut off.

    Where ``train.csv`` is not there but ``train_part.csv`` is, a part of 35,193 of its rows, that
    is read, and the name says so.

    Args:
      length: words of a text that are kept.
      vocabulary: different ids, padding and unknown among them.
      data_dir: the folder that holds ``ag_news/``; default: the environment's
        ``JAXFL_DATA_DIR``.
      source: ``"raw"``, the published CSV files, or ``"tfds"``, a folder prepared by
        ``jaxfl.data.prepare``, where the samples lie in another order; default: raw files if
        there are any.
      public: so many of the training texts, the first, are no client's: the words are counted in
        them alone, and ``public_ag_news`` has them, for a base that clients then adapt.
      next_words: clients learn the word after each word (``NextWord``); the classes then only say
        which client has which text. Unknown words are one word, which is predicted, too.

    Raises:
      ValueError: the data is missing, truncated or not what was published; a bad size.

    Zhang, Zhao, LeCun, "Character-level convolutional networks for text classification",
    NeurIPS 2015.
    """
    _check_sizes("ag_news", length=(length, 1), vocabulary=(vocabulary, 3), public=(public, 0))
    (train, labels), (test, test_labels) = _read(data_dir, source)
    _check_public(public, len(train))
    words = count_words(train[:public] if public else train, vocabulary)
    part = len(train) < AG_NEWS.train
    name = f"ag_news ({len(train):,}-row part)" if part else "ag_news"
    return Dataset(
        name=f"{name} without {public:,} public texts" if public else name,
        inputs=encode(train[public:], words, length),
        labels=labels[public:].astype(np.int32),
        test_inputs=encode(test, words, length),
        test_labels=test_labels.astype(np.int32),
        classes=4,
        next_words=vocabulary if next_words else None,
        public=public,
    )


def public_ag_news(
    texts: int,
    length: int = 64,
    vocabulary: int = 20_000,
    data_dir: str | Path | None = None,
    source: str | None = None,
) -> np.ndarray:
    """The word ids ``[texts, length]`` of those that ``ag_news(public=texts)`` leaves out.

    Raises:
      ValueError: as ``ag_news``.
    """
    _check_sizes("ag_news", length=(length, 1), vocabulary=(vocabulary, 3), texts=(texts, 1))
    (train, _), _ = _read(data_dir, source)
    _check_public(texts, len(train))
    return encode(train[:texts], count_words(train[:texts], vocabulary), length)


def _check_sizes(owner: str, **sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}; got {value}")


def _check_public(public: int, texts: int) -> None:
    if public >= texts:
        raise ValueError(
            f"ag_news: public must leave some of the {texts} training texts; got {public}"
        )


def _read(data_dir: str | Path | None, source: str | None) -> list[tuple[list[str], np.ndarray]]:
    """Texts and labels of the training and of the test part."""
    place = AG_NEWS.locate(source, data_dir)
    if place.files:
        return [_read_csv(place, file) for file in place.files]
    train, labels, test, test_labels = tfds.read_texts(
        AG_NEWS, place.folder, ("title", "description")
    )
    return [(train, labels), (test, test_labels)]


def count_words(texts: Sequence[str], vocabulary: int) -> dict[str, int]:
    """Word to id: the most frequent words first (equal ones in alphabetical order), from id 2."""
    split = _splitter()
    counts = Counter(word for text in texts for word in split(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked[: vocabulary - 2], UNKNOWN + 1)}


def encode(texts: Sequence[str], words: dict[str, int], length: int) -> np.ndarray:
    """Texts as int32 ids ``[N, length]``, padded at the end or cut off."""
    split = _splitter()
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(ids, texts, strict=True):
        known = [words.get(word, UNKNOWN) for word in split(text)[:length]]
        row[: len(known)] = known
    return ids


def _splitter():
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer()


def _read_csv(place: Place, file: str) -> tuple[list[str], np.ndarray]:
    """Three quoted columns, no header: class 1..4, title, description."""
    rows = list(csv.reader(io.StringIO(place.read(file).decode(), newline="")))
    texts = [f"{title} {description}" for _, title, description in rows]
    return texts, np.array([int(label) - 1 for label, _, _ in rows])
