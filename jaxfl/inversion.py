"""What an honest but curious server sees of a client's samples: inputs that explain its message.

Zhu, Liu, Han, "Deep leakage from gradients", NeurIPS 2019; Zhao, Mopuri, Bilen, "iDLG: improved
deep leakage from gradients", 2020 (labels); Geiping, Bauermeister, Dröge, Moeller, "Inverting
gradients: how easy is it to break privacy in federated learning?", NeurIPS 2020. It is a probe, not
a row attack: a reconstruction shows that something leaks, a failed one may be the optimiser's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from jaxfl.component import Component, Scalar, field
from jaxfl.models.objective import ModelState, Objective
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Batch, Segments, Struct


class Reconstruction(Struct):
    """Inputs whose gradient is most like a message."""

    inputs: Float[Array, "b ..."]
    distance: Float[Array, ""]
    """Of their gradient from the message, without what smoothness adds."""


class Inversion(Component):
    """Inputs x, given their labels y, whose gradient is most like the message g of a client.

    ``"cosine"``: Adam on ``1 - cos(grad L(x, y), g) + smoothness TV(x)``, TV the mean absolute
    difference of neighbouring pixels in rows plus that in columns; the signs of the gradient are
    followed if ``signed``, the rate is divided by ten after 3/8, 5/8 and 7/8 of the steps, and x
    stays within what an input can be. ``"squared"``: L-BFGS on ``|grad L(x, y) - g|^2``; wants
    activations that are twice differentiable. Of ``restarts`` normal starts the nearest is kept.
    g is the gradient of one step; of several local steps ``update / (rate steps)`` stands for it.

    Cost: about three gradients in each step. Fails: large batches, several local steps, clipping
    with noise; a server that sees an aggregate only.

    >>> objective = jaxfl.models.Objective.of(jaxfl.models.Softmax(), (2, 2), 3)
    >>> Inversion(steps=100).restarts
    1
    """

    distance: str = field(default="cosine", choices=("cosine", "squared"))
    """What is made small."""
    steps: int = field(default=1000, at_least=1)
    """Of the optimiser."""
    learning_rate: Scalar = field(default=0.1, above=0)
    """Of Adam."""
    smoothness: Scalar = field(default=0.1, at_least=0)
    """Weight of the total variation; with ``"cosine"``, for images."""
    signed: bool = True
    """Whether Adam is given the signs of the gradient."""
    restarts: int = field(default=1, at_least=1)
    """Starts, of which the best is kept."""

    def reconstruct(
        self,
        objective: Objective,
        params: Float[Array, " d"],
        model_state: ModelState,
        message: Float[Array, " d"],
        labels: Int[Array, " b"],
        key: Key[Array, ""],
        *,
        sample: jax.ShapeDtypeStruct,
        floor: float = 0.0,
        peak: float = 1.0,
    ) -> Reconstruction:
        """The inputs of one message. Pure: ``vmap`` it over messages.

        Args:
          objective: the model and loss that the client trained.
          params: the model that it received.
          model_state: what of it is not trained.
          message: what it sent.
          labels: of its samples, known or from ``labels_of``.
          key: of the starts.
          sample: shape and type of an input as the model sees it.
          floor: the smallest value of an input.
          peak: the largest.
        """
        tree = objective.unravel(params)

        def apart(inputs: Array) -> Float[Array, ""]:
            batch = Batch(inputs, labels, jnp.ones(labels.shape, bool))
            gradient = ravel_pytree(objective.value_and_grad(tree, model_state, batch, key)[1])[0]
            if self.distance == "squared":
                return jnp.sum(jnp.square(gradient - message))
            lengths = jnp.linalg.norm(gradient) * jnp.linalg.norm(message)
            return 1 - safe_ratio(jnp.sum(gradient * message), lengths)

        def one(key: Array) -> tuple[Array, Array]:
            start = jax.random.normal(key, (labels.shape[0], *sample.shape), sample.dtype)
            search = self._by_adam if self.distance == "cosine" else self._by_lbfgs
            inputs = jnp.clip(search(apart, start, floor, peak), floor, peak)
            return inputs, apart(inputs)

        inputs, distances = jax.lax.map(one, jax.random.split(key, self.restarts))
        best = jnp.argmin(jnp.where(jnp.isnan(distances), jnp.inf, distances))
        return Reconstruction(inputs=inputs[best], distance=distances[best])

    def _by_adam(
        self, apart: Callable[[Array], Array], start: Array, floor: float, peak: float
    ) -> Array:
        smooth = jnp.asarray(self.smoothness, start.dtype)
        falls = {self.steps * part // 8: 0.1 for part in (3, 5, 7)}
        rate = optax.piecewise_constant_schedule(self.learning_rate, falls)  # pyright: ignore
        adam = optax.adam(rate)

        def loss(inputs: Array) -> Array:
            return apart(inputs) + smooth * total_variation(inputs)

        def step(carry: tuple[Array, optax.OptState], _: None):
            inputs, memory = carry
            gradient = jax.grad(loss)(inputs)
            gradient = jnp.sign(gradient) if self.signed else gradient
            change, memory = adam.update(gradient, memory)
            return (jnp.clip(inputs + change, floor, peak), memory), None  # pyright: ignore

        return jax.lax.scan(step, (start, adam.init(start)), None, self.steps)[0][0]

    def _by_lbfgs(
        self, apart: Callable[[Array], Array], start: Array, floor: float, peak: float
    ) -> Array:
        lbfgs = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(apart)

        def step(carry: tuple[Array, optax.OptState], _: None):
            inputs, memory = carry
            value, gradient = value_and_grad(inputs, state=memory)
            change, memory = lbfgs.update(
                gradient, memory, inputs, value=value, grad=gradient, value_fn=apart
            )
            return (inputs + change, memory), None  # pyright: ignore

        return jax.lax.scan(step, (start, lbfgs.init(start)), None, self.steps)[0][0]


def total_variation(images: Float[Array, "b ..."]) -> Float[Array, ""]:
    """The mean absolute difference of neighbours in columns, plus that in rows; 0 of no images."""
    if images.ndim < 3:
        return jnp.zeros((), images.dtype)
    down = jnp.mean(jnp.abs(images[:, 1:] - images[:, :-1]))
    across = jnp.mean(jnp.abs(images[:, :, 1:] - images[:, :, :-1]))
    return down + across


def labels_of(
    message: np.ndarray | Array, segments: Segments, size: int, shares: np.ndarray | None = None
) -> np.ndarray:
    """The labels of a batch, ascending, from the gradient by the output layer's bias.

    For a softmax model with cross-entropy that gradient is the mean of ``p_i - y_i``: of one sample
    only the entry of its label is negative. Of ``size`` samples class c has about
    ``size (shares_c - gradient_c)``, ``shares`` the model's mean probabilities (equal unless
    given); labels are read off one by one, from the largest remainder.

    Args:
      message: the gradient ``[d]``.
      segments: the model's parameters.
      size: how many samples.
      shares: mean probability of each class, ``[classes]``.

    Raises:
      ValueError: the model has no output layer with a bias.

    >>> bias = jaxfl.types.Segment("out.bias", 0, (3,), "bias", last=True)
    >>> labels_of(np.array([0.3, -0.7, 0.4]), (bias,), 1).tolist()
    [1]
    """
    found = [s for s in segments if s.last and s.kind == "bias"]
    if len(found) != 1:
        raise ValueError("labels_of needs a model whose output layer has a bias")
    gradient = np.asarray(message)[found[0].offset : found[0].end].astype(float)
    if size == 1:
        return np.array([int(np.argmin(gradient))])
    equal = np.full(len(gradient), 1 / len(gradient))
    left = size * ((equal if shares is None else np.asarray(shares)) - gradient)
    labels = []
    for _ in range(size):
        labels.append(int(np.argmax(left)))
        left[labels[-1]] -= 1
    return np.sort(labels)


def label_recovery(found: np.ndarray, labels: np.ndarray) -> float:
    """The share of the labels that were found, in any order.

    >>> label_recovery(np.array([1, 1, 2]), np.array([2, 1, 3])).__round__(3)
    0.667
    """
    most = int(max(np.max(found), np.max(labels))) + 1
    both = np.minimum(np.bincount(found, minlength=most), np.bincount(labels, minlength=most))
    return float(both.sum() / len(labels))


def matched(inputs: np.ndarray | Array, truth: np.ndarray | Array) -> np.ndarray:
    """The reconstructions in the order of the samples that they are nearest to, in squared error.

    >>> matched(np.array([[0.9], [0.1]]), np.array([[0.0], [1.0]])).tolist()
    [[0.1], [0.9]]
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    x, y = (np.asarray(part).reshape(len(part), -1) for part in (inputs, truth))
    cost = np.square(x[None] - y[:, None]).mean(axis=-1)
    return np.asarray(inputs)[linear_sum_assignment(cost)[1]]


def psnr(inputs: np.ndarray | Array, truth: np.ndarray | Array, peak: float = 1.0) -> float:
    """Peak signal to noise, ``10 log10(peak^2 / mean squared error)``, in dB; infinite if equal.

    >>> psnr(np.full((1, 2), 0.5), np.full((1, 2), 0.6)).__round__(1)
    20.0
    """
    error = float(np.mean(np.square(np.asarray(inputs) - np.asarray(truth))))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))
