"""Rules around another rule."""

from typing import Any

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import capability
from jaxfl.types import Spec, State


class of_rule(capability[Any]):  # noqa: N801 - as ``capability`` is
    """A capability that is that of the ``rule`` inside.

    >>> jaxfl.Pipeline(pre=[], rule=jaxfl.Mean()).tolerates
    False
    """

    def __init__(self) -> None:
        super().__init__(lambda outer: getattr(outer.rule, self._name))


class Wrapper(Aggregator):
    """A rule that hands the updates, or parts of them, to another. Abstract.

    What is true of the other rule is true of this one, unless it says otherwise.

    >>> jaxfl.RLR(rule=jaxfl.Median()).tolerates
    True
    """

    rule: Aggregator
    """The rule inside."""

    permutation_equivariant = of_rule()
    public_memory = of_rule()
    by_client = of_rule()
    needs_everybody = of_rule()
    by_samples = of_rule()
    scale_equivariant = of_rule()
    translation_equivariant = of_rule()
    unit_free = of_rule()
    unanimous = of_rule()
    tolerates = of_rule()
    accepts_absent = of_rule()
    needs_root = of_rule()
    follows_model = of_rule()
    needs_segments = of_rule()
    makes_inputs = of_rule()

    def check(self, n: int) -> None:
        self.rule.check(n)

    def init(self, spec: Spec) -> State:
        return self.rule.init(spec)
