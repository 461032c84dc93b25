"""A small computation whose results are known, the same on every processor.

``run`` hashes only what rounding cannot change: whom rules select; their answers to whole numbers,
rounded to quarters (none lies near the middle between two); random words; and whether a federation
under attack learnt to tell most digits, with the mean and with SignGuard.
"""

import dataclasses
import hashlib
import json
import time
from typing import Any

import jax
import numpy as np

import jaxfl

EXPECTED = "568d13dc9f2e2141"
"""The hash of ``results`` where everything is in order."""
UNIT = 0.25
"""What answers are rounded to."""
CLIENTS, BYZANTINE, COORDINATES = 13, 3, 48
RULES: dict[str, jaxfl.Aggregator] = {
    "median": jaxfl.Median(),
    "trimmed mean": jaxfl.TrimmedMean(f=BYZANTINE),
    "Krum": jaxfl.Krum(f=BYZANTINE),
    "geometric median": jaxfl.GeometricMedian(),
    "CAF": jaxfl.CAF(f=BYZANTINE),
    "NNM, trimmed mean": jaxfl.Pipeline(
        pre=(jaxfl.NNM(f=BYZANTINE),), rule=jaxfl.TrimmedMean(f=BYZANTINE)
    ),
    "SignGuard": jaxfl.SignGuard(),
}
DEFENCES: dict[str, jaxfl.Aggregator] = {"mean": jaxfl.Mean(), "SignGuard": jaxfl.SignGuard()}


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """What came out, and in how many seconds."""

    digest: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the results are those that are expected."""
        return self.digest == EXPECTED


def self_test() -> SelfTest:
    """Computes ``results`` and their hash; about ten seconds, most of which compile."""
    started = time.perf_counter()
    digest = digest_of(results())
    return SelfTest(digest, time.perf_counter() - started)


def results() -> dict[str, Any]:
    """All that is hashed, as plain data."""
    words = jax.random.bits(jax.random.key(7, impl="threefry2x32"), (8,), "uint32")
    found: dict[str, Any] = {"random words": words.tolist()}
    for name, rule in RULES.items():
        answer = rule.inspect(updates())
        selected = answer.info.selected
        found[name] = {
            "answer": np.rint(np.asarray(answer.update) / UNIT).astype(int).tolist(),
            "selected": None if selected is None else selected.tolist(),
        }
    for name, rule in DEFENCES.items():
        found[f"{name} learnt"] = accuracy_with(rule) > 0.5
    return found


def digest_of(found: dict[str, Any]) -> str:
    """The first 16 digits of the SHA-256 of the results as JSON."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def updates() -> np.ndarray:
    """Whole numbers about a pattern, ``[CLIENTS, COORDINATES]``; the first rows are Byzantine."""
    i, j = np.arange(CLIENTS)[:, None], np.arange(COORDINATES)[None, :]
    honest = 8 * (j % 5 - 1) + (7 * i * i + 3 * j * j + 5 * i * j) % 11 - 5
    return np.where(i < BYZANTINE, -6 * honest, honest).astype(np.float32)


def accuracy_with(rule: jaxfl.Aggregator) -> float:
    """Of a federation on digits with a quarter of the clients reversed and scaled."""
    history = jaxfl.simulate(
        model=jaxfl.models.Softmax(),
        data=jaxfl.data.digits().split(jaxfl.data.IID(), 20),
        aggregator=rule,
        attack=jaxfl.ReverseScaling(factor=20.0),
        byzantine=5,
        optimizer=jaxfl.SGD(learning_rate=1.0),
        rounds=30,
    )
    return float(history.final_accuracy)
