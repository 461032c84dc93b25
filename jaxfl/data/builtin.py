"""Data that needs no files: embedded, synthetic, the user's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfl.arguments import seed_of
from jaxfl.data.dataset import Dataset


def digits() -> Dataset:
    """Handwritten digits, 8x8 grey, 10 classes: 1,437 training and 360 test samples.

    Embedded in scikit-learn, so it needs no network. Pixels 0..16 are scaled to 0..1.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("digits needs scikit-learn: pip install scikit-learn") from error
    inputs, labels = load_digits(return_X_y=True)
    inputs = (np.asarray(inputs) / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels, np.int32)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    train, test = shuffled[:1437], shuffled[1437:]
    return Dataset(
        name="digits",
        inputs=inputs[train],
        labels=labels[train],
        test_inputs=inputs[test],
        test_labels=labels[test],
        classes=10,
    )


def synthetic(
    samples: int = 10_000,
    features: int = 32,
    classes: int = 10,
    separation: int | float = 3.0,
    seed: int = 0,
) -> Dataset:
    """Gaussian classes, made on the device, for any number of clients.

    Class c is ``N(separation * u_c, I)`` with u_c a random unit vector; a fifth as many test
    samples come on top.
    """
    sizes = (("samples", samples, 1), ("features", features, 1), ("classes", classes, 2))
    for name, value, least in sizes:
        if value < least:
            raise ValueError(f"synthetic: {name} must be at least {least}; got {value}")
    centre_key, train_key, test_key = jax.random.split(jax.random.key(seed_of(seed)), 3)
    centres = jax.random.normal(centre_key, (classes, features))
    centres = separation * centres / jnp.linalg.norm(centres, axis=1, keepdims=True)

    def draw(key: Array, count: int) -> tuple[Array, Array]:
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (count,), 0, classes)
        return centres[labels] + jax.random.normal(noise_key, (count, features)), labels

    inputs, labels = draw(train_key, samples)
    test_inputs, test_labels = draw(test_key, max(samples // 5, 1))
    return Dataset(
        name="synthetic",
        inputs=inputs,
        labels=labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        classes=classes,
    )


def from_arrays(
    inputs: np.ndarray,
    labels: np.ndarray,
    test_inputs: np.ndarray,
    test_labels: np.ndarray,
    *,
    client_ids: np.ndarray | None = None,
    name: str = "own data",
) -> Dataset:
    """The user's own arrays as a data set; ``client_ids`` says whose each training sample is.

    There are as many classes as the largest label says.

    Raises:
      ValueError: lengths do not agree, inputs are not finite real numbers, labels are not integers
        from 0 or there are more classes than samples.
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    test_inputs, test_labels = np.asarray(test_inputs), np.asarray(test_labels)
    for part, given, own in (("training", inputs, labels), ("test", test_inputs, test_labels)):
        if given.ndim == 0 or own.ndim != 1:
            raise ValueError(
                f"{name}: {part} data must be inputs [N, ...] and labels [N]; "
                f"got shapes {given.shape} and {own.shape}"
            )
        if len(own) == 0:
            raise ValueError(f"{name}: there are no {part} samples")
        _check_inputs(f"{name}: {part} inputs", given)
        if not np.issubdtype(own.dtype, np.integer):
            raise ValueError(f"{name}: labels must be integers; got {own.dtype}")
    classes = int(max(labels.max(), test_labels.max())) + 1
    samples = len(labels) + len(test_labels)
    if classes > samples:
        raise ValueError(
            f"{name}: labels number the classes from 0, so the label {classes - 1} means {classes} "
            f"classes, more than the {samples} samples; number them anew, such as by "
            "np.unique(labels, return_inverse=True)"
        )
    return Dataset(
        name=name,
        inputs=inputs,
        labels=labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        classes=classes,
        client_ids=None if client_ids is None else np.asarray(client_ids),
    )


def _check_inputs(what: str, inputs: np.ndarray) -> None:
    kind = inputs.dtype
    if not jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.complexfloating):
        raise ValueError(f"{what} must be real numbers; got {kind}")
    if jnp.issubdtype(kind, jnp.floating):
        bad = np.any(~np.isfinite(inputs.reshape(len(inputs), -1)), axis=1)
        if bad.any():
            raise ValueError(
                f"{what} must be finite; {int(bad.sum())} of {len(bad)} samples are not, first "
                f"sample {int(bad.argmax())}"
            )
