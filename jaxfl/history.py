"""What a run leaves behind."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfl.evaluation import Evaluation, named
from jaxfl.files import write_aside
from jaxfl.record import RoundRecord
from jaxfl.state import FederationState


@dataclasses.dataclass(frozen=True)
class History:
    """What a run leaves behind, as NumPy arrays; with several seeds they lead by a seed axis.

    >>> data = jaxfl.data.digits().split(jaxfl.data.IID(), clients=10)
    >>> history = jaxfl.simulate(model=jaxfl.models.Softmax(), data=data, rounds=5)
    >>> history
    History(rounds 1 to 5, 1 seed, test accuracy 0...)
    >>> history.table()["round"].tolist()
    [1, 2, 3, 4, 5]
    """

    records: RoundRecord
    """One entry per round."""
    evaluations: Evaluation
    """One entry per evaluation."""
    state: FederationState
    simulation: Any
    """The ``Simulation`` that ran: to go on with, or to ask for the next round's messages."""

    def __repr__(self) -> str:
        seeds = self._by_seed(self.records.loss).shape[0]
        last = int(np.ravel(self.rounds)[-1])
        first = last - self.records.loss.shape[-1] + 1
        return (
            f"History(rounds {first} to {last}, {seeds} seed{'s' * (seeds > 1)}, "
            f"test accuracy {self.final_accuracy:.3f})"
        )

    @property
    def rounds(self) -> np.ndarray:
        """The rounds after which the model was evaluated."""
        return np.asarray(self.evaluations.round)

    @property
    def accuracy(self) -> np.ndarray:
        """Test accuracy at each evaluation."""
        return np.asarray(self.evaluations.accuracy)

    @property
    def test_accuracy(self) -> np.ndarray:
        """``accuracy``, by its name in tables and logs."""
        return self.accuracy

    @property
    def test_loss(self) -> np.ndarray:
        """Mean test loss at each evaluation."""
        return np.asarray(self.evaluations.loss)

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round, mean over seeds; NaN if one has diverged."""
        return float(np.mean(self.accuracy[..., -1]))

    @property
    def diverged(self) -> bool:
        """Whether, in any seed, parameters, last test loss or last accuracy are not finite.

        The loss counts because rules leave out rows that are not finite: parameters so large that
        no client can compute a gradient then stay where they are.
        """
        last = self.evaluations.loss[..., -1], self.evaluations.accuracy[..., -1]
        ends = np.asarray(self.state.params), *last
        return not all(bool(np.all(np.isfinite(x))) for x in ends)

    @property
    def model(self) -> nnx.Module:
        """The trained model, in evaluation mode (of the first seed)."""
        state = self.state
        if np.ndim(state.params) == 2:
            state = jax.tree.map(lambda x: x[0], state)
        return self.simulation.plan.objective.module(state.params, state.model_state)

    def table(self) -> dict[str, np.ndarray]:
        """All that was measured, as columns of equal length: a row for each seed and round.

        Columns are named as in a run folder's log: ``seed``, ``round``, the fields of a
        ``RoundRecord``, then ``test_accuracy`` and whatever else an evaluation measures, NaN in
        rounds without one. Accuracies of single clients stay in ``evaluations``.
        """
        losses = self._by_seed(self.records.loss)
        (seeds, rounds), ends = losses.shape, self._by_seed(self.rounds)
        first = ends[0, -1] - rounds + 1
        columns: dict[str, np.ndarray] = {
            "seed": np.repeat(self.simulation.seeds, rounds),
            "round": np.tile(np.arange(first, first + rounds), seeds),
        }
        columns |= {n: np.ravel(x) for n, x in vars(self.records).items() if x is not None}
        for name, values in named(self.evaluations).items():
            column = np.full((seeds, rounds), np.nan)
            column[:, ends[0] - first] = self._by_seed(values)
            columns[name] = np.ravel(column)
        return columns

    def to_dataframe(self) -> Any:
        """``table()`` as a pandas data frame.

        Raises:
          ImportError: pandas, which nothing else here needs, is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "to_dataframe needs pandas: pip install pandas; table() gives the same columns "
                "without it"
            ) from error
        return pandas.DataFrame(self.table())

    def plot(self) -> Any:
        """Test accuracy over rounds, as a Matplotlib figure: the mean over seeds and their range.

        Notebooks show the figure that a cell ends with; ``figure.savefig(path)`` writes it.
        """
        from matplotlib.figure import Figure

        accuracy = 100 * self._by_seed(self.accuracy)
        rounds = self._by_seed(self.rounds)[0]
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.plot(rounds, accuracy.mean(axis=0), linewidth=1.8)
        axis.fill_between(rounds, accuracy.min(axis=0), accuracy.max(axis=0), alpha=0.2)
        axis.set(xlabel="round", ylabel="test accuracy (%)", ylim=(0, 100))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        return figure

    def save(self, path: str | Path) -> None:
        """Writes all arrays to one ``.npz`` file, aside and renamed: whole or not at all.

        ``numpy.load(path)["records.loss"]`` reads them one by one; ``load`` reads them back.
        """
        content = io.BytesIO()
        arrays: dict[str, Any] = {name: _plain(leaf) for name, leaf in self._leaves()}
        np.savez(content, **arrays)
        write_aside(Path(path), content.getvalue())

    @staticmethod
    def load(path: str | Path, simulation: Any) -> "History":
        """The history that ``save`` wrote, and ``simulation`` in the state that it ended in.

        A file holds arrays and no code, so the parts are not in it: ``simulation`` is one made
        anew of the same parts, data and seeds, and goes on from where the saved run stopped.

        Raises:
          ValueError: the file is not of such a simulation.
        """
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        record, evaluation = simulation.measures()
        like = History(record, evaluation, simulation.state, simulation)
        names = [name for name, _ in like._leaves()]
        if set(names) != set(arrays):
            odd = ", ".join(sorted(set(names) ^ set(arrays))[:3])
            raise ValueError(f"{path} is no history of this simulation: it differs in {odd}")
        for name, leaf in like._leaves():
            if name.startswith("state") and arrays[name].shape != _plain(leaf).shape:
                raise ValueError(
                    f"{path} is no history of this simulation: {name} has shape "
                    f"{arrays[name].shape}, not {_plain(leaf).shape}"
                )
        treedef = jax.tree.structure((record, evaluation, simulation.state))
        leaves = [_as(arrays[name], leaf) for name, leaf in like._leaves()]
        records, evaluations, state = jax.tree.unflatten(treedef, leaves)
        simulation.state = jax.tree.map(jnp.copy, state)
        return History(records, evaluations, state, simulation)

    def _leaves(self) -> list[tuple[str, Any]]:
        parts = {"records": self.records, "evaluations": self.evaluations, "state": self.state}
        return [
            (name + jax.tree_util.keystr(path), leaf)
            for name, part in parts.items()
            for path, leaf in jax.tree_util.tree_leaves_with_path(part)
        ]

    def _by_seed(self, values: Any) -> np.ndarray:
        """``[seeds, ...]``, also of one seed."""
        values = np.asarray(values)
        return values if np.ndim(self.state.params) == 2 else values[None]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    """An array that NumPy can write: a key as its bits."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _as(array: np.ndarray, like: Any) -> Any:
    """What ``_plain`` made of something of the type of ``like``."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return array
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    # NumPy writes bfloat16 as bytes without a type.
    return jnp.asarray(array.view(like.dtype) if array.dtype.kind == "V" else array)
