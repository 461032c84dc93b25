"""Tables of numbers: Spambase."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data.dataset import Dataset
from jaxfl.data.raw_files import Published

SPAMBASE = Published(
    name="spambase",
    forms=({"spambase.data": "b1ef93de71f97714d3d7d4f58fc9f718da7bbc8ac8a150eff2778616a8097b12"},),
    origin="https://archive.ics.uci.edu/dataset/94/spambase",
    train=3_680,
    test=921,
    online="openml",
)


def spambase(data_dir: str | Path | None = None, source: str | None = None) -> Dataset:
    """Spambase: 57 word and letter counts of an e-mail, spam (1) or not (0), 4,601 rows.

    The rows are shuffled, always in the same way, and split 80 : 20 into 3,680 training and 921
    test samples; each feature is standardised by its mean and deviation over the training part.
    (391 rows repeat an earlier one, so some test rows also stand in the training part.)

    Args:
      data_dir: the folder that holds ``spambase/``; default: the environment's
        ``JAXFL_DATA_DIR``.
      source: ``"raw"`` (default), the published ``spambase.data``, or ``"openml"``, fetched by
        scikit-learn, which needs a network the first time.

    Raises:
      ValueError: the data is missing, truncated or not what was published; no network.

    Hopkins, Reeber, Forman, Suermondt, "Spambase", UCI Machine Learning Repository, 1999.
    """
    SPAMBASE.check_source(source)
    if source == "openml":
        table = _from_openml()
    else:
        text = SPAMBASE.locate("raw", data_dir).read("spambase.data").decode()
        table = np.array([row.split(",") for row in text.split()], np.float64)
    shuffled = np.random.default_rng(0).permutation(table)
    features, labels = shuffled[:, :-1], shuffled[:, -1].astype(np.int32)
    train = slice(SPAMBASE.train)
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    features = ((features - mean) / deviation).astype(np.float32)
    return Dataset(
        name="spambase",
        inputs=features[train],
        labels=labels[train],
        test_inputs=features[SPAMBASE.train :],
        test_labels=labels[SPAMBASE.train :],
        classes=2,
    )


def _from_openml() -> np.ndarray:
    """The table ``[4601, 58]`` from OpenML, where it has number 44."""
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings():
            # The error that follows says the same.
            warnings.filterwarnings("ignore", "A network error occurred")
            fetched: Any = fetch_openml(data_id=44, as_frame=False, parser="liac-arff", n_retries=1)
    except Exception as error:
        line = " ".join(f"{error}".split())
        raise ValueError(f"spambase could not be fetched from OpenML: {line}") from error
    table = np.column_stack([fetched.data, fetched.target]).astype(np.float64)
    rows = SPAMBASE.train + SPAMBASE.test
    if table.shape != (rows, 58) or table[:, -1].sum() != 1813:
        raise ValueError(
            f"spambase from OpenML must have {rows} rows of 58 numbers, 1813 of them spam; "
            f"got {table.shape[0]} of {table.shape[1]}, {table[:, -1].sum():g}"
        )
    return table
