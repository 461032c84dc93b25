"""Images: MNIST, Fashion-MNIST, CIFAR-10."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from jaxfl.data import tfds
from jaxfl.data.dataset import Dataset
from jaxfl.data.raw_files import Place, Published

MNIST = Published(
    name="mnist",
    forms=(
        {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
    ),
    origin="https://storage.googleapis.com/cvdf-datasets/mnist",
    train=60_000,
    test=10_000,
    tfds="mnist",
)
FASHION_MNIST = Published(
    name="fashion_mnist",
    forms=(
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
    origin="https://github.com/zalandoresearch/fashion-mnist",
    train=60_000,
    test=10_000,
    tfds="fashion_mnist",
)
CIFAR10 = Published(
    name="cifar10",
    forms=(
        {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
    ),
    origin="https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
    train=50_000,
    test=10_000,
    tfds="cifar10",
)


def mnist(data_dir: str | Path | None = None, source: str | None = None) -> Dataset:
    """MNIST: handwritten digits, 28x28 grey, 10 classes, 60,000 training and 10,000 test samples.

    Args:
      data_dir: the folder that holds ``mnist/``; default: the environment's ``JAXFL_DATA_DIR``.
      source: ``"raw"``, the four published IDX files, or ``"tfds"``, a folder prepared by
        ``jaxfl.data.prepare`` (the same samples in another order, so another division among
        clients at the same seed); default: raw files if there are any, else the prepared folder.

    Raises:
      ValueError: the data is missing, truncated or not what was published.

    LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
    1998.
    """
    return _idx(MNIST, data_dir, source)


def fashion_mnist(data_dir: str | Path | None = None, source: str | None = None) -> Dataset:
    """Fashion-MNIST: clothing; shapes, sizes, arguments and errors as those of ``mnist``.

    Normalised as the SignGuard paper's code does, by MNIST's mean and standard deviation.

    Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms", 2017.
    """
    return _idx(FASHION_MNIST, data_dir, source)


def cifar10(data_dir: str | Path | None = None, source: str | None = None) -> Dataset:
    """CIFAR-10: photographs, 32x32 RGB, 10 classes, 50,000 training and 10,000 test samples.

    uint8 ``[N, 32, 32, 3]``, normalised by each channel's mean and standard deviation over the
    training part. Arguments and errors as those of ``mnist``; the raw files are the six of the
    binary version, in ``cifar10/``.

    Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    place = CIFAR10.locate(source, data_dir)
    if not place.files:
        parts = tfds.read_images(CIFAR10, place.folder, (32, 32, 3))
    else:
        with ThreadPoolExecutor() as pool:  # unpacking takes a second a file
            *train, test = pool.map(partial(_read_cifar, place), place.files)
        images, labels = zip(*train, strict=True)
        parts = (np.concatenate(images), np.concatenate(labels), *test)
    mean, std = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
    return _dataset("cifar10", parts, mean, std)


def _idx(published: Published, data_dir: str | Path | None, source: str | None) -> Dataset:
    place = published.locate(source, data_dir)
    if not place.files:
        parts = tfds.read_images(published, place.folder, (28, 28, 1))
    else:
        train, train_labels, test, test_labels = (_read_idx(place, f) for f in place.files)
        parts = (train[..., None], train_labels, test[..., None], test_labels)
    return _dataset(published.name, parts, (0.1307,), (0.3081,))


def _dataset(
    name: str,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    inputs, labels, test_inputs, test_labels = parts
    return Dataset(
        name=name,
        inputs=inputs,
        labels=labels.astype(np.int32),
        test_inputs=test_inputs,
        test_labels=test_labels.astype(np.int32),
        classes=10,
        mean=mean,
        std=std,
    )


def _read_idx(place: Place, file: str) -> np.ndarray:
    """One IDX file: magic number (type, rank), big-endian sizes, bytes."""
    raw = place.read(file)
    rank = raw[3]
    shape = tuple(np.frombuffer(raw, ">i4", rank, 4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _read_cifar(place: Place, file: str) -> tuple[np.ndarray, np.ndarray]:
    """One binary batch: a label and 3 x 32 x 32 bytes, channels first, per image."""
    rows = np.frombuffer(place.read(file), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0]
