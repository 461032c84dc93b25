"""How far honest clients' gradients lie apart along a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfl.arguments import integer
from jaxfl.data import FederatedData
from jaxfl.models.objective import ModelState, Objective
from jaxfl.robustness import mean_and_variance
from jaxfl.simulation import Simulation


def gradient_dispersions(
    simulation: Simulation, rounds: int, every: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Dispersion and squared mean of the honest clients' gradients, at models along a run.

    Runs ``rounds`` more rounds, and looks at the model that stands before every ``every``-th of
    them and after the last one: ``mean_{i in S} |g_i - g_S|^2`` and ``|g_S|^2``, where g_i is the
    gradient of client i's mean loss over all of its samples, as the model answers in evaluation,
    g_S their mean and S all honest clients that have samples, whoever takes part in the round.
    ``jaxfl.robustness.dissimilarity`` makes (G, B) of them.

    Args:
      simulation: of one seed; it is moved on.
      rounds: how many more.
      every: rounds between two looks.

    Returns:
      The dispersions and the squared norms, in float64, one of each for each look.

    Raises:
      ValueError: several seeds, or a number that is not at least 1.

    Cost: at each look a gradient over all samples, one client at a time, each padded to the
    largest; [n, d] gradients at once.

    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022, for dissimilarity that grows with the gradient.

    >>> data = jaxfl.data.synthetic(samples=40).split(jaxfl.data.IID(), 4)
    >>> run = jaxfl.Simulation(jaxfl.Federation(), data, jaxfl.models.Softmax())
    >>> spread, norms = jaxfl.gradient_dispersions(run, rounds=2)
    >>> spread.shape, bool((spread > 0).all())
    ((3,), True)
    """
    rounds, every = integer(rounds, "rounds", 1), integer(every, "every", 1)
    if simulation.several:
        raise ValueError(
            f"gradient_dispersions follows one seed; got a simulation of {len(simulation.seeds)}"
        )
    found = [_look(simulation)]
    done = 0
    while done < rounds:
        length = min(every, rounds - done)
        simulation.advance(length)
        done += length
        found.append(_look(simulation))
    spread, norms = np.asarray(found, np.float64).T
    return spread, norms


def _look(simulation: Simulation) -> tuple[Array, Array]:
    data, state = simulation.data, simulation.state
    most = max(int(np.max(np.asarray(data.count))), 1)
    honest = ~state.byzantine & (data.count > 0)
    return _dispersion(
        simulation.plan.objective, data, state.params, state.model_state, honest, most
    )


@functools.partial(jax.jit, static_argnames=("objective", "most"))
def _dispersion(
    objective: Objective,
    data: FederatedData,
    params: Float[Array, " d"],
    model_state: ModelState,
    honest: Bool[Array, " K"],
    most: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    def gradient(start: Int[Array, ""], count: Int[Array, ""]) -> Float[Array, " d"]:
        place = jnp.arange(most)
        inputs, labels = data.samples(data.order[start + jnp.minimum(place, count - 1)])

        def loss(flat: Array) -> Array:
            each, _ = objective.evaluate(flat, model_state, inputs, labels)
            return jnp.sum(jnp.where(place < count, each, 0)) / jnp.maximum(count, 1)

        return jax.grad(loss)(params)

    gradients = jax.lax.map(lambda one: gradient(*one), (data.start, data.count))
    mean, spread = mean_and_variance(gradients, honest)
    return spread, jnp.sum(jnp.square(mean))
