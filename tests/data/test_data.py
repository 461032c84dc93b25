"""Data sets, their division among clients, and the files they come from."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import IID, Dirichlet

LABELS = np.random.default_rng(0).integers(0, 10, 1_000)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(alpha=0.1), Dirichlet(alpha=10.0)])
@pytest.mark.parametrize("clients", [1, 7, 50, 300])
def test_every_sample_goes_to_exactly_one_client(partition, clients):
    owners = partition.assign(LABELS, clients, np.random.default_rng(1))
    assert owners.shape == LABELS.shape
    count = np.bincount(owners, minlength=clients)
    assert len(count) == clients
    assert count.min() >= 1
    if isinstance(partition, IID):
        assert count.max() - count.min() <= 1


def skew(alpha):
    owners = Dirichlet(alpha=alpha).assign(LABELS, 10, np.random.default_rng(2))
    table = np.zeros((10, 10))
    np.add.at(table, (owners, LABELS), 1)
    share = table / table.sum(axis=1, keepdims=True)
    return np.abs(share - 0.1).sum(axis=1).mean()


def test_a_small_alpha_means_skewed_labels():
    assert skew(0.1) > 1.5 * skew(1.0) > 3 * skew(100.0)


def test_dirichlet_shares_have_the_right_spread():
    """Per class, the share of a client is Beta(alpha, (n - 1) alpha)."""
    labels, n, alpha = np.zeros(5_000, int), 5, 2.0
    draw = [
        np.bincount(Dirichlet(alpha=alpha).assign(labels, n, np.random.default_rng(s)), minlength=n)
        for s in range(300)
    ]
    shares = np.stack(draw) / 5_000
    assert shares.mean(axis=0) == pytest.approx(np.full(n, 1 / n), abs=0.03)
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert shares.var(axis=0) == pytest.approx(np.full(n, variance), rel=0.35)


def test_the_seed_decides_the_division():
    digits = sources.digits()
    a, b, c = (digits.split(Dirichlet(alpha=1.0), 20, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.order, b.order)
    assert not np.array_equal(a.count, c.count)


def test_federated_data_keeps_inputs_and_labels_together():
    x = np.arange(12, dtype=np.float32)[:, None]
    owners = np.array([2, 0, 1, 2, 2, 0, 1, 1, 2, 0, 2, 2])
    data = sources.from_arrays(x, np.arange(12) % 3, x[:3], np.arange(3), client_ids=owners * 10)
    data = data.by_client()
    assert (data.clients, data.capacity, data.classes) == (3, 6, 3)
    for client in range(3):
        start, count = int(data.start[client]), int(data.count[client])
        own = np.asarray(data.order[start : start + count])
        assert sorted(own) == np.flatnonzero(owners == client).tolist()


def test_images_are_normalised_inside_the_program():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    data = sources.Dataset(
        name="x",
        inputs=images,
        labels=np.arange(6) % 2,
        test_inputs=images,
        test_labels=np.arange(6) % 2,
        classes=2,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    ).split(IID(), clients=2)
    assert data.inputs.dtype == jnp.uint8
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    np.testing.assert_allclose(data.prepare(data.inputs), expected, rtol=1e-5, atol=1e-6)


def test_digits_and_synthetic():
    digits = sources.digits()
    assert digits.inputs.shape == (1437, 8, 8, 1)
    assert len(digits.test_labels) == 360
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
    gauss = sources.synthetic(samples=5_000, features=20, classes=4, separation=6.0)
    means = np.stack([np.mean(gauss.inputs[gauss.labels == c], axis=0) for c in range(4)])
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 6.0, atol=0.4)
    assert np.std(gauss.inputs - means[gauss.labels]) == pytest.approx(1, abs=0.02)
    nearest = np.argmin(((gauss.test_inputs[:, None] - means[None]) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == gauss.test_labels) > 0.95


@pytest.mark.parametrize(
    ("clients", "message"), [(0, "clients must be at least 1; got 0"), (2_000, "cannot share 1437")]
)
def test_impossible_numbers_of_clients_are_refused(clients, message):
    with pytest.raises(ValueError, match=message):
        sources.digits().split(IID(), clients=clients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(3)}, "as many labels as inputs, at least one; got 4 inputs and 3"),
        ({"labels": np.ones(4)}, "labels must be integers; got float64"),
        ({"labels": np.array([0, 1, -1, 0])}, r"labels must lie in 0\.\.1; got -1\.\.1"),
        ({"labels": np.zeros(0, int), "inputs": np.zeros((0, 2))}, "no training samples"),
    ],
)
def test_bad_arrays_are_refused(change, message):
    x, y = np.zeros((4, 2), "f4"), np.array([0, 1, 0, 1])
    arrays = {"inputs": x, "labels": y, "test_inputs": x, "test_labels": y} | change
    with pytest.raises(ValueError, match=message):
        sources.from_arrays(**arrays)
    with pytest.raises(ValueError, match="has no client_ids"):
        sources.from_arrays(x, y, x, y).by_client()


def published(name):
    root = os.environ.get("JAXFL_DATA_DIR")
    if not root:
        pytest.skip("JAXFL_DATA_DIR does not name a folder of raw data")
    return Path(root) / name


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_the_published_files(name, mean):
    published(name)
    dataset = getattr(sources, name)()
    assert dataset.inputs.shape == (60_000, 28, 28, 1)
    assert dataset.test_inputs.shape == (10_000, 28, 28, 1)
    assert dataset.inputs.dtype == np.uint8
    assert np.mean(dataset.inputs) / 255 == pytest.approx(mean, abs=1e-4)
    counts = np.bincount(dataset.labels)
    assert counts.sum() == 60_000
    assert counts[0] == (5_923 if name == "mnist" else 6_000)


def test_a_damaged_file_is_refused(tmp_path):
    folder = tmp_path / "mnist"
    shutil.copytree(published("mnist"), folder)
    for path in folder.iterdir():
        path.chmod(0o600)
    target = folder / "train-labels-idx1-ubyte.gz"
    whole = target.read_bytes()
    for broken in (whole[:-100], whole[:500] + b"\0" + whole[501:], b""):
        target.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged or not the published file"):
            sources.mnist(tmp_path)
    target.unlink()
    with pytest.raises(ValueError, match="is missing"):
        sources.mnist(tmp_path)


def test_missing_and_foreign_files_are_refused_without_the_data(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXFL_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match="no data folder; set JAXFL_DATA_DIR"):
        sources.mnist()
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is missing"):
        sources.fashion_mnist(tmp_path)
    (tmp_path / "mnist").mkdir()
    fake = gzip.compress(b"\0\0\x08\x01" + (3).to_bytes(4, "big") + b"abc")
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(fake)
    with pytest.raises(ValueError, match="damaged or not the published file"):
        sources.mnist(tmp_path)


def test_an_idx_file_is_read_as_its_header_says(tmp_path):
    from jaxfl.data.sources import _read_idx

    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(header + values.tobytes()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(_read_idx(path, digest), values)


def test_inputs_of_two_shapes_are_refused():
    labels = np.arange(6) % 2
    with pytest.raises(ValueError, match=r"shape of training inputs, \(3,\); got \(4,\)"):
        sources.from_arrays(np.zeros((6, 3)), labels, np.zeros((6, 4)), labels)


def test_held_out_samples_leave_the_training_set():
    dataset = sources.synthetic(samples=100, features=3, classes=2)
    held = dataset.hold_out(0.25, seed=1)
    assert (len(held.labels), len(held.validation_labels)) == (75, 25)
    rows = np.concatenate([np.asarray(held.inputs), np.asarray(held.validation_inputs)])
    whole = np.asarray(dataset.inputs)
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(whole, axis=0))
    pairs = {tuple(x): y for x, y in zip(whole.tolist(), dataset.labels.tolist(), strict=True)}
    for x, y in zip(held.validation_inputs.tolist(), held.validation_labels.tolist(), strict=True):
        assert pairs[tuple(x)] == y
    other = dataset.hold_out(0.25, seed=2)
    assert not np.array_equal(held.validation_inputs, other.validation_inputs)
    for share in (0.001, 0.999):
        with pytest.raises(ValueError, match="must leave samples on both sides"):
            dataset.hold_out(share)
