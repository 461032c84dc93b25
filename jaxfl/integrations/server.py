"""The server's half of a round whose clients run elsewhere."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators import Aggregator
from jaxfl.arguments import integer, seed_of
from jaxfl.integrations.layout import Arrays, Layout, aligned_zeros, check_answer
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.types import Context, Info, PyTree, Spec, State

Root = Callable[[dict[str, np.ndarray]], Arrays]
"""What a client with the server's own samples makes of the model that was sent."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a round came to."""

    model: dict[str, np.ndarray]
    info: Info
    """Why, per client of the round, as NumPy arrays ``[n]``."""


class RobustServer:
    """Turns the models that clients send back into the server's next model.

    A client's update is the model that was sent minus the one that came back. The rule aggregates
    the updates, the optimizer takes the step, as in a round of jaxfl. Rules that can leave out
    absent clients are compiled for full rounds and once for all smaller ones, which are padded; a
    larger round than all before compiles anew. Other rules compile once for each number of clients.

    Floats are aggregated, in float32 (float64 where JAX's x64 is on), batch statistics among them.
    Of arrays of integers and truth values the server takes the lower median over the clients.
    A client's NaN are data, which rules drop. Rules that look at layers (``PerLayer``) find them by
    the arrays' names: what is before the last dot is the layer.

    Args:
      aggregator: the rule; a ``Pipeline`` for pre-aggregators before it.
      optimizer: of the server; SGD with rate 1 unless given, which takes the aggregate as it is.
      slots: clients in the largest round to come; the largest so far unless given.
      population: clients in all, for rules that remember each; ``slots`` unless given.
      root: for rules that need an update from the server's own samples (FLTrust).
      seed: of what rules draw.

    Raises:
      ValueError: the rule needs ``root`` and there is none, or needs jaxfl's own models.

    >>> from jaxfl.integrations.server import RobustServer
    >>> server = RobustServer(jaxfl.Median())
    >>> sent = {"w": np.zeros(2, np.float32)}
    >>> back = [{"w": np.full(2, x, np.float32)} for x in (1.0, 2.0, 90.0)]
    >>> server.step(sent, back).model["w"].tolist()
    [2.0, 2.0]
    """

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        optimizer: Optimizer | None = None,
        slots: int | None = None,
        population: int | None = None,
        root: Root | None = None,
        seed: int = 0,
    ) -> None:
        name = type(aggregator).__name__
        if "batch" in aggregator.needs_root or aggregator.makes_inputs:
            raise ValueError(f"{name} evaluates jaxfl's own models; it cannot judge other ones")
        if ("update" in aggregator.needs_root) != (root is not None):
            has = "needs" if root is None else "does not use"
            raise ValueError(f"{name} {has} root=..., a function of the model that was sent")
        self.aggregator = aggregator
        self.optimizer = SGD(learning_rate=1.0) if optimizer is None else optimizer
        self.root = root
        self._slots = 0 if slots is None else integer(slots, "slots", 1)
        self._fixed = slots is not None
        self._population = None if population is None else integer(population, "population", 1)
        self._key = jax.random.key(seed_of(seed))
        self.reset()

    def reset(self) -> None:
        """Forgets all rounds; compiled programs stay."""
        self._round = 0
        self._layout: Layout | None = None
        self._rows: np.ndarray | None = None
        self._memory: tuple[State, PyTree] | None = None
        self._spec: Spec | None = None
        self._ids: dict[Hashable, int] = {}

    def step(
        self,
        before: Arrays,
        after: Sequence[Arrays],
        *,
        ids: Sequence[Hashable] | None = None,
        samples: Sequence[int | float] | None = None,
    ) -> Answer:
        """Takes the server's step of one round.

        Args:
          before: the model that was sent.
          after: the models that came back, n of them.
          ids: whose they are; their places in ``after`` unless given.
          samples: how many samples each client has; equal unless given. Numbers that are negative
            or not finite count as 0.

        Raises:
          ValueError: no model came back, too few for the rule or more than ``slots``, one of other
            shapes, no finite update, or parameters of the server that are or become not finite.
        """
        where, n = f"round {self._round + 1}", len(after)
        if n == 0:
            raise ValueError(f"{where}: no client sent a model back; there is nothing to aggregate")
        ids = range(n) if ids is None else ids
        self.aggregator.check(n)
        layout = self._layout = self._layout or Layout.of(before)
        layout.check(before, f"{where}: the model that was sent")
        for client, model in zip(ids, after, strict=True):
            layout.check(model, f"{where}: client {client}")
        self.aggregator.check_segments(layout.segments)
        dtype = np.dtype(jnp.zeros(0, float).dtype)
        sent = layout.vector(before, dtype)
        layout.check_sent(np.isfinite(sent), where, dtype)
        spec = self._make_room(n, layout, dtype)
        root_update = self._root_update(before, sent)
        params, moved, memory, info = self._compute(
            sent, after, spec, self._places(ids), _shares(samples, n), root_update
        )
        found = layout.model(params, layout.medians(after))
        assert self._rows is not None
        check_answer(
            (bool(np.isfinite(row).all()) for row in self._rows[:n]),
            moved=moved,
            alive=layout.alive(found),
            where=where,
            what=f"{type(self.aggregator).__name__}, {self.optimizer}",
        )
        # A round that was refused leaves no trace.
        self._round, self._memory = self._round + 1, memory
        return Answer(found, info)

    def _make_room(self, n: int, layout: Layout, dtype: np.dtype) -> Spec:
        """The sizes of this round's program; rows and memories are made where they are new."""
        if self._fixed and n > self._slots:
            raise ValueError(f"a round has at most slots = {self._slots} clients; got {n}")
        self._slots = max(self._slots, n)
        cohort = self._slots if self.aggregator.accepts_absent else n
        population = self._population or self._slots
        spec = Spec(
            population=population,
            cohort=cohort,
            dim=layout.dim,
            dtype=dtype,
            segments=layout.segments,
        )
        if spec == self._spec:
            return spec
        fresh = (
            self.aggregator.init(spec),
            self.optimizer.transform().init(jnp.zeros((spec.dim,), dtype)),
        )
        if self._memory is None:
            self._memory = fresh
        elif jax.tree.map(jnp.shape, self._memory) != jax.tree.map(jnp.shape, fresh):
            name = type(self.aggregator).__name__
            raise ValueError(f"{name} remembers clients: give slots=..., population=... at first")
        self._spec, self._rows = spec, aligned_zeros((cohort, spec.dim), dtype)
        return spec

    def _places(self, ids: Sequence[Hashable]) -> Sequence[int]:
        """The clients' numbers, in the order in which they were first seen."""
        if not self.aggregator.by_client:
            return range(len(ids))
        for client in ids:
            self._ids.setdefault(client, len(self._ids))
        most = self._population or self._slots
        if len(self._ids) > most:
            raise ValueError(
                f"{type(self.aggregator).__name__} remembers {most} clients, and {len(self._ids)} "
                "have been seen: give population=..."
            )
        return [self._ids[client] for client in ids]

    def _compute(
        self,
        sent: np.ndarray,
        after: Sequence[Arrays],
        spec: Spec,
        places: Sequence[int],
        shares: np.ndarray,
        root_update: np.ndarray | None,
    ) -> tuple[np.ndarray, bool, tuple[State, PyTree], Info]:
        """The next parameters, whether the rule moved any, what it and the optimiser remember,
        and its reasons for the n clients.
        """
        assert self._layout is not None
        assert self._rows is not None
        n, rows = len(after), self._rows
        with ThreadPoolExecutor() as pool:
            list(pool.map(partial(self._layout.subtract, sent), after, rows))
        rows[n:] = 0
        absent = (0, spec.cohort - n)
        # Full rounds have a program of their own: a median of all rows takes half the time.
        present = None if n == spec.cohort else jnp.arange(spec.cohort) < n
        context = Context(
            key=jax.random.fold_in(self._key, self._round),
            round=jnp.int32(self._round),
            weights=jnp.asarray(np.pad(shares, absent), jnp.float32),
            client_ids=jnp.asarray(
                np.pad(places, absent, constant_values=spec.population), jnp.int32
            ),
            learning_rate=self.optimizer.rate(jnp.int32(self._round)),
            present=present,
            root_update=None if root_update is None else jnp.asarray(root_update),
            segments=spec.segments,
        )
        parts = self.aggregator, self.optimizer
        params, moved, memory, info = jax.block_until_ready(
            _step(parts, rows, sent, self._memory, context)
        )
        info = jax.tree.map(lambda x: np.asarray(x)[:n], info)
        return np.asarray(params), bool(moved), memory, info

    def _root_update(self, before: Arrays, sent: np.ndarray) -> np.ndarray | None:
        """What the server's own samples make of the model, as an update."""
        if self.root is None:
            return None
        assert self._layout is not None
        model, update = self.root(dict(before)), np.empty_like(sent)
        self._layout.check(model, "root's model")
        self._layout.subtract(sent, model, update)
        return update


@jax.jit
def _step(
    parts: tuple[Aggregator, Optimizer],
    rows: Float[Array, "n d"],
    sent: Float[Array, " d"],
    memory: tuple[State, PyTree],
    context: Context,
) -> tuple[Float[Array, " d"], Bool[Array, ""], tuple[State, PyTree], Info]:
    """The second half of a round, as ``jaxfl.round`` takes it."""
    (aggregator, optimizer), (state, optimizer_state) = parts, memory
    result = aggregator.checked(rows, state, context.replace(params=sent))
    update = result.update.astype(sent.dtype)
    change, optimizer_state = optimizer.transform().update(update, optimizer_state, sent)
    params: Any = optax.apply_updates(sent, change)
    return params, jnp.any(update != 0), (result.state, optimizer_state), result.info


def _shares(samples: Sequence[int | float] | None, n: int) -> np.ndarray:
    """Each client's share in all samples, which sum to 1."""
    counts = np.ones(n) if samples is None else np.asarray(samples, np.float64)
    counts = np.where(np.isfinite(counts) & (counts > 0), counts, 0)
    total = counts.sum()
    return counts / total if 0 < total < np.inf else np.full(n, 1 / n)
