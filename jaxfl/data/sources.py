"""Where data comes from: embedded, synthetic, raw files, the user's arrays."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfl.data.dataset import Dataset

DATA_DIR = "JAXFL_DATA_DIR"
"""Environment variable naming the folder that holds ``mnist/``, ``fashion_mnist/``, ..."""

_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_IDX_SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}


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
    centre_key, train_key, test_key = jax.random.split(jax.random.key(seed), 3)
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


def mnist(data_dir: str | Path | None = None) -> Dataset:
    """MNIST: handwritten digits, 28x28 grey, 60,000 training and 10,000 test samples.

    Read from the four published IDX files (``.gz``) in ``data_dir/mnist``; ``data_dir`` defaults
    to the environment variable ``JAXFL_DATA_DIR``.

    Raises:
      ValueError: a file is missing, truncated or not the published one.
    """
    return _idx_dataset("mnist", data_dir, mean=0.1307, std=0.3081)


def fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Fashion-MNIST: clothing, 28x28 grey, 60,000 training and 10,000 test samples.

    Read as ``mnist``, from ``data_dir/fashion_mnist``; normalised as the SignGuard paper's code
    does, by MNIST's mean and standard deviation.

    Raises:
      ValueError: a file is missing, truncated or not the published one.
    """
    return _idx_dataset("fashion_mnist", data_dir, mean=0.1307, std=0.3081)


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

    Raises:
      ValueError: lengths do not agree, or labels are not integers from 0.
    """
    if len(labels) == 0:
        raise ValueError(f"{name}: there are no training samples")
    return Dataset(
        name=name,
        inputs=np.asarray(inputs),
        labels=np.asarray(labels),
        test_inputs=np.asarray(test_inputs),
        test_labels=np.asarray(test_labels),
        classes=int(max(np.max(labels), np.max(test_labels))) + 1,
        client_ids=None if client_ids is None else np.asarray(client_ids),
    )


def _idx_dataset(name: str, data_dir: str | Path | None, mean: float, std: float) -> Dataset:
    root = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    if not root:
        raise ValueError(f"{name}: no data folder; set {DATA_DIR} to the folder that holds {name}/")
    folder = Path(root) / name
    train, train_labels, test, test_labels = (
        _read_idx(folder / file, digest)
        for file, digest in zip(_IDX_FILES, _IDX_SHA256[name], strict=True)
    )
    return Dataset(
        name=name,
        inputs=train[..., None],
        labels=train_labels.astype(np.int32),
        test_inputs=test[..., None],
        test_labels=test_labels.astype(np.int32),
        classes=10,
        mean=(mean,),
        std=(std,),
    )


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """One IDX file: magic number (type, rank), big-endian sizes, bytes. Checked against its sum."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; {DATA_DIR} must name the folder that holds it")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged or not the published file (its sha256 differs)")
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file: {error}") from error
    rank = raw[3]
    shape = tuple(np.frombuffer(raw, ">i4", rank, 4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
