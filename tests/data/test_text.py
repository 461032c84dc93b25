"""Texts as word ids, on a small file in AG News's form."""

import csv
import dataclasses
import hashlib
import io

import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import IID, text

TRAIN = [
    (3, "Oil, up", 'He said: "oil is UP"'),
    (1, "Öl\nteuer", "Oil oil; a_b 7"),
    (4, "", "up x"),
]
TEST = [(2, "Oil new", "word"), (1, "", "!"), (4, "up " * 30, "oil")]


def as_csv(rows):
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(rows)
    return stream.getvalue().encode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """AG News of three training rows, of which the part has two."""
    whole, part, test = as_csv(TRAIN), as_csv(TRAIN[:2]), as_csv(TEST)
    digest = hashlib.sha256(test).hexdigest()
    forms = (
        {"train.csv": f"md5:{hashlib.md5(whole).hexdigest()}", "test.csv": digest},
        {"train_part.csv": hashlib.sha256(part).hexdigest(), "test.csv": digest},
    )
    small = dataclasses.replace(text.AG_NEWS, forms=forms, train=3, test=3)
    monkeypatch.setattr(text, "AG_NEWS", small)
    for name, content in (("train.csv", whole), ("train_part.csv", part), ("test.csv", test)):
        (tmp_path / "ag_news").mkdir(exist_ok=True)
        (tmp_path / "ag_news" / name).write_bytes(content)
    return tmp_path


def test_words_become_ids(folder):
    dataset = sources.ag_news(length=6, data_dir=folder)
    # oil 4, up 3; then once each, alphabetically.
    ids = {"oil": 2, "up": 3, "7": 4, "a_b": 5, "he": 6, "is": 7, "said": 8, "teuer": 9}
    ids |= {"x": 10, "öl": 11}
    expected = [
        ["oil", "up", "he", "said", "oil", "is"],  # cut off
        ["öl", "teuer", "oil", "oil", "a_b", "7"],
        ["up", "x"],
    ]
    rows = [[ids[word] for word in row] + [0] * (6 - len(row)) for row in expected]
    np.testing.assert_array_equal(dataset.inputs, rows)
    np.testing.assert_array_equal(
        dataset.test_inputs, [[2, 1, 1, 0, 0, 0], [0] * 6, [3] * 6]
    )  # words of the test part alone are unknown
    assert dataset.labels.tolist() == [2, 0, 3]
    assert dataset.test_labels.tolist() == [1, 0, 3]
    assert dataset.inputs.dtype == dataset.labels.dtype == np.int32
    assert (dataset.name, dataset.classes) == ("ag_news", 4)


def test_a_small_vocabulary_keeps_the_most_frequent(folder):
    dataset = sources.ag_news(length=3, vocabulary=3, data_dir=folder)
    np.testing.assert_array_equal(dataset.inputs, [[2, 1, 1], [1, 1, 2], [1, 1, 0]])


def test_the_part_is_read_where_the_whole_is_not_there_and_says_so(folder):
    whole = folder / "ag_news" / "train.csv"
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train\.csv is damaged .* the md5"):
        sources.ag_news(data_dir=folder)
    whole.unlink()
    dataset = sources.ag_news(data_dir=folder)
    assert dataset.name == "ag_news (2-row part)"
    assert len(dataset.inputs) == 2
    (folder / "ag_news" / "train_part.csv").unlink()
    with pytest.raises(ValueError, match=r"train\.csv is missing"):
        sources.ag_news(data_dir=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "ag_news: length must be at least 1; got 0"),
        ({"vocabulary": 2}, "ag_news: vocabulary must be at least 3; got 2"),
    ],
)
def test_bad_sizes_are_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        sources.ag_news(data_dir=folder, **change)


def test_public_texts_are_no_clients(folder):
    dataset = sources.ag_news(length=4, data_dir=folder, public=2)
    # Words are counted in the two public texts: oil 4, up 2, then once each.
    ids = {"oil": 2, "up": 3, "7": 4, "a_b": 5, "he": 6, "is": 7, "said": 8, "teuer": 9, "öl": 10}
    np.testing.assert_array_equal(dataset.inputs, [[3, 1, 0, 0]])
    assert dataset.labels.tolist() == [3]
    assert dataset.name == "ag_news without 2 public texts"
    assert dataset.split(IID(), 1).public == 2
    public = sources.public_ag_news(2, length=4, data_dir=folder)
    want = [["oil", "up", "he", "said"], ["öl", "teuer", "oil", "oil"]]
    np.testing.assert_array_equal(public, [[ids[word] for word in row] for row in want])
    np.testing.assert_array_equal(dataset.test_inputs[0], [2, 1, 1, 0])
    with pytest.raises(ValueError, match="public must leave some of the 3 training texts; got 3"):
        sources.ag_news(data_dir=folder, public=3)
    with pytest.raises(ValueError, match="texts must be at least 1; got 0"):
        sources.public_ag_news(0, data_dir=folder)


def test_next_words_are_dealt_by_topic(folder):
    dataset = sources.ag_news(length=4, vocabulary=4, data_dir=folder, next_words=True)
    assert (dataset.classes, dataset.answers) == (4, 4)
    assert dataset.labels.tolist() == [2, 0, 3]
    data = dataset.split(sources.IID(), 1)
    np.testing.assert_array_equal(data.inputs, [[2, 3, 1, 1], [1, 1, 2, 2], [3, 1, 0, 0]])
    np.testing.assert_array_equal(data.labels, [[3, 1, 1, 0], [1, 2, 2, 0], [1, 0, 0, 0]])
    assert data.test_labels.shape == data.test_inputs.shape
    assert data.class_counts().tolist() == [[1, 0, 1, 1]]
