"""Privacy of examples where only adapters are trained: these are clipped and noised, alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import client_arrays, ragged
from test_accounting import DELTA, renyi, sampled

from jaxfl import SGD, ExamplePrivacy, Federation, FedSGD, Simulation
from jaxfl.experiments import schema
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.models import LoRA, Softmax

MODEL = LoRA(model=Softmax(), targets=("layers.0",), trained=(), rank=2)
CLIP, SIGMA = 0.3, 2.0


def run(sigma, **settings):
    privacy = ExamplePrivacy(clip=CLIP, noise_multiplier=sigma, sampling="fixed")
    federation = Federation(
        algorithm=FedSGD(**settings), privacy=privacy, optimizer=SGD(learning_rate=1e-9)
    )
    found = Simulation(federation, ragged(), MODEL)
    start = np.random.default_rng(0).normal(0, 0.5, found.plan.spec.dim).astype("f4")
    found.state = found.state.replace(params=jnp.asarray(start))  # no factor is 0
    return found


def test_adapters_gradients_are_clipped_example_by_example():
    """By hand: with G the gradient of the whole layer, G B^T and A^T G."""
    simulation = run(0.0)
    objective = simulation.plan.objective
    layer = objective.module(simulation.state.params, simulation.state.model_state).layers[0]
    a, b = np.asarray(layer.lora_a[...], float), np.asarray(layer.lora_b[...], float)
    base = layer.base_module
    kernel = np.asarray(base.kernel[...], float) + a @ b
    own = np.asarray(simulation.messages().own)
    assert own.shape[1] == a.size + b.size
    norms = []
    for k, sent in enumerate(own):
        x, y = client_arrays(simulation.data, k)
        logits = x @ kernel + np.asarray(base.bias[...])
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = shares / shares.sum(axis=1, keepdims=True) - np.eye(3)[y]
        total = np.zeros(a.size + b.size)
        for one, error in zip(x, errors, strict=True):
            whole = np.outer(one, error)
            g = np.concatenate([(whole @ b.T).ravel(), (a.T @ whole).ravel()])
            norms.append(np.linalg.norm(g))
            total += g * min(1, CLIP / norms[-1])
        np.testing.assert_allclose(sent, total / len(x), rtol=1e-4, atol=1e-6)
    assert min(norms) < CLIP < max(norms)


def test_noise_is_in_adapters_alone_and_of_the_stated_size():
    quiet, loud = run(0.0, batch_size=1), run(SIGMA, batch_size=1)
    noise, before = [], loud.plan.objective.frozen.digest
    for _ in range(40):
        noise.append(np.asarray(loud.messages().own - quiet.messages().own))
        quiet.run(1)
        loud.run(1)
    found = np.concatenate(noise)
    assert found.shape == (40 * 5, 2 * (4 + 3))
    np.testing.assert_allclose(found.std(axis=0), SIGMA * CLIP, rtol=0.25)
    assert found.std() == pytest.approx(SIGMA * CLIP, rel=0.05)
    assert loud.plan.objective.frozen.digest == before


def test_the_log_has_epsilon(tmp_path):
    """That of the samples drawn: it does not depend on how much of the model is trained."""
    table = {
        "rounds": 4,
        "evaluate_every": 2,
        "algorithm": {"name": "fedsgd", "batch_size": 4},
        "data": {
            "name": "synthetic",
            "samples": 60,
            "features": 6,
            "classes": 3,
            "clients": 3,
            "partition": "iid",
        },
        "model": {
            "name": "lora",
            "model": "softmax",
            "targets": ["layers.0"],
            "trained": [],
            "rank": 2,
        },
        "privacy": {"name": "example", "noise_multiplier": SIGMA, "delta": DELTA},
    }
    with RunFolder(tmp_path, schema.parse("x", table)) as folder:
        (result,) = run_experiment(folder, lambda *_: lambda *_: None)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    spent = [line["epsilon"] for line in lines]
    want = [renyi(sampled(4 / 20, SIGMA), rounds) for rounds in (1, 2, 3, 4)]
    np.testing.assert_allclose(spent, want, rtol=1e-4)
    assert 0 < lines[-1]["guaranteed_epsilon"] <= spent[-1] * (1 + 1e-6)
    assert result.epsilon == lines[-1]["guaranteed_epsilon"]
