"""Honest gradients along a run, against plain NumPy."""

import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged

from jaxfl import SGD, Federation, FedSGD, SignFlip, Simulation, gradient_dispersions
from jaxfl.models import Softmax

FEDERATION = Federation(
    algorithm=FedSGD(), attack=SignFlip(), byzantine=1, optimizer=SGD(learning_rate=0.2)
)


def test_dispersions_are_those_of_the_honest_clients_gradients():
    run = Simulation(FEDERATION, ragged(), Softmax())
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    models = [np.asarray(run.state.params, np.float64)]
    aside = Simulation(FEDERATION, ragged(), Softmax())
    for length in (2, 1):
        aside.advance(length)
        models.append(np.asarray(aside.state.params, np.float64))
    spread, norms = gradient_dispersions(run, rounds=3, every=2)
    honest = np.flatnonzero(~np.asarray(run.state.byzantine))
    assert len(honest) == 4
    for at, got_spread, got_norm in zip(models, spread, norms, strict=True):
        g = np.stack([softmax.gradient(at, *client_arrays(run.data, k)) for k in honest])
        mean = g.mean(axis=0)
        np.testing.assert_allclose(got_spread, np.square(g - mean).sum(axis=1).mean(), rtol=1e-4)
        np.testing.assert_allclose(got_norm, mean @ mean, rtol=1e-4)


def test_it_follows_one_seed():
    with pytest.raises(ValueError, match="follows one seed; got a simulation of 2"):
        gradient_dispersions(Simulation(FEDERATION, ragged(), Softmax(), seeds=(0, 1)), rounds=1)
