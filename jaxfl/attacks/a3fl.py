"""A3FL: a backdoor whose trigger is learned against the model, and one that unlearns it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.attacks.data import Trigger
from jaxfl.attacks.views import Learning
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Batch, PyTree, Spec, State

MOMENTUM, DECAY = 0.9, 5e-4


class A3FL(Trigger):
    """A backdoor whose trigger is optimised in every round, against what would unlearn it.

    Before each round one attacker takes the model w, trains a copy w' on triggered samples with
    their true labels, as defenders would, by ``hardening`` steps of gradient descent (momentum 0.9,
    weight decay 5e-4), and moves the square's pixels t by ``steps`` steps of
    ``t - rate sign(grad_t [CE(w, x + t, target) + weight c CE(w', x + t, target)])`` within what
    an image can hold, x over ``samples`` of its own, c the mean cosine of the two models' gradients
    of each kernel on them as they are. All attackers stamp what came of it; it begins at 0.5.

    The authors take 200 passes over all of the attacker's samples in a round, with a new w' for
    each; here the trigger is carried on from round to round, and w' is trained once in each. Their
    square is two pixels from the upper and the left edge and their target 2; here both are as for
    the other backdoors, so that these compare.

    Cost: ``hardening + 2 steps + 2`` forward and backward passes of ``samples`` in a round.
    Zhang, Jia, Chen, Lin, Wu, "A3FL: adversarially adaptive backdoor attacks to federated
    learning", NeurIPS 2023.

    >>> A3FL(size=2).init(jaxfl.types.Spec(10, 10, 650, sample_shape=(8, 8, 1))).shape
    (2, 2, 1)
    """

    name = "a3fl"
    size: int = field(default=5, at_least=1)
    """Side of the square, in pixels."""
    fraction: Scalar = field(default=0.25, at_least=0, at_most=1)
    """Share of each batch that is changed."""
    steps: int = field(default=10, at_least=1)
    """By which the trigger moves in a round."""
    rate: Scalar = field(default=0.01, above=0)
    """How far each step moves a pixel, in units of an input as the model sees it."""
    weight: Scalar = field(default=0.01, at_least=0)
    """Of the model that unlearns the trigger."""
    hardening: int = field(default=5, at_least=0)
    """Steps in which that model is trained."""
    hardening_rate: Scalar = field(default=0.01, above=0)
    """Learning rate of these."""
    samples: int = field(default=64, at_least=1)
    """Of the attacker's samples that it learns from."""
    learns = capability(True)

    def init(self, spec: Spec) -> State:
        channels = spec.sample_shape[2] if len(spec.sample_shape) == 3 else 1
        return jnp.full((self.size, self.size, channels), 0.5, jnp.float32)

    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        """Images with the trigger that the memory holds."""
        inside, row, column = self.place(inputs.shape[1], inputs.shape[2])
        last = self.size - 1
        pixels = memory[jnp.minimum(row, last), jnp.minimum(column, last)].astype(inputs.dtype)
        if inputs.ndim == 4:
            return jnp.where(inside[None, :, :, None], pixels[None], inputs)
        return jnp.where(inside[None], pixels[None, :, :, 0], inputs)

    def learn(self, own: Learning, state: State) -> State:
        batch = own.load(self.samples)
        params = own.objective.unravel(own.params)
        hard = self._hardened(own, batch, params, state)
        weight = jnp.asarray(self.weight, state.dtype)
        if self.hardening:
            weight = weight * _agreement(own, batch, params, hard)
        floor, peak = (
            jnp.asarray(bound, state.dtype)[None, None] for bound in (own.floor, own.peak)
        )
        rate = jnp.asarray(self.rate, state.dtype)

        def harm(trigger: Array) -> Float[Array, ""]:
            inputs = self.triggered(batch.inputs, own.peak, trigger)
            labels = jnp.full_like(batch.labels, self.target)

            def loss(model: PyTree) -> Float[Array, ""]:
                logits = own.objective.logits(model, own.model_state, inputs)
                losses = own.objective.loss_function(logits, labels)
                return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.sum(batch.mask)

            return loss(params) + weight * loss(hard)

        def step(trigger: Array, _: None) -> tuple[Array, None]:
            moved = trigger - rate * jnp.sign(jax.grad(harm)(trigger))
            return jnp.clip(moved, floor, peak), None

        return jax.lax.scan(step, state, None, self.steps)[0]

    def _hardened(self, own: Learning, batch: Batch, params: PyTree, trigger: Array) -> PyTree:
        """The model, trained to see through the trigger."""
        seen = batch.replace(inputs=self.triggered(batch.inputs, own.peak, trigger))

        def step(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], None]:
            model, velocity = carry
            _, gradient = own.objective.value_and_grad(model, own.model_state, seen, key)
            velocity = jax.tree.map(
                lambda v, g, w: MOMENTUM * v + g + DECAY * w, velocity, gradient, model
            )
            moved = jax.tree.map(
                lambda w, v: w - jnp.asarray(self.hardening_rate, w.dtype) * v, model, velocity
            )
            return (moved, velocity), None

        keys = jax.random.split(own.key, self.hardening)
        start = params, jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, start, keys)[0][0]


def _agreement(own: Learning, batch: Batch, one: PyTree, other: PyTree) -> Float[Array, ""]:
    """The mean cosine of two models' gradients of each kernel, on one batch."""
    gradients = [
        jax.tree.leaves(own.objective.value_and_grad(model, own.model_state, batch, own.key)[1])
        for model in (one, other)
    ]
    cosines = [
        safe_ratio(jnp.sum(a * b), jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))
        for a, b in zip(*gradients, strict=True)
        if a.ndim > 1
    ]
    return jnp.mean(jnp.stack(cosines)) if cosines else jnp.ones(())
