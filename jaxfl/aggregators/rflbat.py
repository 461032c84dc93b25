"""RFLBAT: clusters in the plane of the two largest principal components."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.gram import weighted_gram
from jaxfl.numerics.kmeans import gap_count, kmeans, reference_points, scaled
from jaxfl.numerics.lapack import eigh
from jaxfl.numerics.rows import masked_median, safe_sqrt
from jaxfl.types import Context, Info, State


class RFLBAT(WeightingRule):
    """The mean of the cluster whose updates are least alike, without outliers.

    1. Updates are projected on their two largest principal components. 2. Those whose sum of
    distances to the others is below ``outlier`` times its median stay. 3. They are clustered by
    k-means, with as many clusters, up to ``clusters``, as the gap statistic finds with both axes
    from 0 to 1, over ``samples`` uniform draws. 4. Of the clusters of two or more, the one whose
    median over clients of the mean cosine to the cluster is smallest stays: backdoored updates are
    more alike than honest ones. 5. Of it, those below ``inner_outlier`` times the median of their
    sums of distances are averaged.

    Needs heterogeneous honest clients. Cost: n^2 d multiply-adds, eigenvectors of an n x n matrix,
    three reads of the matrix. Fails: two noisy or opposed attackers, whose cluster is least alike;
    clients with equal distributions.
    Wang, Zhai, Zhan, Xia, "RFLBAT: a robust federated learning algorithm against backdoor attack",
    arXiv:2201.03772, 2022.

    >>> updates = jnp.concatenate([jnp.eye(5), jnp.full((3, 5), 5.0)])
    >>> RFLBAT(clusters=2).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, False, False, False]
    """

    name = "rflbat"
    outlier: Scalar = field(default=10.0, above=0)
    """In units of the median of the sums of distances: from there a client is an outlier."""
    inner_outlier: Scalar = field(default=4.0, above=0)
    """The same within the cluster chosen."""
    clusters: int = field(default=9, at_least=1)
    """Most clusters that the gap statistic tries."""
    samples: int = field(default=5, at_least=1)
    """Uniform draws that it compares with."""
    needs = capability(frozenset({"gram", "inner"}))
    tolerates = capability(False)
    permutation_equivariant = capability(False)
    scale_equivariant = capability(True)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        usable = statistics.usable
        n = usable.shape[0]
        points = principal_points(statistics.gram[:n, :n], usable)
        kept = _central(points, usable, jnp.asarray(self.outlier, points.dtype))
        most = min(self.clusters, n)
        draw_key, gap_key, key = jax.random.split(context.key, 3)
        flat = scaled(points, kept)
        references = reference_points(flat, self.samples, draw_key)
        count = gap_count(flat, references, kept, most, gap_key, power=1)
        labels = kmeans(points, kept, count, most, key)
        kept &= _least_alike(labels, kept, statistics.cosines()[:n, :n], most)
        kept = _central(points, kept, jnp.asarray(self.inner_outlier, points.dtype))
        weights = kept.astype(points.dtype) / jnp.maximum(jnp.sum(kept), 1)
        return weights, Info(selected=kept, weights=weights)


def principal_points(gram: Float[Array, "n n"], usable: Bool[Array, " n"]) -> Float[Array, "n 2"]:
    """The scores of the two largest principal components; 0 of rows that are not usable."""
    gram = jax.lax.stop_gradient(weighted_gram(gram, usable.astype(gram.dtype)))
    both = usable[:, None] & usable[None, :]
    values, vectors = eigh(jnp.where(both, gram, 0))
    missing = max(0, 2 - gram.shape[0])
    values = jnp.pad(values[-2:][::-1], (0, missing))
    vectors = jnp.pad(vectors[:, -2:][:, ::-1], ((0, 0), (0, missing)))
    # What rounding leaves of a component that is not there would be scaled up to one.
    rounding = gram.shape[0] * jnp.finfo(gram.dtype).eps * jnp.maximum(values[0], 0)
    return vectors * safe_sqrt(jnp.where(values > rounding, values, 0))[None]


def _central(
    points: Float[Array, "n 2"], mask: Bool[Array, " n"], factor: Float[Array, ""]
) -> Bool[Array, " n"]:
    """Points whose sum of distances to the others is below so many times its median."""
    away = points[:, None] - points[None]
    distances = safe_sqrt(jnp.sum(jnp.square(away), axis=-1))
    total = jnp.sum(jnp.where(mask[None, :], distances, 0), axis=1)
    middle = masked_median(total, mask)
    return mask & ((total < factor * middle) | (middle == 0))


def _least_alike(
    labels: Int[Array, " n"], mask: Bool[Array, " n"], cosines: Float[Array, "n n"], most: int
) -> Bool[Array, " n"]:
    """The members of the cluster of least median mean cosine; all where no two are together."""
    members = (labels[None, :] == jnp.arange(most)[:, None]) & mask[None, :]
    sizes = jnp.sum(members, axis=1)
    shares = members.astype(cosines.dtype) / jnp.maximum(sizes[:, None], 1)
    alike = jnp.matmul(shares, cosines, precision="highest")
    scores = jax.vmap(masked_median)(alike, members)
    scores = jnp.where(sizes > 1, scores, jnp.inf)
    return jnp.where(jnp.any(sizes > 1), members[jnp.argmin(scores)], mask)
