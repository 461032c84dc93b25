"""Published data sets: equal to what the files hold, and refused when they are not whole."""

import csv
import dataclasses
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import images


def published(name):
    root = os.environ.get("JAXFL_DATA_DIR")
    if not root:
        pytest.skip("JAXFL_DATA_DIR does not name a folder of raw data")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"JAXFL_DATA_DIR holds no {name}")
    return folder


def unpack(folder, file):
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}
    path = next(folder / (file + s) for s in opener if (folder / (file + s)).exists())
    with opener[path.name.removeprefix(file)](path, "rb") as stream:
        return stream.read()


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_mnist_and_fashion_mnist_are_their_files(name, mean):
    folder = published(name)
    dataset = sources.SOURCES[name]()
    for prefix, inputs, labels in (
        ("train", dataset.inputs, dataset.labels),
        ("t10k", dataset.test_inputs, dataset.test_labels),
    ):
        raw = unpack(folder, f"{prefix}-images-idx3-ubyte")
        assert inputs.dtype == np.uint8
        assert inputs.shape == (int.from_bytes(raw[4:8], "big"), 28, 28, 1)
        assert inputs.tobytes() == raw[16:]
        assert (
            labels.astype(np.uint8).tobytes() == unpack(folder, f"{prefix}-labels-idx1-ubyte")[8:]
        )
    summary = dataset.summary()
    assert summary.mean == pytest.approx([mean], abs=1e-4)
    assert (len(dataset.labels), len(dataset.test_labels)) == (60_000, 10_000)
    assert summary.counts[0] == (5_923 if name == "mnist" else 6_000)


@pytest.mark.slow
def test_cifar10_is_its_files():
    folder = published("cifar10")
    dataset = sources.cifar10()
    assert dataset.inputs.shape == (50_000, 32, 32, 3)
    assert dataset.test_inputs.shape == (10_000, 32, 32, 3)
    assert dataset.inputs.dtype == dataset.test_inputs.dtype == np.uint8
    random = np.random.default_rng(0)
    for number, file in ((2, "data_batch_3.bin"), (None, "test_batch.bin")):
        raw = unpack(folder, file)
        part = slice(0, None) if number is None else slice(number * 10_000, (number + 1) * 10_000)
        inputs = (dataset.test_inputs if number is None else dataset.inputs)[part]
        labels = (dataset.test_labels if number is None else dataset.labels)[part]
        assert labels.tolist() == list(raw[::3073])
        for sample in random.integers(0, 10_000, 20):
            for row, column, channel in random.integers(0, (32, 32, 3), (50, 3)):
                offset = sample * 3073 + 1 + channel * 1024 + row * 32 + column
                assert inputs[sample, row, column, channel] == raw[offset]
    summary = dataset.summary()
    np.testing.assert_allclose(summary.mean, dataset.mean, atol=1e-7)
    np.testing.assert_allclose(summary.std, dataset.std, atol=1e-7)
    assert summary.counts == (5_000,) * 10
    assert summary.test_counts == (1_000,) * 10


@pytest.mark.slow
def test_ag_news_is_its_files_in_words():
    folder = published("ag_news")
    whole = any(folder.glob("train.csv*"))
    dataset = sources.ag_news(length=40, vocabulary=5_000)
    texts, labels = {}, {}
    for part, file in (("train", "train.csv" if whole else "train_part.csv"), ("test", "test.csv")):
        rows = list(csv.reader(io.StringIO(unpack(folder, file).decode(), newline="")))
        texts[part] = [re.findall(r"\w+", f"{row[1]} {row[2]}".lower()) for row in rows]
        labels[part] = [int(row[0]) - 1 for row in rows]
    assert dataset.name == ("ag_news" if whole else "ag_news (35,193-row part)")
    assert dataset.labels.tolist() == labels["train"]
    assert dataset.test_labels.tolist() == labels["test"]
    counts = Counter(word for text in texts["train"] for word in text)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4_998]
    number = {word: i + 2 for i, (word, _) in enumerate(ranked)}
    for part, inputs in (("train", dataset.inputs), ("test", dataset.test_inputs)):
        expected = [[number.get(w, 1) for w in text[:40]] for text in texts[part]]
        expected = np.array([row + [0] * (40 - len(row)) for row in expected])
        np.testing.assert_array_equal(inputs, expected)
    assert dataset.inputs.dtype == np.int32
    assert dataset.inputs.max() == 4_999
    assert np.mean(dataset.test_inputs == 1) < 0.15
    divided = dataset.split(sources.IID(), clients=10)
    inputs, _ = divided.samples(jnp.arange(3))
    np.testing.assert_array_equal(inputs, dataset.inputs[:3])


def test_spambase_is_its_file_standardised():
    table = np.loadtxt(io.BytesIO(unpack(published("spambase"), "spambase.data")), delimiter=",")
    dataset = sources.spambase()
    assert dataset.inputs.shape == (3_680, 57)
    assert dataset.test_inputs.shape == (921, 57)
    assert dataset.inputs.dtype == np.float32
    np.testing.assert_allclose(dataset.inputs.mean(axis=0, dtype="f8"), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.inputs.std(axis=0, dtype="f8"), 1, atol=1e-5)
    # Undo the shuffle and the scale: the file's own rows come out.
    order = np.random.default_rng(0).permutation(4_601)
    mean, std = table[order[:3_680], :57].mean(axis=0), table[order[:3_680], :57].std(axis=0)
    inputs = np.concatenate([dataset.inputs, dataset.test_inputs]) * std + mean
    np.testing.assert_allclose(inputs, table[order, :57], atol=2e-3, rtol=1e-5)
    labels = np.concatenate([dataset.labels, dataset.test_labels])
    np.testing.assert_array_equal(labels, table[order, 57])
    assert 0.35 < dataset.test_labels.mean() < 0.45
    np.testing.assert_array_equal(dataset.inputs, sources.spambase().inputs)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "train-labels-idx1-ubyte.gz"),
        pytest.param("cifar10", "data_batch_1.bin.xz", marks=pytest.mark.slow),
        ("ag_news", "test.csv.xz"),
        ("spambase", "spambase.data.xz"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, file):
    target = tmp_path / name / file
    whole = (published(name) / file).read_bytes()
    target.parent.mkdir()
    for other in published(name).iterdir():
        if other.name != file and other.stat().st_size < 20_000_000:
            shutil.copyfile(other, tmp_path / name / other.name)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for broken in (whole[:-100], whole[:1000], flipped, b""):
        target.write_bytes(broken)
        message = f"{file} (cannot be read, damaged or truncated|is damaged or not the published)"
        with pytest.raises(ValueError, match=message) as caught:
            sources.SOURCES[name](data_dir=tmp_path)
        assert "\n" not in str(caught.value)


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


def idx(values):
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


FAKE = {
    "train-images-idx3-ubyte": idx(PIXELS),
    "train-labels-idx1-ubyte": idx(np.array([3, 1, 4, 1, 5], np.uint8)),
    "t10k-images-idx3-ubyte": idx(PIXELS[:2]),
    "t10k-labels-idx1-ubyte": idx(np.array([9, 0], np.uint8)),
}
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A data set of 5 + 2 images in place of MNIST, its four files in a folder."""
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in FAKE.items()}
    small = dataclasses.replace(images.MNIST, forms=(sums,), train=5, test=2)
    monkeypatch.setattr(images, "MNIST", small)
    (tmp_path / "mnist").mkdir()
    for file, content in FAKE.items():
        (tmp_path / "mnist" / file).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("packing", PACK)
def test_files_are_read_in_every_packing(small_mnist, packing, monkeypatch):
    for file, content in FAKE.items():
        (small_mnist / "mnist" / file).unlink()
        (small_mnist / "mnist" / (file + packing)).write_bytes(PACK[packing](content))
    monkeypatch.setenv("JAXFL_DATA_DIR", str(small_mnist))
    for dataset in (sources.mnist(), sources.mnist(small_mnist), sources.mnist(source="raw")):
        np.testing.assert_array_equal(dataset.inputs[..., 0], PIXELS)
        assert dataset.labels.tolist() == [3, 1, 4, 1, 5]
        assert dataset.test_labels.tolist() == [9, 0]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("file", FAKE)
def test_every_single_change_is_noticed(small_mnist, packing, file):
    path = small_mnist / "mnist" / (file + packing)
    (small_mnist / "mnist" / file).unlink()
    whole = PACK[packing](FAKE[file])
    random = np.random.default_rng(0)
    broken = [whole[:length] for length in random.integers(0, len(whole), 10)]
    broken.append(PACK[packing](FAKE[file][:-1]))
    broken.append(PACK[packing](FAKE[file] + b"\0"))
    for place in random.integers(10 if packing else 0, len(whole), 30):
        broken.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} ")) as caught:
            sources.mnist(small_mnist)
        assert re.search("damaged", str(caught.value))


@pytest.mark.parametrize("file", FAKE)
def test_a_missing_file_is_named(small_mnist, file):
    path = small_mnist / "mnist" / file
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path} is missing (as it is, .gz or .xz)")):
        sources.mnist(small_mnist)
    path.mkdir()
    with pytest.raises(ValueError, match="is missing"):
        sources.mnist(small_mnist)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "ag_news", "spambase"])
def test_data_that_is_not_there_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXFL_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match=f"{name}: no data folder; set JAXFL_DATA_DIR"):
        sources.SOURCES[name]()
    with pytest.raises(ValueError, match="missing") as caught:
        sources.SOURCES[name](data_dir=tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    if name in ("mnist", "fashion_mnist", "cifar10"):
        assert "https://" in str(caught.value), "where it can be had"
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"{name}: source must be one of raw, .*; got 'ftp'"):
        sources.SOURCES[name](source="ftp", data_dir=tmp_path)


def table(rows=4_601, spam=1_813):
    random = np.random.default_rng(0)
    return random.random((rows, 57)), np.array(["1"] * spam + ["0"] * (rows - spam), object)


def test_spambase_from_openml(monkeypatch):
    import sklearn.datasets

    class Fetched:
        data, target = table()

    asked = []
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **k: asked.append(k) or Fetched)
    dataset = sources.spambase(source="openml")
    assert asked[0]["data_id"] == 44
    assert len(dataset.labels) == 3_680
    assert dataset.labels.sum() + dataset.test_labels.sum() == 1_813
    Fetched.data, Fetched.target = table(spam=1_812)
    with pytest.raises(ValueError, match="must have 4601 rows of 58 numbers, 1813 of them spam"):
        sources.spambase(source="openml")


def test_openml_without_a_network_is_one_line(monkeypatch):
    import sklearn.datasets

    def unreachable(**_):
        raise OSError("no route\nto host")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", unreachable)
    with pytest.raises(ValueError, match="could not be fetched from OpenML: no route to host"):
        sources.spambase(source="openml")
