"""Results of cells that were kept: nothing of their curves, of their ends what was kept."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from jaxfl.experiments.cells import Cell
from jaxfl.experiments.conclusions import refer
from jaxfl.experiments.from_log import not_run
from jaxfl.experiments.kept import Cell as KeptCell
from jaxfl.experiments.kept import Kept
from jaxfl.experiments.results import Result


@dataclasses.dataclass(frozen=True)
class Recalled(Result):
    """A result whose only evaluation is the last; what depends on others is as it was kept."""

    kept: KeptCell = dataclasses.field(kw_only=True)

    @property
    def status(self) -> str:
        return self.kept.status

    @property
    def bests(self) -> np.ndarray:
        return np.nan_to_num(self.kept.best)

    @property
    def planted(self) -> float:
        return self.kept.planted

    @property
    def lifespan(self) -> float:
        return self.kept.lifespan

    @property
    def outlived(self) -> float:
        return self.kept.outlived

    def of_clients(self, name: str) -> float:
        return self.kept.clients.get(name, math.nan)


def results_of(kept: Kept) -> list[Result]:
    """The results of the cells that are kept, in the order of the experiment.

    Raises:
      ValueError: a cell was tuned to a candidate that there is not.
    """
    here = {frozenset(cell.labels.items()): cell for cell in kept.cells}
    wanted = ((cell, frozenset(cell.labels.items())) for cell in kept.experiment.cells)
    return refer([_recalled(cell, here[key]) for cell, key in wanted if key in here])


def _recalled(cell: Cell, kept: KeptCell) -> Result:
    if not kept.last:
        return not_run(cell, kept.status)
    candidates, seeds = len(cell.federations), len(kept.last)
    if kept.candidate not in range(candidates):
        raise ValueError(f"{kept.labels}: of {candidates} candidates none is {kept.candidate}")

    def at_end(values: ArrayLike) -> np.ndarray:
        """Of each seed, or of all of them one, as if every candidate had it."""
        return np.broadcast_to(np.reshape(values, (1, -1, 1)), (candidates, seeds, 1))

    losses = kept.losses or np.zeros(seeds)
    return Recalled(
        cell=cell,
        reason=None,
        rounds=np.zeros(0, int),
        test=at_end(kept.last),
        validation=None,
        losses=at_end(losses)[..., 0],
        shares=np.tile([kept.honest_selected, kept.malicious_selected, np.nan], (candidates, 1)),
        seconds=kept.seconds,
        success=at_end(kept.success) if kept.success else None,
        epsilons=np.nan_to_num(kept.epsilon * candidates, nan=np.inf) if kept.epsilon else None,
        chosen=kept.candidate,
        running=kept.running,
        kept=kept,
    )
