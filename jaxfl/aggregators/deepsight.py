"""DeepSight: clusters by what updates do to the output layer and to the model's answers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.root_losses import usable_rows
from jaxfl.component import Scalar, capability, field
from jaxfl.devices import map_clients
from jaxfl.numerics import rows
from jaxfl.numerics.density import density_clusters
from jaxfl.types import Aggregated, Context, Info, PyTree, Segment, Segments, State


class DeepSight(Aggregator):
    """The mean of the clusters that few suspects are in, clipped to the median norm.

    1. The energy of an output neuron c is ``|b_c| + sum_h |W_hc|`` of a client's update, and its
    share e_c that energy squared over the sum of squares. Where at most half of the median client's
    number of shares exceeds ``max(0.01, 1 / P)`` of its largest, P neurons in all, the client is
    suspect: its data has few classes. 2. HDBSCAN finds clusters, by the cosine distances of the
    output layer's biases, by the shares, and, for each of ``draws``, by the quotients
    ``mean_x p_i(x)_c / (p(x)_c + 1e-6)`` of the client's and the server's answers to ``samples``
    uniform random inputs. 3. It clusters once more by the share of these in which two clients
    are apart (the draws count as one); all may be one cluster then. 4. Clusters with a share of
    suspects below ``suspects`` are averaged; what is in none is left out, and no cluster is no
    step. All norms enter the median.

    HDBSCAN here joins what is equally far apart at once, which makes the answer one of the clients
    and not of their order. The authors take 20,000 random inputs.

    Needs an output layer with a bias, inputs of numbers, ten clients for two clusters, and
    ``context.learning_rate``, the server's: a client's model is one step by its update. Cost:
    n draws samples forward passes, which dominate, n^2 for each clustering and four reads of the
    matrix. Fails: attackers who train on many classes; a majority of similar backdoors.
    Rieger, Nguyen, Miettinen, Sadeghi, "DeepSight: mitigating backdoor attacks in federated
    learning through deep model inspection", NDSS 2022.

    >>> DeepSight().makes_inputs
    True
    """

    name = "deepsight"
    suspects: Scalar = field(default=1 / 3, above=0, at_most=1)
    """Share of suspects from which a cluster is rejected."""
    smallest: int = field(default=5, at_least=2)
    """Least clients of a cluster."""
    neighbours: int = field(default=3, at_least=1)
    """How many others must be near for a client to be in a dense place."""
    draws: int = field(default=3, at_least=1)
    """How often random inputs are drawn."""
    samples: int = field(default=256, at_least=1)
    """Random inputs of each draw."""
    needs_segments = capability(True)
    makes_inputs = capability(True)
    follows_model = capability(True)
    accepts_absent = capability(True)

    def check_segments(self, segments: Segments) -> None:
        super().check_segments(segments)
        _output_layer(segments)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        self.check_segments(context.segments)
        usable = usable_rows(updates, context)
        dtype = rows.accumulator(updates.dtype)
        bias, kernel = (
            jnp.where(usable[:, None], updates[:, s.offset : s.end], 0).astype(dtype)
            for s in _output_layer(context.segments)
        )
        shares = energy_shares(bias, kernel)
        suspect = usable & self._suspect(shares, usable)
        apart = [
            self._apart(_cosine_distances(bias), usable),
            self._apart(_distances(shares), usable),
            self._by_answers(updates, usable, context),
        ]
        mean = (apart[0] + apart[1] + apart[2]) / 3
        labels = density_clusters(mean, usable, self.smallest, self.neighbours, whole=True)
        same = _together(labels)
        rejected = jnp.sum(same & suspect[None, :], axis=1)
        limit = jnp.asarray(self.suspects, dtype) * jnp.sum(same, axis=1)
        accepted = (labels >= 0) & (rejected < limit)
        norms = rows.safe_sqrt(jnp.where(usable, rows.squared_norms(updates), 0))
        most = rows.masked_median(norms, usable)
        shrink = rows.clip_factors(norms, most)
        weights = shrink * accepted / jnp.maximum(jnp.sum(accepted), 1)
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        update = rows.combine(weights, updates, none, jnp.all(usable))
        info = Info(selected=accepted, weights=weights)
        return Aggregated(update=update, state=state, info=info)

    def _suspect(self, shares: Float[Array, "n p"], usable: Bool[Array, " n"]) -> Bool[Array, " n"]:
        """Clients with at most half as many large shares as the median client."""
        least = max(0.01, 1 / shares.shape[1]) * jnp.max(shares, axis=1, keepdims=True)
        many = jnp.sum(shares > least, axis=1).astype(shares.dtype)
        return many <= rows.masked_median(many, usable) / 2

    def _apart(
        self, distances: Float[Array, "n n"], usable: Bool[Array, " n"]
    ) -> Float[Array, "n n"]:
        """1 for two clients that are not in one cluster, and for one that is in none."""
        labels = density_clusters(distances, usable, self.smallest, self.neighbours)
        return 1 - _together(labels).astype(distances.dtype)

    def _by_answers(
        self, updates: Float[Array, "n d"], usable: Bool[Array, " n"], context: Context
    ) -> Float[Array, "n n"]:
        """The share of the draws in which two clients' answers are apart."""
        inputs = self._inputs(context)
        rate = context.learning_rate.astype(rows.accumulator(updates.dtype))
        quotients = _quotients(updates, rate, inputs, context)
        each = jax.vmap(lambda q: self._apart(_distances(q), usable), in_axes=1)(quotients)
        return jnp.mean(each, axis=0)

    def _inputs(self, context: Context) -> Float[Array, "draws samples ..."]:
        sample = context.sample
        assert sample is not None
        if not jnp.issubdtype(sample.dtype, jnp.floating):
            raise ValueError(
                f"DeepSight needs inputs of numbers, such as images; got inputs of {sample.dtype}"
            )
        shape = (self.draws, self.samples, *sample.shape)
        return jax.random.uniform(context.key, shape, sample.dtype)


def _output_layer(segments: Segments) -> tuple[Segment, Segment]:
    """The output layer's bias and kernel."""
    bias = [s for s in segments if s.last and s.kind == "bias"]
    kernel = [s for s in segments if s.last and s.kind == "kernel"]
    if len(bias) != 1 or len(kernel) != 1:
        raise ValueError(
            "DeepSight needs a model with one output layer, a kernel and a bias; got the output "
            f"parameters {', '.join(s.name for s in segments if s.last) or 'none'}"
        )
    return bias[0], kernel[0]


def energy_shares(bias: Float[Array, "n p"], kernel: Float[Array, "n hp"]) -> Float[Array, "n p"]:
    """Of each output neuron its share of the squared energies; 0 where nothing changed."""
    n, p = bias.shape
    energy = jnp.abs(bias) + jnp.sum(jnp.abs(kernel.reshape(n, -1, p)), axis=1)
    energy = jnp.square(rows.safe_ratio(energy, jnp.max(energy, axis=1, keepdims=True)))
    return rows.safe_ratio(energy, jnp.sum(energy, axis=1, keepdims=True))


def _quotients(
    updates: Float[Array, "n d"],
    rate: Float[Array, ""],
    inputs: Float[Array, "draws samples ..."],
    context: Context,
) -> Float[Array, "n draws p"]:
    """Of each class the mean quotient of the client's probability and the server's."""
    assert context.params is not None
    params = context.params.astype(rate.dtype)
    model_state = {} if context.model_state is None else context.model_state

    def answers(flat: Array, model_state: PyTree, inputs: Array) -> Array:
        objective, params = context.objective, context.objective.unravel(flat)

        def answer(sample: Array) -> Array:
            logits = objective.logits(params, model_state, sample[None])[0]
            return jax.nn.softmax(logits.astype(rate.dtype))

        return jax.lax.map(answer, inputs, batch_size=objective.at_once)

    def one(shared: PyTree, row: Array) -> Array:
        params, rate, model_state, inputs, before = shared
        flat = params - rate * row.astype(params.dtype)

        def of_draw(drawn: tuple[Array, Array]) -> Array:
            x, server = drawn
            return jnp.mean(answers(flat, model_state, x) / (server + 1e-6), axis=0)

        return jax.lax.map(of_draw, (inputs, before))

    before = jax.lax.map(lambda x: answers(params, model_state, x), inputs)
    shared = (params, rate, model_state, inputs, before)
    return map_clients(one, *jax.lax.stop_gradient((shared, updates)), chunk=context.client_chunk)


def _together(labels: Int[Array, " n"]) -> Bool[Array, "n n"]:
    """Which two clients are in one cluster."""
    return (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]


def _cosine_distances(points: Float[Array, "n p"]) -> Float[Array, "n n"]:
    points = rows.safe_ratio(points, jnp.max(jnp.abs(points), axis=1, keepdims=True))
    norms = rows.safe_sqrt(rows.squared_norms(points))[:, None]
    unit = rows.safe_ratio(points, norms)
    distances = 1 - jnp.matmul(unit, unit.T, precision="highest")
    return _rounded(distances, jnp.ones_like(norms))


def _distances(points: Float[Array, "n p"]) -> Float[Array, "n n"]:
    away = points[:, None] - points[None]
    size = jnp.max(jnp.abs(points), axis=1, keepdims=True)
    return _rounded(rows.safe_sqrt(rows.squared_norms(away)), jnp.maximum(size, size.T))


def _rounded(distances: Float[Array, "n n"], size: Array) -> Float[Array, "n n"]:
    """Distances that may be nothing but rounding of numbers of this size are 0."""
    least = 32 * jnp.finfo(distances.dtype).eps * size
    return jnp.where(distances > least, distances, 0)
