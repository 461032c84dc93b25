"""Alternating minimisation: single inputs misread, by a model that is trained to look honest."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxfl.attacks.base import OWN
from jaxfl.attacks.edge import Misread, all_count
from jaxfl.attacks.views import AttackView, Learning
from jaxfl.component import Scalar, capability, field
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.types import Batch, PyTree, Spec, State


class AlternatingMinimisation(Misread):
    """Attackers have ``count`` rare inputs misread as ``target``, by a boosted, stealthy update.

    Before each round one attacker trains the model w it received as an honest client would, to v.
    Then it trains w anew, in ``turns`` turns: ``steps`` steps on its own samples with
    ``pull / 2 |w' - v|^2`` added to the loss, then one step on the rare inputs alone, labelled
    ``target``, which is taken ``boost`` times. All attackers send w - w'. Success is measured on
    the rare inputs themselves, which are the first of ``data.rare``.

    Its messages are differences of models, as of FedAvg's clients: where these send gradients,
    ``boost`` must make up for the server's rate. It trains on one batch of ``samples`` samples, and
    pulls and boosts biases as all else, which the authors leave alone.

    Cost: ``turns (2 steps + 1)`` gradients of so many samples in a round. Rules that look at norms
    work against a large ``boost``.
    Bhagoji, Chakraborty, Mittal, Calo, "Analyzing federated learning through an adversarial lens",
    ICML 2019.

    >>> AlternatingMinimisation(target=1).threat_model
    ('its messages', 'its own updates')
    """

    count: int = field(default=1, at_least=1)
    """How many of them; all where there are fewer."""
    boost: Scalar = field(default=10.0, at_least=0)
    """Of each step on them: the number of clients where the mean is to follow it."""
    pull: Scalar = field(default=1e-4, at_least=0)
    """Strength of the pull towards the model of honest training."""
    turns: int = field(default=5, at_least=1)
    """How often the two kinds of steps alternate."""
    steps: int = field(default=10, at_least=0)
    """On the attacker's own samples in each turn."""
    samples: int = field(default=64, at_least=1)
    """Of its own."""
    optimizer: Optimizer = SGD(learning_rate=0.1)
    """Of both kinds of steps, with a memory for each; it starts afresh each round."""
    crafts = capability(True)
    knows = capability(OWN)
    learns = capability(True)
    follows_model = capability(True)
    streams = capability(True)

    def challenge(self, data: Any) -> tuple[Array, Array]:
        """The inputs that are to be misread; all count."""
        return all_count(data.rare_inputs[: self.count])

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

    def learn(self, own: Learning, state: State) -> State:
        assert own.rare is not None
        start, seen, inputs = own.objective.unravel(own.params), own.load(self.samples), own.rare
        rare = inputs(self.count)
        labels = jnp.full((rare.shape[0],), self.target, seen.labels.dtype)
        wanted = Batch(rare, labels, jnp.ones(labels.shape, bool))
        transform = self.optimizer.transform(at=own.round)

        def step(
            carry: Any, batch: Batch, key: Array, towards: PyTree = None, times: Scalar = 1.0
        ) -> tuple[PyTree, PyTree]:
            params, memory = carry
            _, gradient = own.objective.value_and_grad(params, own.model_state, batch, key)
            if towards is not None:
                away = jax.tree.map(jnp.subtract, params, towards)
                gradient = _plus(gradient, away, self.pull)
            change, memory = transform.update(gradient, memory, params)
            return _plus(params, change, times), memory

        def train(carry: Any, keys: Array, towards: PyTree = None) -> tuple[PyTree, PyTree]:
            return jax.lax.scan(lambda c, key: (step(c, seen, key, towards), None), carry, keys)[0]

        def turn(carry: Any, key: Array) -> tuple[Any, None]:
            params, memory, hidden = carry
            own_key, key = jax.random.split(key)
            keys = jax.random.split(own_key, self.steps)
            params, memory = train((params, memory), keys, honest)
            params, hidden = step((params, hidden), wanted, key, times=self.boost)
            return (params, memory, hidden), None

        honest_key, key = jax.random.split(own.key)
        fresh, taken = transform.init(start), self.turns * self.steps
        honest, _ = train((start, fresh), jax.random.split(honest_key, taken))
        keys = jax.random.split(key, self.turns)
        end, _, _ = jax.lax.scan(turn, (start, fresh, fresh), keys)[0]
        update, _ = ravel_pytree(jax.tree.map(jnp.subtract, start, end))
        return update.astype(state.dtype)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]:
        return state[None], state


def _plus(tree: PyTree, other: PyTree, times: Scalar) -> PyTree:
    return jax.tree.map(
        lambda x, y: x + (jnp.asarray(times, y.dtype) * y).astype(x.dtype), tree, other
    )
