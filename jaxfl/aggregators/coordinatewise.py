"""Rules that treat every coordinate by itself."""

from jaxtyping import Array, Float

from jaxfl.aggregators.base import CoordinatewiseRule, needs_more_than
from jaxfl.component import field
from jaxfl.numerics import order
from jaxfl.types import Context


class Median(CoordinatewiseRule):
    """The coordinatewise median (the mean of the two middle values where n is even).

    Cost: one read of the matrix and O(log^2 n) comparisons an element. Fails under
    heterogeneity and ALIE: its error grows with the spread of the honest updates.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.
    """

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.median(block)


class TrimmedMean(CoordinatewiseRule):
    """Per coordinate, the mean after dropping the f smallest and the f largest values.

    Needs n > 2f; f = 0 is the mean. Cost: as the median. Fails under ALIE and heterogeneity.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.
    """

    f: int = field(at_least=0)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.mean_of_ranks(block, self.f, block.shape[0] - self.f)
