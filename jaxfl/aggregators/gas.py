"""GAS: distances to a robust reference, added up over groups of coordinates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import Aggregator, needs_more_than
from jaxfl.aggregators.bulyan import Bulyan
from jaxfl.aggregators.coordinatewise import Median
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.order import smallest
from jaxfl.types import Aggregated, Context, Info, Spec, State


class GAS(Aggregator):
    """The mean of the n - f updates nearest to a robust reference, group of coordinates by group.

    The coordinates are split at random, anew each round, into ``groups`` of equal size (the last
    one may be smaller). ``rule`` gives the reference of each group, and a client's score is the sum
    over groups of its distance to it: high dimension does not drown what is wrong in few
    coordinates. ``rule`` is ``Bulyan(f)`` unless given; it must have no memory and need nothing of
    the server. ``info.scores`` holds the scores.

    Needs n > 2f, and what the rule needs. Cost: the rule's on every group, which is about n^2 d
    multiply-adds where it compares rows, for Bulyan the picks of every group beside them (minutes
    at n = 1000), and a random gather of the matrix. Fails: f honest clients are dropped where
    nobody attacks; an attack that lies within the spread of every group passes.
    Liu, Chen, Lyu, Wu, Wu, Chen, "Byzantine-robust learning on heterogeneous data via gradient
    splitting", ICML 2023.

    >>> updates = jnp.array([[1, 1], [1, 1], [1, 1], [9, 9.0]])
    >>> GAS(f=1, rule=jaxfl.Median())(updates)
    Array([1., 1.], dtype=float32)
    """

    name = "gas"
    f: int = field(at_least=0)
    groups: int = field(default=1000, at_least=1)
    """Groups that the coordinates are split into."""
    rule: Aggregator | None = None
    """The rule that gives the reference of each group; none: Bulyan."""

    @classmethod
    def example(cls, f: int = 2) -> "GAS":
        return cls(f=f, groups=4, rule=Median())

    @property
    def reference(self) -> Aggregator:
        """The rule of the groups."""
        return Bulyan(f=self.f) if self.rule is None else self.rule

    @capability
    def by_client(self) -> bool:
        return self.reference.by_client

    @capability
    def by_samples(self) -> bool:
        return self.reference.by_samples

    @capability
    def permutation_equivariant(self) -> bool:
        return self.reference.permutation_equivariant

    @capability
    def scale_equivariant(self) -> bool:
        return self.reference.scale_equivariant

    @capability
    def translation_equivariant(self) -> bool:
        return self.reference.translation_equivariant

    @capability
    def unanimous(self) -> bool:
        return True

    @capability
    def tolerates(self) -> bool:
        return self.reference.tolerates

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")
        rule = self.reference
        needy = rule.needs_root or rule.needs_segments or rule.makes_inputs
        if needy or jax.tree.leaves(rule.init(Spec(population=n, cohort=n, dim=1))):
            raise ValueError(
                f"GAS: rule must have no memory and need nothing of the server or the model; got "
                f"{type(rule).__name__}"
            )
        try:
            rule.check(n)
        except ValueError as error:
            wrong = f"GAS needs n to suit its rule; got n = {n}, f = {self.f}: {error}"
            raise ValueError(wrong) from None

    def init(self, spec: Spec) -> State:
        return self.reference.init(spec)  # empty, of whatever structure

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        n, d = updates.shape
        squares = rows.squared_norms(updates)
        finite = jnp.isfinite(squares)
        size = -(-d // self.groups)
        count = -(-d // size)
        order_key, rule_key = jax.random.split(context.key)
        order = jax.random.permutation(order_key, d)
        # What fills up the last group is equal in all rows, and adds no distance.
        mixed = jnp.pad(jnp.take(updates, order, axis=1), ((0, 0), (0, count * size - d)))
        groups = jnp.swapaxes(mixed.reshape(n, count, size), 0, 1)
        groups = jnp.where(finite[None, :, None], groups, jnp.nan)
        own = context.replace(key=rule_key, params=None, segments=())

        def distances(group: Array) -> Array:
            reference = self.reference.aggregate(group, state, own).update
            return rows.safe_sqrt(rows.squared_offsets(group, reference))

        scores = jnp.sum(jax.vmap(distances)(groups), axis=0)
        scores = jax.lax.stop_gradient(jnp.where(finite, scores, jnp.inf))
        kept = smallest(scores[:, None], n - self.f)[:, 0] & finite
        weights = kept.astype(squares.dtype) / jnp.maximum(jnp.sum(kept), 1)
        none = jnp.zeros((0, d), updates.dtype)
        output = rows.combine(weights, updates, none, jnp.all(finite))
        info = Info(selected=kept, weights=weights, scores=jnp.where(finite, scores, 0))
        return Aggregated(update=output, state=state, info=info)
