"""Which data sets are here, by name."""

import gzip

import pytest

from jaxfl import data as sources
from jaxfl.data import loaders


def test_every_published_data_set_has_a_name():
    assert {p.name for p in loaders.PUBLISHED} | {"digits", "synthetic"} == set(sources.SOURCES)


def test_without_a_folder_only_the_embedded_are_here(monkeypatch):
    monkeypatch.delenv("JAXFL_DATA_DIR", raising=False)
    found = {record.name: record for record in sources.available()}
    assert list(found) == list(sources.SOURCES)
    for name, record in found.items():
        embedded = name in ("digits", "synthetic")
        assert record.where == ("embedded" if embedded else "absent")
        assert record.folder is None
        assert ("$JAXFL_DATA_DIR" in record.how) != embedded
        assert "\n" not in record.how
    assert "jaxfl.data.prepare('cifar10')" in found["cifar10"].how
    assert "source='openml'" in found["spambase"].how


@pytest.mark.parametrize("environment", [False, True])
def test_what_lies_in_the_folder_is_found(tmp_path, monkeypatch, environment):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(gzip.compress(b""))

    touch("ag_news/test.csv.xz", "ag_news/train_part.csv", "fashion_mnist/3.0.1/dataset_info.json")
    touch(*(f"mnist/{file}.gz" for file in loaders.PUBLISHED[0].forms[0]))
    touch(*(f"cifar10/data_batch_{i}.bin" for i in range(1, 6)), "cifar10/3.0.2/dataset_info.json")
    if environment:
        monkeypatch.setenv("JAXFL_DATA_DIR", str(tmp_path))
    records = sources.available(None if environment else tmp_path)
    where = {record.name: (record.where, record.folder) for record in records}
    assert where == {
        "digits": ("embedded", None),
        "synthetic": ("embedded", None),
        "mnist": ("raw", tmp_path / "mnist"),
        "fashion_mnist": ("tfds", tmp_path / "fashion_mnist" / "3.0.1"),
        "cifar10": ("absent", None),
        "ag_news": ("raw", tmp_path / "ag_news"),
        "spambase": ("absent", None),
    }
    how = {record.name: record.how for record in records}
    assert how["cifar10"].startswith("test_batch.bin missing; put data_batch_1.bin, ")
    assert f"into {tmp_path / 'spambase'}" in how["spambase"]
    assert how["mnist"] == how["digits"] == ""
