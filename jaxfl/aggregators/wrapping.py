"""Rules around another rule."""

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import capability
from jaxfl.types import Spec, State


class Wrapper(Aggregator):
    """A rule that hands the updates, or parts of them, to another. Abstract.

    What is true of the other rule is true of this one, unless it says otherwise.

    >>> jaxfl.RLR(rule=jaxfl.Median()).tolerates
    True
    """

    rule: Aggregator
    """The rule inside."""

    @capability
    def permutation_equivariant(self) -> bool:
        return self.rule.permutation_equivariant

    @capability
    def public_memory(self) -> bool:
        return self.rule.public_memory

    @capability
    def by_client(self) -> bool:
        return self.rule.by_client

    @capability
    def by_samples(self) -> bool:
        return self.rule.by_samples

    @capability
    def scale_equivariant(self) -> bool:
        return self.rule.scale_equivariant

    @capability
    def translation_equivariant(self) -> bool:
        return self.rule.translation_equivariant

    @capability
    def unit_free(self) -> bool:
        return self.rule.unit_free

    @capability
    def unanimous(self) -> bool:
        return self.rule.unanimous

    @capability
    def tolerates(self) -> bool:
        return self.rule.tolerates

    @capability
    def accepts_absent(self) -> bool:
        return self.rule.accepts_absent

    @capability
    def needs_root(self) -> frozenset[str]:
        return self.rule.needs_root

    @capability
    def follows_model(self) -> bool:
        return self.rule.follows_model

    @capability
    def needs_segments(self) -> bool:
        return self.rule.needs_segments

    @capability
    def makes_inputs(self) -> bool:
        return self.rule.makes_inputs

    def check(self, n: int) -> None:
        self.rule.check(n)

    def init(self, spec: Spec) -> State:
        return self.rule.init(spec)
