"""Classification sets of other libraries: Hugging Face's, TFDS's."""

import json
import sys
import types

import numpy as np
import pytest

from jaxfl import data as sources

N = 20


@pytest.fixture(scope="module")
def hf():
    reason = "Hugging Face's datasets are not installed (extra hf)"
    return pytest.importorskip("datasets", reason=reason)


@pytest.fixture(scope="module")
def samples(hf):
    """Images that tell which sample they are, three classes, four writers, texts."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra hf)")
    columns = {
        "img": [image.fromarray(np.full((4, 5, 3), 10 * i, np.uint8)) for i in range(N)],
        "y": [i % 3 for i in range(N)],
        "word": [["c", "a", "b"][i % 3] for i in range(N)],
        "who": [f"writer {i % 4}" for i in range(N)],
        "text": ["oil up" if i % 2 else "Up up away" for i in range(N)],
        "vector": [[float(i), 1.0] for i in range(N)],
    }
    kinds = {name: hf.Value("string") for name in ("word", "who", "text")}
    kinds |= {"img": hf.Image(), "y": hf.ClassLabel(num_classes=3)}
    kinds["vector"] = hf.Sequence(hf.Value("float64"))
    return hf.Dataset.from_dict(columns, features=hf.Features(kinds))


def places(inputs):
    return np.asarray(inputs)[:, 0, 0, 0] // 10


def test_images_keep_their_bytes_labels_and_writers(samples):
    data = sources.from_huggingface(samples, image="img", label="y", client="who", test=0.25)
    train, test = places(data.inputs), places(data.test_inputs)
    assert data.inputs.dtype == np.uint8
    assert data.inputs.shape == (15, 4, 5, 3)
    assert sorted([*train, *test]) == list(range(N))
    np.testing.assert_array_equal(data.labels, train % 3)
    np.testing.assert_array_equal(data.test_labels, test % 3)
    assert data.classes == 3
    np.testing.assert_allclose(data.mean, 3 * [np.mean(train * 10 / 255)], rtol=1e-6)
    np.testing.assert_allclose(data.std, 3 * [np.std(train * 10 / 255)], rtol=1e-6)
    federated = data.split(sources.Natural(), 4)
    order, start = np.asarray(federated.order), np.asarray(federated.start)
    for client, count in enumerate(np.asarray(federated.count)):
        own = train[order[start[client] : start[client] + count]]
        assert set(own % 4) == {client}
    again = sources.from_huggingface(samples, image="img", label="y", test=0.25)
    np.testing.assert_array_equal(again.inputs, data.inputs)


def test_a_set_saved_to_disk_brings_its_own_test_part(hf, samples, tmp_path):
    halves = {"train": samples.select(range(12)), "test": samples.select(range(12, N))}
    hf.DatasetDict(halves).save_to_disk(tmp_path / "saved")
    data = sources.from_huggingface(tmp_path / "saved", image="img", label="word")
    np.testing.assert_array_equal(places(data.inputs), np.arange(12))
    np.testing.assert_array_equal(places(data.test_inputs), np.arange(12, N))
    np.testing.assert_array_equal(data.labels, [2, 0, 1] * 4)  # c, a, b
    given = sources.from_huggingface(halves["train"], image="img", label="y", test=halves["test"])
    np.testing.assert_array_equal(given.test_inputs, data.test_inputs)


def test_texts_become_ids_and_other_numbers_stay(samples):
    data = sources.from_huggingface(samples, text="text", label="y", length=4, test=0.1)
    rows = {tuple(row) for row in data.inputs.tolist()}
    others = (3, 4)  # ids of "oil" and "away", which the held-out share decides; "up" is 2
    assert rows in [{(a, 2, 0, 0), (2, 2, b, 0)} for a, b in (others, others[::-1])]
    vectors = sources.from_huggingface(samples, image="vector", label="y")
    assert vectors.inputs.dtype == np.float32
    assert vectors.inputs.shape == (16, 2)


def test_what_cannot_be_used_is_said(hf, samples):
    for given, said in (
        ({}, "give image= or text="),
        ({"image": "img", "text": "text"}, "give image= or text="),
        ({"image": "picture"}, "no column 'picture' for the inputs; there are img, y, word"),
        ({"image": "img", "label": "z"}, "no column 'z' for the labels"),
        ({"image": "img", "label": "y", "client": "w"}, "no column 'w' for the clients"),
        ({"image": "text", "label": "y"}, "inputs must be numbers"),
        ({"image": "img", "label": "vector"}, "labels must be integers or words; got float32"),
        ({"image": "img", "label": "y", "test": 1.0}, "got a share of 1.0 of 20"),
    ):
        with pytest.raises(ValueError, match=said):
            sources.from_huggingface(samples, **given)
    with pytest.raises(ValueError, match=r"needs a datasets.Dataset; got list"):
        sources.from_huggingface([1, 2], image="img")
    with pytest.raises(ValueError, match="needs a part train; has test"):
        sources.from_huggingface(hf.DatasetDict(test=samples), image="img")
    ragged = hf.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]})
    with pytest.raises(ValueError, match="arrays of one shape"):
        sources.from_huggingface(ragged, image="x", test=0.5)


class Part:
    """What is read of a ``datasets.Dataset``: its columns, as NumPy has them."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def select_columns(self, _):
        return self

    def with_format(self, _):
        return self

    def __getitem__(self, _):
        return self.columns


@pytest.mark.parametrize(
    ("column", "what"), [("word", "labels"), ("number", "labels"), ("who", "clients")]
)
def test_values_that_are_missing_are_no_class_and_no_client(column, what):
    part = Part(
        vector=np.ones((4, 2)),
        whole=np.array([0, 1, 0, 1]),
        word=np.array(["a", None, "b", "a"], object),
        number=np.array([0, np.nan, 1, 0]),
        who=np.array(["x", "y", None, "y"], object),
    )
    given = {"label": "whole", what.removesuffix("s"): column}
    said = f"column '{column}' for the {what} lacks 1 of 4 values: leave those samples out"
    with pytest.raises(ValueError, match=said):
        sources.from_huggingface(part, image="vector", test=0.25, **given)
    assert sources.from_huggingface(part, image="vector", label="whole", test=0.25).classes == 2


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the extra hf: pip install 'jaxfl\[hf\]'"):
        sources.from_huggingface(tmp_path, image="img")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder as TFDS prepares one, read by a stand-in for TFDS."""

    def prepare(name, keys, **splits):
        folder = tmp_path / name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "array_record"}))

        class Source(list):
            def __getitems__(self, at):
                return [self[i] for i in at]

        class Builder:
            info = types.SimpleNamespace(supervised_keys=keys, splits=splits)

            def as_data_source(self, split):
                return Source(splits[split])

        module = types.ModuleType("tensorflow_datasets")
        module.builder_from_directory = lambda path: Builder()
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
        return tmp_path

    return prepare


def test_any_prepared_image_set_is_read(prepared):
    parts = [
        [{"pixels": np.full((3, 3, 1), i, "u1"), "k": i % 4} for i in r] for r in ((1, 2), (3,))
    ]
    root = prepared("kmnist/inner", ("pixels", "k"), train=parts[0], validation=parts[1])
    data = sources.from_tfds("kmnist/inner", root)
    assert data.inputs[:, 0, 0, 0].tolist() == [1, 2]
    assert data.test_labels.tolist() == [3]
    assert data.classes == 4
    np.testing.assert_allclose(data.mean, [1.5 / 255])


def test_any_prepared_text_set_is_read(prepared):
    row = [{"review": b"good", "label": 1}, {"review": b"good bad", "label": 0}]
    data = sources.from_tfds(
        "imdb", prepared("imdb", ("review", "label"), train=row, test=row), length=3
    )
    assert data.inputs.tolist() == [[2, 0, 0], [2, 3, 0]]


def test_a_set_that_is_none_is_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match="holds no prepared folder; run tfds build x --data_dir"):
        sources.from_tfds("x", tmp_path)
    pictures = [{"a": np.zeros((2, 2, 1), "u1"), "b": 0}, {"a": np.zeros((3, 2, 1), "u1"), "b": 0}]
    for name, keys, splits, said in (
        ("s", None, {"train": pictures}, "s is no set of inputs and labels"),
        ("t", ("a", "b"), {"train": pictures}, "needs samples to train and to test; has train"),
        ("u", ("a", "b"), {"train": pictures, "test": pictures}, r"one shape; got \(2, 2, 1\) and"),
    ):
        with pytest.raises(ValueError, match=said):
            sources.from_tfds(name, prepared(name, keys, **splits))
