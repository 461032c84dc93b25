"""The data sets by name: how each is made, which are here, how to get the others."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jaxfl.data import builtin, images, tabular, text, tfds
from jaxfl.data.dataset import Dataset
from jaxfl.data.raw_files import Published, data_root, find_file

SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": builtin.digits,
    "synthetic": builtin.synthetic,
    "mnist": images.mnist,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
    "ag_news": text.ag_news,
    "spambase": tabular.spambase,
}
"""Name in a TOML file to the function; its arguments are the keys of the ``[data]`` table."""

PUBLISHED = (
    images.MNIST,
    images.FASHION_MNIST,
    images.CIFAR10,
    text.AG_NEWS,
    tabular.SPAMBASE,
)


@dataclasses.dataclass(frozen=True)
class Availability:
    """Whether a data set can be loaded here and now.

    >>> {found.name: found.where for found in available()}["digits"]
    'embedded'
    """

    name: str
    where: Literal["embedded", "raw", "tfds", "absent"]
    folder: Path | None
    """Where it was found."""
    how: str
    """How to get it, in one line; empty where nothing needs doing."""


def available(data_dir: str | Path | None = None) -> list[Availability]:
    """Every data set by name, and where it was found; nothing is read or imported.

    Files are only looked for: their sums are checked when they are loaded.

    Args:
      data_dir: the data folder; default: the environment's ``JAXFL_DATA_DIR``.
    """
    published = {p.name: p for p in PUBLISHED}
    return [
        _look(published[name], data_dir)
        if name in published
        else Availability(name, "embedded", None, "")
        for name in SOURCES
    ]


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Prepares a data set through TFDS, so that it can be read from then on without tensorflow.

    Source files that already lie in ``data_dir/name`` under their published names are used (so
    MNIST and Fashion-MNIST need no network); what is missing is downloaded, and TFDS tries for
    minutes before it gives up. Needs the extra ``tfds``. A data set that is prepared already is
    left alone.

    Args:
      name: ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"ag_news"``.
      data_dir: where to; default: the environment's ``JAXFL_DATA_DIR``.

    Returns:
      The prepared folder.

    Raises:
      ValueError: the extra is missing, TFDS does not have the data set, or preparing it failed.
    """
    known = {p.name: p for p in PUBLISHED if p.tfds}
    if name not in known:
        raise ValueError(f"prepare: name must be one of {', '.join(known)}; got {name!r}")
    return tfds.prepare_with_tfds(known[name], data_root(name, data_dir))


def _look(published: Published, data_dir: str | Path | None) -> Availability:
    try:
        root = data_root(published.name, data_dir)
    except ValueError:
        return Availability(published.name, "absent", None, published.how(None))
    raw, folder = published.find_raw(root), published.find_prepared(root)
    missing = [file for file in raw.files if find_file(raw.folder / file) is None]
    if raw.files and not missing:
        return Availability(published.name, "raw", raw.folder, "")
    if folder is not None and not raw.files:
        return Availability(published.name, "tfds", folder, "")
    how = f"{', '.join(missing)} missing; " if missing else ""
    return Availability(published.name, "absent", None, how + published.how(root))
