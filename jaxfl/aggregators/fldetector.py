"""FLDetector: clients whose updates are not what their own history predicts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.kmeans import gap_count, kmeans, reference_points, scaled
from jaxfl.numerics.lapack import pinv
from jaxfl.numerics.places import put_at, take_at
from jaxfl.types import Aggregated, Context, Info, Spec, State, Struct


class FLDetectorState(Struct):
    """What FLDetector remembers."""

    params: Float[Array, " d"]
    """Parameters of the last round."""
    update: Float[Array, " d"]
    """The last answer."""
    sent: Float[Array, "K d"]
    """Each client's last update."""
    seen: Bool[Array, " K"]
    """Whether it has sent one."""
    moves: Float[Array, "w d"]
    """Changes of the parameters, the latest last; 0 where there were fewer."""
    changes: Float[Array, "w d"]
    """Changes of the answer that belong to them."""
    scores: Float[Array, "w K"]
    """Each client's last normalised distances; -1 where there were fewer."""
    rounds: Int[Array, ""]


class FLDetector(Aggregator):
    """The mean of the clients whose updates follow from their last ones.

    Client i is expected to send ``g_i + H v``, its last update and the change that the Hessian of
    L-BFGS, of the last ``window`` changes of parameters and answer, makes of the move v of the
    parameters. Its score is the mean, over ``window`` rounds, of its distance to that as a share
    of all distances. From round ``start`` on, where the gap statistic (up to ``clusters`` clusters,
    ``samples`` uniform draws) finds two or more clusters of scores, the cluster of larger
    scores of two is left out of this round. (The paper leaves it out for good and starts training
    anew.) ``info.scores`` holds the scores, 0 where there are none: a client's first update has
    nothing to be judged by, and stays.

    Needs smooth steps, and ``context.params``; of a cohort, updates that change little while their
    clients are away. A row that is not finite counts as the farthest. Cost: six reads of the
    matrix, of two of which it writes copies, and w^2 d multiply-adds. Fails: before ``start`` it is
    the mean; attackers whose lie is constant in time or rare.
    Zhang, Cao, Jia, Gong, "FLDetector: defending federated learning against model poisoning
    attacks via detecting malicious clients", KDD 2022.

    >>> FLDetector().follows_model
    True
    """

    name = "fldetector"
    window: int = field(default=10, at_least=1)
    """Rounds that are remembered."""
    start: int = field(default=10, at_least=0)
    """The first round in which clients can be left out, from 0."""
    clusters: int = field(default=7, at_least=2)
    """Most clusters that the gap statistic tries."""
    samples: int = field(default=10, at_least=1)
    """Uniform draws that it compares with."""
    by_client = capability(True)
    follows_model = capability(True)
    tolerates = capability(False)
    permutation_equivariant = capability(False)
    unit_free = capability(True)

    def init(self, spec: Spec) -> State:
        dtype = rows.accumulator(jnp.dtype(spec.dtype))
        vector, history = jnp.zeros((spec.dim,), dtype), jnp.zeros((self.window, spec.dim), dtype)
        return FLDetectorState(
            params=vector,
            update=vector,
            sent=jnp.zeros((spec.population, spec.dim), spec.dtype),
            seen=jnp.zeros((spec.population,), bool),
            moves=history,
            changes=history,
            scores=jnp.full((self.window, spec.population), -1, dtype),
            rounds=jnp.int32(0),
        )

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        if context.params is None:
            raise ValueError("FLDetector needs context.params, the parameters of this round")
        ids = context.client_ids
        usable = jnp.isfinite(rows.squared_norms(updates))
        params = context.params.astype(state.params.dtype)
        move = jnp.where(state.rounds > 0, params - state.params, 0)
        expected = hessian_times(state.moves, state.changes, move)
        last = take_at(state.sent, ids)
        away = updates.astype(expected.dtype) - last.astype(expected.dtype)
        distances = rows.safe_sqrt(rows.squared_offsets(away, expected))
        judged = state.seen[ids]
        shares = _shares(distances, usable, judged)
        own = state.scores[:, ids]
        own = jnp.where(judged, jnp.vstack([own[1:], shares]), own)
        known = own >= 0
        count = jnp.maximum(jnp.sum(known, axis=0), 1)
        scores = jnp.sum(jnp.where(known, own, 0), axis=0) / count
        detected = (state.rounds >= self.start) & self._detected(scores, judged, context)
        kept = usable & ~detected
        weights = kept.astype(scores.dtype) / jnp.maximum(jnp.sum(kept), 1)
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        output = rows.combine(weights, updates, none, jnp.all(usable))
        answer = output.astype(state.update.dtype)
        # The first answer has none before it to have changed from.
        change = jnp.where(state.rounds > 0, answer - state.update, 0)
        known_at = jnp.where(usable, ids, state.sent.shape[0])
        memory = FLDetectorState(
            params=params,
            update=answer,
            sent=put_at(state.sent, known_at, updates.astype(state.sent.dtype)),
            seen=state.seen.at[known_at].set(True, mode="drop"),
            moves=jnp.vstack([state.moves[1:], move]),
            changes=jnp.vstack([state.changes[1:], change]),
            scores=state.scores.at[:, ids].set(own),
            rounds=state.rounds + 1,
        )
        info = Info(selected=kept, weights=weights, scores=scores)
        return Aggregated(update=output, state=memory, info=info)

    def _detected(
        self, scores: Float[Array, " n"], judged: Bool[Array, " n"], context: Context
    ) -> Bool[Array, " n"]:
        """Of those judged, the clients of larger scores, where there are two kinds."""
        points = scaled(scores[:, None], judged)
        most = min(self.clusters, scores.shape[0])
        draw_key, gap_key, key = jax.random.split(context.key, 3)
        references = reference_points(points, self.samples, draw_key)
        count = gap_count(points, references, judged, most, gap_key)
        second = kmeans(points, judged, 2, 2, key) == 1
        parts = judged & ~second, judged & second
        means = [
            jnp.sum(jnp.where(part, scores, 0)) / jnp.maximum(jnp.sum(part), 1) for part in parts
        ]
        return (count > 1) & jnp.where(means[1] > means[0], parts[1], parts[0])


def _shares(
    distances: Float[Array, " n"], usable: Bool[Array, " n"], judged: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Each distance over their sum; equal shares where nobody is away.

    Those not judged count as of mean distance: shares of rounds with more and fewer of them are
    then of one size.
    """
    farthest = jnp.max(jnp.where(usable & judged, distances, 0))
    distances = jnp.where(judged, jnp.where(usable, distances, farthest), 0)
    n = distances.shape[0]
    total = jnp.sum(distances) * n / jnp.maximum(jnp.sum(judged), 1)
    return jnp.where(total > 0, rows.safe_ratio(distances, total), 1 / n)


def hessian_times(
    moves: Float[Array, "w d"], changes: Float[Array, "w d"], v: Float[Array, " d"]
) -> Float[Array, " d"]:
    """``H v`` by the compact form of L-BFGS, the latest pair last; 0 where there is none.

    ``H v = s v - [s S, Y] M^-1 [s S^T v; Y^T v]`` with ``M = [[s S^T S, L], [L^T, -D]]``, where D
    and L are the diagonal of ``S^T Y`` and what is below it, and ``s = y.s / s.s`` of the latest
    pair. Rows of zeros are no pairs: M is solved by least squares.

    Byrd, Nocedal, Schnabel, "Representations of quasi-Newton matrices and their use in limited
    memory methods", Mathematical Programming 1994.
    """

    def products(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b.T, precision="highest")

    mixed, square = products(moves, changes), products(moves, moves)
    scale = rows.safe_ratio(mixed[-1, -1], square[-1, -1])
    lower = jnp.tril(mixed, -1)
    middle = jnp.block([[scale * square, lower], [lower.T, -jnp.diag(jnp.diagonal(mixed))]])
    both = jnp.concatenate([scale * moves, changes])
    right = jnp.matmul(both, v, precision="highest")
    solved = jnp.matmul(pinv(middle), right, precision="highest")
    return scale * v - jnp.matmul(solved, both, precision="highest")
