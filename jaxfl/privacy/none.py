"""No privacy: the mechanism that does nothing."""

from collections.abc import Sequence

from jaxfl.clients import ClientAlgorithm
from jaxfl.component import capability
from jaxfl.models.objective import Objective
from jaxfl.privacy.base import Privacy
from jaxfl.privacy.deployment import NOTHING, Deployment, Release


class NoPrivacy(Privacy):
    """No mechanism: updates are sent and aggregated as they are.

    >>> NoPrivacy().protects
    'nothing'
    """

    name = "none"
    protects = capability(NOTHING)
    trusts = capability("trusts everybody")

    def __post_init__(self) -> None:
        super().__post_init__()
        for given in ("noise_multiplier", "epsilon"):
            if getattr(self, given) is not None:
                raise ValueError(f"NoPrivacy adds no noise; got {given} = {getattr(self, given)}")

    def check_declared(self) -> None:
        """Nothing is promised; a class below this one that promises something is looked at."""
        if self._promises:
            super().check_declared()

    def check(self, algorithm: ClientAlgorithm, noise_order: str, expected: int) -> None:
        """Goes with everything."""
        if self._promises:
            super().check(algorithm, noise_order, expected)

    def check_model(self, objective: Objective) -> None:
        """Goes with every model."""
        if self._promises:
            super().check_model(objective)

    @property
    def _promises(self) -> bool:
        return self.protects != NOTHING or type(self).releases is not NoPrivacy.releases

    def releases(self, run: Deployment) -> Sequence[Release]:
        return ()

    def neighbours(self, run: Deployment) -> str:
        return "none"
