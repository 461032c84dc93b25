"""A data set in numbers."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    >>> inputs, labels = np.zeros((5, 3)), np.array([0, 1, 1, 0, 1])
    >>> jaxfl.data.from_arrays(inputs, labels, inputs, labels).summary().counts
    (2, 3)
    """

    name: str
    shape: tuple[int, ...]
    """Of the training inputs."""
    test_shape: tuple[int, ...]
    dtype: str
    classes: int
    mean: tuple[float, ...]
    """Of the training inputs: per channel for images (pixels from 0 to 1), else over all."""
    std: tuple[float, ...]
    counts: tuple[int, ...]
    """Training samples of each class."""
    test_counts: tuple[int, ...]
    clients: int | None
    """Clients that the data comes with."""


def channels(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of bytes / 255 per channel, from exact counts of the 256 levels."""
    rows = images.reshape(-1, images.shape[-1] if images.ndim == 4 else 1)
    counts = np.zeros((rows.shape[1], 256))
    for start in range(0, len(rows), 1 << 20):  # bincount makes its input eight times as large
        for channel, values in enumerate(rows[start : start + (1 << 20)].T):
            counts[channel] += np.bincount(values, minlength=256)
    levels, share = np.arange(256) / 255, counts / len(rows)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def overall(inputs: np.ndarray) -> tuple[tuple[float], tuple[float]]:
    """Mean and deviation over all numbers."""
    return (float(inputs.mean(dtype=np.float64)),), (float(inputs.std(dtype=np.float64)),)
