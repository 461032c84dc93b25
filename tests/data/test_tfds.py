"""Data that tensorflow-datasets prepared: read, refused, and equal to the raw files."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jaxfl import data as sources

IMAGE = np.zeros((28, 28, 1), np.uint8)


def prepared_folder(root, name="mnist", version="3.0.1", file_format="array_record"):
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": file_format}))
    return folder


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in for tensorflow-datasets that answers with the samples it is given."""
    samples, folders = {}, []

    class Source(list):
        def __getitems__(self, places):
            return [self[place] for place in places]

    class Builder:
        def as_data_source(self, split):
            answer = samples[split]
            if isinstance(answer, Exception):
                raise answer
            return Source(answer)

    module = types.ModuleType("tensorflow_datasets")
    module.builder_from_directory = lambda folder: folders.append(folder) or Builder()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return samples, folders


def test_the_newest_whole_version_is_read(tmp_path, stand_in):
    samples, folders = stand_in
    for version in ("3.0.1", "3.0.10", "3.0.9", "9.0.0.incompleteAB"):
        prepared_folder(tmp_path, version=version)
    (tmp_path / "mnist" / "10.0.0").mkdir()
    samples["train"] = [{"image": IMAGE + i % 7, "label": i % 10} for i in range(60_000)]
    samples["test"] = [{"image": IMAGE, "label": np.int64(9)}] * 10_000
    for source in (None, "tfds"):
        dataset = sources.mnist(tmp_path, source=source)
        assert {folder.name for folder in folders} == {"3.0.10"}
        assert dataset.inputs.shape == (60_000, 28, 28, 1)
        np.testing.assert_array_equal(dataset.inputs[:, 5, 5, 0], np.arange(60_000) % 7)
        np.testing.assert_array_equal(dataset.labels, np.arange(60_000) % 10)
        assert dataset.labels.dtype == np.int32


def test_raw_files_come_first_unless_asked(tmp_path, stand_in):
    prepared_folder(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is missing"):
        sources.mnist(tmp_path)
    stand_in[0]["train"] = []
    with pytest.raises(ValueError, match="train data must have 60000 samples; got 0"):
        sources.mnist(tmp_path, source="tfds")


def test_texts_are_joined(tmp_path, stand_in):
    samples, _ = stand_in
    prepared_folder(tmp_path, "ag_news_subset", "1.0.0")
    article = {"title": b"Oil up", "description": "oil \u00f6l".encode(), "label": 3}
    samples["train"], samples["test"] = [article] * 120_000, [article | {"title": "x"}] * 7_600
    dataset = sources.ag_news(length=5, data_dir=tmp_path)
    assert dataset.name == "ag_news"
    assert dataset.inputs[0].tolist() == [2, 3, 2, 4, 0]
    assert dataset.test_inputs[0].tolist() == [1, 2, 4, 0, 0]
    assert set(dataset.labels) == {3}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"image": IMAGE, "label": 0}] * 59_999, "must have 60000 samples; got 59999"),
        ([{"label": 0}] * 60_000, "samples have no image"),
        ([{"image": IMAGE[:-1], "label": 0}] * 60_000, r"of shape \(28, 28, 1\); got uint8 of"),
        (RuntimeError("bad\nrecord"), "train data cannot be read: RuntimeError: bad record"),
    ],
    ids=["count", "field", "shape", "error"],
)
def test_what_is_not_whole_is_refused(tmp_path, stand_in, train, message):
    prepared_folder(tmp_path)
    stand_in[0].update(train=train, test=[{"image": IMAGE, "label": 0}] * 10_000)
    with pytest.raises(ValueError, match=message) as caught:
        sources.mnist(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_format_that_needs_tensorflow_is_refused(tmp_path, stand_in):
    folder = prepared_folder(tmp_path, file_format="tfrecord")
    with pytest.raises(ValueError, match="is tfrecord; only array_record can be read"):
        sources.mnist(tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json cannot be read; delete it and run jaxfl\.d"):
        sources.mnist(tmp_path)


def test_nothing_prepared_is_said_at_once(tmp_path, stand_in):
    message = r"holds no prepared tensorflow-datasets folder; put .*prepare\('cifar10', '.*'\)"
    with pytest.raises(ValueError, match=message):
        sources.cifar10(tmp_path, source="tfds")
    assert stand_in[1] == []


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    prepared_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"needs the extra tfds: pip install 'jaxfl\[tfds\]'"):
        sources.mnist(tmp_path)
    with pytest.raises(ValueError, match="needs the extra tfds"):
        sources.prepare("mnist", tmp_path)


def test_preparing_says_what_is_wrong(tmp_path, stand_in, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of mnist, fashion_mnist, cifar10, ag"):
        sources.prepare("spambase", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="preparing mnist needs tensorflow: pip install"):
        sources.prepare("mnist", tmp_path)


def rows(inputs, labels):
    """Images and labels as one row of bytes each, in an order that does not depend on theirs."""
    flat = np.concatenate([inputs.reshape(len(inputs), -1), labels[:, None].astype("u1")], axis=1)
    return np.sort(np.ascontiguousarray(flat).view(f"S{flat.shape[1]}").ravel())


READ_WITHOUT_TENSORFLOW = """
import sys
import numpy
import jaxfl
data = jaxfl.data.mnist(sys.argv[1])
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
parts = ("inputs", "labels", "test_inputs", "test_labels")
numpy.savez(sys.argv[1] + "/read.npz", **{part: getattr(data, part) for part in parts})
"""


WITH_TFDS = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow_datasets", "array_record", "tensorflow"))),
    reason="the extra tfds is not installed",
)
PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    kind, inputs, splits = None, "", {}

    def _info(self):
        label = tfds.features.ClassLabel(names=["no", "yes", "maybe"])
        features = tfds.features.FeaturesDict({self.inputs: self.kind(), "target": label})
        keys = self.inputs, "target"
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(rows) for split, rows in self.splits.items()}

    def _generate_examples(self, rows):
        for i in rows:
            yield i, {self.inputs: self.of(i), "target": i % 3}

class Tiles(Set, skip_registration=True):
    inputs, splits = "tile", {"train": range(12), "validation": range(12, 17)}
    kind = staticmethod(lambda: tfds.features.Image(shape=(5, 4, 3)))
    of = staticmethod(lambda i: np.full((5, 4, 3), 10 * i, np.uint8))

class Words(Set, skip_registration=True):
    inputs, splits = "sentence", {"train": range(9), "test": range(9, 12), "more": range(12, 14)}
    kind = staticmethod(tfds.features.Text)
    of = staticmethod(lambda i: "up " * (i % 3 + 1) + "\u00fcber")

for kind in (Tiles, Words):
    kind(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared_here(tmp_path_factory):
    """A set of images and one of texts, none of the four that jaxfl names, by TFDS itself."""
    root = tmp_path_factory.mktemp("prepared")
    subprocess.run([sys.executable, "-c", PREPARE, str(root)], check=True, timeout=240)
    return root


@pytest.mark.slow
@WITH_TFDS
def test_any_image_set_that_tfds_prepares_is_read(prepared_here):
    data = sources.from_tfds("tiles", prepared_here)
    assert data.inputs.dtype == np.uint8
    assert (data.inputs.shape, data.test_inputs.shape) == ((12, 5, 4, 3), (5, 5, 4, 3))
    for inputs, labels, tenths in (
        (data.inputs, data.labels, range(12)),
        (data.test_inputs, data.test_labels, range(12, 17)),
    ):
        images = np.asarray(inputs) // 10
        assert sorted(images[:, 0, 0, 0]) == list(tenths)
        assert (images == images[:, :1, :1, :1]).all()
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)
    assert data.classes == 3
    np.testing.assert_allclose(data.mean, 3 * [np.mean(np.arange(12) * 10 / 255)], rtol=1e-6)


@pytest.mark.slow
@WITH_TFDS
def test_any_text_set_that_tfds_prepares_is_read(prepared_here):
    data = sources.from_tfds("words", prepared_here, length=4)
    wanted = {0: (2, 3, 0, 0), 1: (2, 2, 3, 0), 2: (2, 2, 2, 3)}  # "up" is met more often
    for inputs, labels, count in (
        (data.inputs, data.labels, 9),
        (data.test_inputs, data.test_labels, 3),
    ):
        assert [tuple(row) for row in inputs.tolist()] == [wanted[int(k)] for k in labels]
        assert sorted(labels) == sorted(i % 3 for i in range(count))


@pytest.mark.slow
@WITH_TFDS
@pytest.mark.skipif(
    not (Path(os.environ.get("JAXFL_DATA_DIR") or "/nowhere") / "mnist").is_dir(),
    reason="JAXFL_DATA_DIR does not name a folder that holds mnist",
)
def test_mnist_through_tfds_is_the_raw_files(tmp_path):
    shutil.copytree(Path(os.environ["JAXFL_DATA_DIR"]) / "mnist", tmp_path / "mnist")
    folder = sources.prepare("mnist", tmp_path)
    assert sources.available(tmp_path)[2].where == "raw"
    raw = sources.mnist(tmp_path)
    for file in (tmp_path / "mnist").glob("*.gz"):
        file.chmod(0o600)
        file.unlink()
    assert sources.available(tmp_path)[2].folder == folder
    same = sources.from_tfds("mnist", tmp_path)
    np.testing.assert_array_equal(same.inputs, sources.mnist(tmp_path).inputs)
    program = [sys.executable, "-c", READ_WITHOUT_TENSORFLOW, str(tmp_path)]
    subprocess.run(program, check=True, timeout=240)
    with np.load(tmp_path / "read.npz") as again:
        for part in ("inputs", "labels", "test_inputs", "test_labels"):
            assert getattr(raw, part).shape == again[part].shape
            assert getattr(raw, part).dtype == again[part].dtype
        for test in ("", "test_"):
            np.testing.assert_array_equal(
                rows(getattr(raw, f"{test}inputs"), getattr(raw, f"{test}labels")),
                rows(again[f"{test}inputs"], again[f"{test}labels"]),
            )
    shard = next(folder.glob("mnist-train.array_record*"))
    whole = shard.read_bytes()
    for broken in (whole[:-5_000], whole[:700_000] + bytes(64) + whole[700_064:]):
        shard.chmod(0o600)
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match="train data cannot be read"):
            sources.mnist(tmp_path)
