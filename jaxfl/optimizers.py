"""Optimisers, for the server's step and for local steps, and their learning-rate schedules."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxfl.component import Component, Scalar, field
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.types import PyTree


class Schedule(Component):
    """A learning rate as a function of the step count. Abstract: override ``rate``.

    >>> class Harmonic(jaxfl.Schedule):
    ...     def rate(self, step):
    ...         return 1 / (1 + step)
    >>> jaxfl.SGD(learning_rate=Harmonic()).learning_rate.rate(3)
    0.25
    """

    @abc.abstractmethod
    def rate(self, step: Array) -> Array:
        """The learning rate at this step (from 0)."""

    def checked(self, step: Array) -> Array:
        """``rate``, whose answer is looked at as it is traced.

        Raises:
          ValueError: a class of one's own answers no single number.
        """
        with own_code(self, ".rate"):
            rate = self.rate(step)
        expect(f"{name_of(self)}.rate returned", rate, (), "one learning rate")
        return _float(rate)


class StepDecay(Schedule):
    """``initial``, multiplied by ``factor`` at each of the steps in ``boundaries``.

    >>> rate = jaxfl.StepDecay(initial=0.1, boundaries=(10, 20)).rate
    >>> [round(float(rate(jnp.asarray(step))), 6) for step in (9, 10, 20)]
    [0.1, 0.01, 0.001]
    """

    initial: Scalar = field(above=0)
    """The rate before the first boundary."""
    boundaries: tuple[int, ...] = ()
    """Steps at which the rate changes."""
    factor: Scalar = field(default=0.1, above=0)
    """Multiplies the rate at each of them."""

    def rate(self, step: Array) -> Array:
        passed = sum((jnp.asarray(step >= b, jnp.float32) for b in self.boundaries), jnp.zeros(()))
        return jnp.asarray(self.initial) * jnp.asarray(self.factor) ** passed


class CosineDecay(Schedule):
    """From ``initial`` to ``final`` along half a cosine over ``steps`` steps, then constant.

    >>> rate = jaxfl.CosineDecay(initial=0.1, steps=10).rate
    >>> [round(float(rate(jnp.asarray(step))), 3) for step in (0, 5, 10)]
    [0.1, 0.05, 0.0]
    """

    initial: Scalar = field(above=0)
    """The rate at step 0."""
    steps: int = field(at_least=1)
    """When the decay ends."""
    final: Scalar = field(default=0.0, at_least=0)
    """The rate from then on."""

    def rate(self, step: Array) -> Array:
        done = jnp.minimum(step / self.steps, 1.0)
        initial, final = jnp.asarray(self.initial), jnp.asarray(self.final)
        return final + (initial - final) * (1 + jnp.cos(jnp.pi * done)) / 2


class Optimizer(Component):
    """An optax optimiser whose hyper-parameters are pytree leaves. Abstract: override ``rule``.

    >>> import optax
    >>> class Lion(jaxfl.Optimizer):
    ...     def rule(self):
    ...         return optax.scale_by_lion()
    >>> Lion(learning_rate=0.01)
    Lion(learning_rate=0.01)
    """

    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    """A number, or a schedule of steps."""

    @abc.abstractmethod
    def rule(self) -> optax.GradientTransformation:
        """Everything but the learning rate, as an optax transformation of gradients."""

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The learning rate at this step (from 0)."""
        rate = self.learning_rate
        return rate.checked(step) if isinstance(rate, Schedule) else _float(rate)

    def transform(self, *, at: Array | None = None) -> optax.GradientTransformation:
        """The optax transformation: ``optax.apply_updates`` takes the step.

        Its memory and its arithmetic are float32 or better, whatever the parameters' type.

        Args:
          at: the step at which a schedule is read, for an optimiser that starts afresh every
            round; None: the number of steps taken.
        """
        rate: Any = self.learning_rate
        if isinstance(rate, Schedule):
            rate = rate.checked if at is None else rate.checked(at)
        name = f"{name_of(self)}.rule"
        with own_code(self, ".rule"):
            rule = self.rule()
        if not isinstance(rule, optax.GradientTransformation):
            raise ValueError(
                f"{name} returned {type(rule).__name__}; needs an optax.GradientTransformation"
            )
        inner = optax.chain(rule, optax.scale_by_learning_rate(rate))

        def init(params: PyTree) -> PyTree:
            with own_code(self, ".rule"):
                return inner.init(_widened(params))

        def update(updates: PyTree, state: PyTree, params: PyTree = None) -> PyTree:
            with own_code(self, ".rule"):
                change, memory = inner.update(_widened(updates), state, _widened(params))
            expect_like(f"{name}'s update returned", _shapes(change), _shapes(updates))
            expect_like(f"{name}'s update returned the memory", memory, state)
            return change, memory

        return optax.GradientTransformation(init, update)


def _float(rate: Scalar | int) -> Float[Array, ""]:
    return jnp.asarray(rate, jnp.promote_types(jnp.result_type(rate), jnp.float32))


def _shapes(tree: PyTree) -> PyTree:
    """As floats of one type: a change is cast to the parameters' type when it is added."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), tree)


def _widened(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


class SGD(Optimizer):
    """Stochastic gradient descent: ``v <- momentum v + g + weight_decay w; w <- w - rate v``.

    On the server with momentum, it is FedAvgM (Hsu, Qi, Brown, "Measuring the effects of
    non-identical data distribution", 2019).

    >>> sgd, params = jaxfl.SGD(learning_rate=0.5).transform(), jnp.array([2.0])
    >>> step, memory = sgd.update(jnp.array([1.0]), sgd.init(params), params)
    >>> step.tolist()
    [-0.5]
    """

    momentum: Scalar | None = field(default=None, at_least=0, below=1)
    """How much of the last direction is kept; none: nothing."""
    weight_decay: Scalar | None = field(default=None, at_least=0)
    """Times the parameters, added to the gradient; none: nothing."""

    def rule(self) -> optax.GradientTransformation:
        parts = []
        if self.weight_decay is not None:
            parts.append(optax.add_decayed_weights(self.weight_decay))  # pyright: ignore[reportArgumentType]
        if self.momentum is not None:
            parts.append(optax.trace(decay=self.momentum))  # pyright: ignore
        return optax.chain(optax.identity(), *parts)


class Adam(Optimizer):
    """Adam; on the server, FedAdam (Reddi et al., "Adaptive federated optimization", ICLR 2021).

    >>> adam, params = jaxfl.Adam(learning_rate=0.1).transform(), jnp.array([2.0])
    >>> step, memory = adam.update(jnp.array([3.0]), adam.init(params), params)
    >>> round(float(step[0]), 3)
    -0.1
    """

    b1: Scalar = field(default=0.9, at_least=0, below=1)
    """Decay of the mean of gradients."""
    b2: Scalar = field(default=0.999, at_least=0, below=1)
    """Decay of the mean of their squares."""
    eps: Scalar = field(default=1e-8, above=0)
    """Added to the root of that mean."""

    def rule(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)  # pyright: ignore


class Yogi(Optimizer):
    """Yogi; on the server, FedYogi (Reddi et al., "Adaptive federated optimization", ICLR 2021).

    >>> yogi, params = jaxfl.Yogi(learning_rate=0.1).transform(), jnp.array([2.0])
    >>> step, memory = yogi.update(jnp.array([3.0]), yogi.init(params), params)
    >>> round(float(step[0]), 2)
    -0.1
    """

    b1: Scalar = field(default=0.9, at_least=0, below=1)
    """Decay of the mean of gradients."""
    b2: Scalar = field(default=0.99, at_least=0, below=1)
    """Decay of what stands for the mean of their squares."""
    eps: Scalar = field(default=1e-3, above=0)
    """Added to the root of that."""

    def rule(self) -> optax.GradientTransformation:
        return optax.scale_by_yogi(self.b1, self.b2, self.eps)  # pyright: ignore


class Adagrad(Optimizer):
    """Adagrad: ``v <- v + g^2; w <- w - rate g / sqrt(v + eps)``; on the server, FedAdagrad.

    Reddi et al., "Adaptive federated optimization", ICLR 2021, add eps outside of the root.

    >>> adagrad, params = jaxfl.Adagrad(learning_rate=0.1).transform(), jnp.array([2.0])
    >>> step, memory = adagrad.update(jnp.array([3.0]), adagrad.init(params), params)
    >>> round(float(step[0]), 3)
    -0.1
    """

    initial: Scalar = field(default=0.0, at_least=0)
    """Sum of squares at the start."""
    eps: Scalar = field(default=1e-6, above=0)
    """Added to that sum before the root."""

    def rule(self) -> optax.GradientTransformation:
        return optax.scale_by_rss(self.initial, self.eps)  # pyright: ignore
