"""An attack that tries many directions and lengths on the defence, and copies of outliers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.attacks.informed import InformedAttack, mean_and_std
from jaxfl.attacks.search import harm
from jaxfl.attacks.statistical import offsets
from jaxfl.attacks.views import AttackView
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.gram import centred_gram, weighted_gram
from jaxfl.numerics.lapack import eigh
from jaxfl.numerics.noise import normal
from jaxfl.types import State

SHORTEST, LONGEST = 0.5, 100.0
"""Of the shifts, in units of the spread."""
COPIED = 3
"""So many of the updates farthest from the mean are tried as they are."""


class ShiftSearch(InformedAttack):
    """All attackers send the row, among many tried on the defence, that moves it farthest.

    Tried are ``mean +- m |std| u`` for ``lengths`` magnitudes m from 0.5 to 100 and the directions
    u of: the mean, the deviations of the coordinates, the two principal directions of the known
    updates, a random one, and where the defence's own answer lies when attackers send the mean;
    and copies of the three known updates farthest from the mean.

    Cost: 12 ``lengths`` + 4 runs of the defence, and the inner products of all updates. Ours.

    >>> ShiftSearch().threat_model
    ('its messages', 'all honest updates; tries the defence')
    """

    lengths: int = field(default=7, at_least=2)
    """Magnitudes tried in each direction."""
    probes = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(lengths=2)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        mean, std = mean_and_std(view.updates, self.known(view))
        rehearsed = self.rehearsal(view)

        def answer(row: Array) -> Array:
            return rehearsed.defence.probe(rehearsed.send(row[None])).astype(mean.dtype)

        directions = self._directions(view, mean, std, answer(mean) - mean)
        magnitudes = jnp.geomspace(SHORTEST, LONGEST, self.lengths, dtype=mean.dtype)
        steps = jnp.concatenate([magnitudes, -magnitudes]) * jnp.linalg.norm(std)
        shifts = (steps[:, None, None] * directions[None]).reshape(-1, mean.shape[0])
        tried = jnp.concatenate([mean[None] + shifts, self._farthest(view, mean, std)])
        damages = jax.lax.map(lambda row: harm(answer(row), mean), tried)
        noise = 64 * float(jnp.finfo(damages.dtype).eps)
        # The first of those that do the most damage: rounding must not choose among equals.
        return tried[jnp.argmax(damages >= jnp.max(damages) * (1 - noise))][None], state

    def _directions(
        self, view: AttackView, mean: Array, std: Array, bias: Array
    ) -> Float[Array, "6 d"]:
        known = self.known(view)
        shares = known.astype(mean.dtype)
        nothing = jnp.zeros((0, mean.shape[0]), view.updates.dtype)
        squares, _ = offsets(view.updates, known, mean, std)
        pilot = rows.median_row(squares, known)
        gram = weighted_gram(centred_gram(view.updates, nothing, known, pilot), shares)
        gram = jnp.where(known[:, None] & known[None, :], gram, 0)
        _, vectors = eigh(gram)
        principal = [
            rows.weighted_sum(v, view.updates, nothing) - jnp.sum(v) * mean
            for v in (jnp.where(known, vectors[:, -i], 0) for i in (1, 2))
        ]
        drawn = normal(view.key, mean.shape, mean.dtype)
        both = jnp.stack([mean, std, *principal, drawn, bias])
        return rows.safe_ratio(both, jnp.linalg.norm(both, axis=1, keepdims=True))

    def _farthest(self, view: AttackView, mean: Array, std: Array) -> Float[Array, "copies d"]:
        squares, _ = offsets(view.updates, self.known(view), mean, std)
        count = min(COPIED, view.updates.shape[0])
        farthest = jax.lax.top_k(jnp.where(self.known(view), squares, -1), count)[1]
        usable = self.known(view)[farthest]
        found = view.updates[farthest].astype(mean.dtype)
        return jnp.where(usable[:, None], found, mean[None])
