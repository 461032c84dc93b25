"""Data sets before and after they are divided."""

import dataclasses

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import IID, Dirichlet


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
    np.testing.assert_allclose(data.normalise(data.inputs), expected, rtol=1e-5, atol=1e-6)


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
    ("clients", "message"),
    [(0, "clients must be an integer, at least 1; got 0"), (2_000, "cannot share 1437")],
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


def test_a_summary_says_what_the_data_is():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(60) % 4
    dataset = sources.from_arrays(
        images, labels, images[:5], labels[:5], client_ids=np.arange(60) % 7, name="x"
    )
    summary = dataset.summary()
    np.testing.assert_allclose(summary.mean, (images / 255).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(summary.std, (images / 255).std(axis=(0, 1, 2)))
    rest = {k: v for k, v in dataclasses.asdict(summary).items() if k not in ("mean", "std")}
    assert rest == {
        "name": "x",
        "shape": (60, 4, 4, 3),
        "test_shape": (5, 4, 4, 3),
        "dtype": "uint8",
        "classes": 4,
        "counts": (15, 15, 15, 15),
        "test_counts": (2, 1, 1, 1),
        "clients": 7,
    }
    synthetic = sources.synthetic(samples=100, features=3)
    summary = synthetic.summary()
    np.testing.assert_allclose(summary.mean, [np.mean(synthetic.inputs)], atol=1e-6)
    assert (summary.dtype, summary.clients, sum(summary.counts)) == ("float32", None, 100)


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


def test_class_counts_say_who_has_what():
    x, y = np.zeros((6, 1), "f4"), np.array([0, 1, 2, 1, 1, 0])
    data = sources.from_arrays(x, y, x, y, client_ids=np.array([1, 0, 1, 0, 1, 1])).by_client()
    assert data.class_counts().tolist() == [[0, 2, 0], [2, 1, 1]]
    with pytest.raises(ValueError, match="one partition"):
        data.stack([data]).class_counts()


@pytest.mark.parametrize("partition", ["iid", None, IID])
def test_what_is_no_partition_is_refused(partition, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"digits: partition must be one of jaxfl.data, such as"):
        sources.digits().split(partition, clients=2)
    with pytest.raises(ValueError, match=r"clients must be an integer, at least 1; got 2\.5"):
        sources.digits().split(IID(), clients=2.5)


X, Y = np.ones((6, 2), np.float32), np.arange(6) % 3


def with_value(value):
    changed = X.copy()
    changed[4, 1] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": with_value(np.nan)}, "training inputs must be finite; 1 of 6 .* sample 4"),
        ({"test_inputs": with_value(np.inf)}, "test inputs must be finite; 1 of 6"),
        ({"inputs": X.astype(str)}, "training inputs must be real numbers; got <U"),
        ({"inputs": X.astype(object)}, "training inputs must be real numbers; got object"),
        ({"test_inputs": X.astype(complex)}, "test inputs must be real numbers; got complex"),
        ({"labels": Y.astype(float)}, "labels must be integers; got float64"),
        ({"labels": np.array([0, 1, 2, 0, 1, 10**9])}, "1000000001 classes, more than the 12 sam"),
        ({"labels": -Y}, r"training labels must lie in 0..2; got -2..0"),
        ({"labels": Y[:, None]}, r"labels \[N\]; got shapes \(6, 2\) and \(6, 1\)"),
        ({"test_labels": Y[:0]}, "there are no test samples"),
        ({"client_ids": np.arange(4)}, r"one client id per training sample; got \(4,\) for \(6,\)"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(changes, message):
    given = {"inputs": X, "labels": Y, "test_inputs": X, "test_labels": Y} | changes
    with pytest.raises(ValueError, match=f"own data: .*{message}"):
        sources.from_arrays(**given)
