"""What a run leaves behind."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxfl.evaluation import Evaluation
from jaxfl.record import RoundRecord
from jaxfl.state import FederationState


@dataclasses.dataclass(frozen=True)
class History:
    """What a run leaves behind, as NumPy arrays; with several seeds they lead by a seed axis."""

    records: RoundRecord
    """One entry per round."""
    evaluations: Evaluation
    """One entry per evaluation."""
    state: FederationState
    simulation: Any = dataclasses.field(repr=False)
    """The ``Simulation`` that ran: to go on with, or to ask for the next round's messages."""

    @property
    def rounds(self) -> np.ndarray:
        """The rounds after which the model was evaluated."""
        return np.asarray(self.evaluations.round)

    @property
    def accuracy(self) -> np.ndarray:
        """Test accuracy at each evaluation."""
        return np.asarray(self.evaluations.accuracy)

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
