"""Small federations, and plain NumPy references, that several test files share."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w
from typer.testing import CliRunner

from jaxfl import (
    ARC,
    GAS,
    NNM,
    Aggregator,
    Bucketing,
    Krum,
    Median,
    PerLayer,
    Pipeline,
    ProductSpace,
    TrimmedMean,
)
from jaxfl.aggregators.mixing import with_f
from jaxfl.cli import app
from jaxfl.data import Dataset, FederatedData, from_arrays
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.registry import AGGREGATORS, PREAGGREGATORS
from jaxfl.types import Aggregated, Batch, Context, Info, Spec


@functools.cache
def ragged(sizes=(3, 9, 5, 12, 7), features=4, classes=3, seed=0) -> FederatedData:
    """Gaussian data of clients of these sizes."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = len(owners)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, features))
    inputs = (centres[labels] + rng.normal(size=(count, features))).astype(np.float32)
    test_labels = np.arange(4 * classes) % classes
    test_inputs = (centres[test_labels] + rng.normal(size=(4 * classes, features))).astype("f4")
    data = from_arrays(inputs, labels, test_inputs, test_labels, client_ids=owners)
    return data.by_client()


def client_arrays(data: FederatedData, client: int) -> tuple[np.ndarray, np.ndarray]:
    """One client's inputs and labels, in float64."""
    start, count = int(data.start[client]), int(data.count[client])
    own = np.asarray(data.order)[start : start + count]
    return np.asarray(data.inputs, np.float64)[own], np.asarray(data.labels)[own]


class NumpySoftmax:
    """Softmax regression by hand; a parameter vector is laid out as ``jaxfl`` ravels it."""

    def __init__(self, objective, features: int, classes: int) -> None:
        flat = jnp.arange(objective.dim, dtype=jnp.float32)
        layer = objective.unravel(flat)["layers"][0]
        self.kernel = np.asarray(layer["kernel"].get_value()).astype(int)
        self.bias = np.asarray(layer["bias"].get_value()).astype(int)
        assert self.kernel.shape == (features, classes)

    def loss(self, flat: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> float:
        share = self._shares(flat, inputs)
        return float(-np.mean(np.log(share[np.arange(len(labels)), labels])))

    def gradient(self, flat: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        error = self._shares(flat, inputs)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        gradient = np.empty(flat.shape)
        gradient[self.kernel] = inputs.T @ error
        gradient[self.bias] = error.sum(axis=0)
        return gradient

    def predict(self, flat: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.argmax(self._shares(flat, inputs), axis=1)

    def _shares(self, flat: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        logits = inputs @ flat[self.kernel] + flat[self.bias]
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return share / share.sum(axis=1, keepdims=True)


NEW = (
    *("cosine_clustering", "fedseca", "fldetector", "foundation_fl", "gas", "gibbs_mean", "huber"),
    "deepsight",
    *("lasa", "per_layer", "expected_mean", "log_odds_median", "rflbat", "rlr"),
    *("sequential_centered_clipping", "weighted_trimmed_mean", "weighted_nnm+krum"),
)
"""The newest rules, which several devices compare in smaller groups."""


def every_rule(f: int) -> dict[str, Aggregator]:
    """Every registered rule, every pre-aggregator, and the pipelines of the papers.

    Without adapters a ``ProductSpace`` is the rule in it.
    """
    wrapped = (PerLayer, Pipeline, ProductSpace)
    rules = {name: with_f(c, f) for name, c in AGGREGATORS.items() if c not in wrapped}
    for name, cls in PREAGGREGATORS.items():
        rules[f"{name}+krum"] = Pipeline(pre=(with_f(cls, f),), rule=Krum(f=f))
    rules["nnm+trimmed_mean"] = Pipeline(pre=(NNM(f=f),), rule=TrimmedMean(f=f))
    rules["bucketing+median"] = Pipeline(pre=(Bucketing(size=2),), rule=Median())
    rules["gas"] = GAS(f=f, groups=8)
    rules["per_layer"] = PerLayer(rule=Krum(f=f))
    rules["arc+nnm+krum"] = Pipeline(pre=(ARC(f=f), NNM(f=f)), rule=Krum(f=f))
    return rules


class NoObjective:
    """Evaluates nothing: for contexts of which only shapes matter."""

    at_once = 500

    def evaluate(self, flat, statistics, inputs, labels):
        return jnp.zeros(labels.shape), jnp.zeros(labels.shape)

    def unravel(self, flat):
        return flat

    def logits(self, params, statistics, inputs):
        return jnp.zeros((len(inputs), 2))


def shapes_context(spec: Spec) -> Context:
    """A context that has everything, of the right shapes."""
    row = jnp.zeros((spec.dim,), spec.dtype)
    one = jnp.zeros((1,), jnp.int32)
    return Context.of(
        spec.cohort,
        byzantine=jnp.zeros((spec.cohort,), bool),
        params=row,
        root_update=row,
        root_batch=Batch(one, one, one == 0),
        objective=NoObjective(),
        sample=jax.ShapeDtypeStruct((1,), jnp.float32),
        segments=spec.segments,
    )


class Every(Aggregator):
    """The mean of several rules' answers; its memory keeps each rule's last answer and Info."""

    rules: tuple[Aggregator, ...]

    @property
    def needs_root(self) -> frozenset[str]:
        return frozenset[str]().union(*(rule.needs_root for rule in self.rules))

    @property
    def makes_inputs(self) -> bool:
        return any(rule.makes_inputs for rule in self.rules)

    @property
    def accepts_absent(self) -> bool:
        return all(rule.accepts_absent for rule in self.rules)

    @property
    def streams(self) -> bool:
        return all(rule.streams for rule in self.rules)

    def init(self, spec: Spec):
        def one(rule: Aggregator):
            memory = rule.init(spec)
            updates = jnp.zeros((spec.cohort, spec.dim), spec.dtype)
            shape = jax.eval_shape(rule.aggregate, updates, memory, shapes_context(spec))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
            return zeros.replace(state=memory)

        return [one(rule) for rule in self.rules]

    def aggregate(self, updates, state, context) -> Aggregated:
        answers = [
            rule.aggregate(updates, before.state, context)
            for rule, before in zip(self.rules, state, strict=True)
        ]
        answers = [
            answer.replace(update=answer.update.astype(before.update.dtype))
            for answer, before in zip(answers, state, strict=True)
        ]
        mean = sum(answer.update for answer in answers) / len(answers)
        return Aggregated(update=mean, state=answers, info=Info())


def products_below_highest(lowered: jax.stages.Lowered) -> list[str]:
    """The lines of a lowered program with a product that may be rounded to fewer bits."""
    lines = lowered.as_text().splitlines()
    products = [
        line for line in lines if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line)
    ]
    return [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]


def run_until(path, experiment, *, stop_after=None, **settings):
    """The results of an experiment in this folder; raises ``Interrupted`` after so many blocks."""
    blocks = 0

    def stop():
        nonlocal blocks
        blocks += 1
        return stop_after is not None and blocks >= stop_after

    with RunFolder(path, experiment, **settings) as folder:
        return list(run_experiment(folder, lambda *_: lambda *_: None, stop))


def ran(table, folder):
    """The folder of a run of this experiment below ``folder``, and what the command line showed."""
    (folder / "one.toml").write_text(tomli_w.dumps(table))
    words = ["run", str(folder / "one.toml"), "--out", str(folder / "run"), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return folder / "run", result.output.replace("\n", "")


def topic_texts() -> Dataset:
    """180 texts of at most 6 words of 14, and 60 to test: each of 3 classes has words of its own.

    Nobody writes word 13.
    """
    random = np.random.default_rng(0)
    labels = np.arange(240) % 3
    texts = (2 + 3 * labels[:, None] + random.integers(0, 3, (240, 6))).astype("i4")
    texts[::4, 4:] = 0
    return from_arrays(texts[:180], labels[:180], texts[180:], labels[180:])


SMALL_GRID = {
    "rounds": 4,
    "evaluate_every": 2,
    "byzantine": 1,
    "model": "softmax",
    "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
    "sweep": {"aggregator": ["mean", {"name": "bulyan"}], "seed": [0, 1]},
}
"""An experiment of one rule that applies and one that does not."""


def reproduce(*words: str):
    """``jaxfl reproduce`` and these words."""
    return CliRunner().invoke(app, ["reproduce", *words])
