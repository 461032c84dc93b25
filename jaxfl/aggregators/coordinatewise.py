"""Rules that treat every coordinate by itself."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import CoordinatewiseRule, TallyRule, needs_more_than
from jaxfl.component import capability, field
from jaxfl.numerics import order
from jaxfl.types import Context


class Median(CoordinatewiseRule):
    """The coordinatewise median (the mean of the two middle values where n is even).

    With ``lower`` the smaller of the two, as the code of SignGuard and of Shejwalkar and
    Houmansadr (NDSS 2021) has it.

    Needs an honest majority. Cost: one read of the matrix and O(log^2 n) comparisons an element.
    Fails under heterogeneity and ALIE: its error grows with the spread of the honest updates.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Median()(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    lower: bool = False
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.median(block, lower=self.lower)


class TrimmedMean(CoordinatewiseRule):
    """Per coordinate, the mean after dropping the f smallest and the f largest values.

    Needs n > 2f; f = 0 is the mean. Cost: as the median. Fails under ALIE and heterogeneity.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> TrimmedMean(f=1)(updates).round(2)
    Array([2.2, 1.8], dtype=float32)
    """

    f: int = field(at_least=0)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.mean_of_ranks(block, self.f, block.shape[0] - self.f)


class MeaMed(CoordinatewiseRule):
    """Per coordinate, the mean of the n - f values nearest the median; ties to the first client.

    Needs n > 2f; f = 0 is the mean. Cost: as the median, and one more selection. Fails under
    ALIE; under mild heterogeneity its error is below the median's.
    Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MeaMed(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.mean_of_nearest(block, order.median(block), block.shape[0] - self.f)


class Phocas(CoordinatewiseRule):
    """Per coordinate, the mean of the n - f values nearest the f-trimmed mean.

    Needs n > 2f; f = 0 is the mean; ties go to the first client. Cost: as MeaMed. Fails: as
    MeaMed.
    Xie, Koyejo and Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent",
    2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Phocas(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        n = block.shape[0]
        centre = order.mean_of_ranks(block, self.f, n - self.f)
        return order.mean_of_nearest(block, centre, n - self.f)


class SignMajority(TallyRule):
    """Per coordinate, the sign that most clients vote for: -1, 1, or 0 where they tie.

    A zero votes for neither, and so does what is not finite: a NaN has no sign, and a client
    whose gradient overflowed would otherwise vote once for each coordinate.

    Needs an honest majority. Cost: one read of the matrix. The answer knows nothing of
    magnitudes, so the step length is the learning rate's alone; the gradient of the rule is 0.
    Fails where the honest clients disagree in sign: f votes then decide.
    Bernstein et al., "signSGD with majority vote is communication efficient and fault tolerant",
    ICLR 2019.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SignMajority()(updates).round(2)
    Array([1., 1.], dtype=float32)
    """

    unanimous = capability(False)

    def vote(self, block: Float[Array, "n c"]) -> Float[Array, "n c"]:
        return jnp.where(jnp.isfinite(block), jnp.sign(block), 0)

    def answer(self, tally: Float[Array, " c"]) -> Float[Array, " c"]:
        return jnp.sign(tally)
