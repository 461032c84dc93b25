"""What a mechanism of differential privacy is to the rest: hooks, and what it declares.

The round, the accountants and the audits know mechanisms by these hooks alone. A hook that a
class leaves out changes nothing; what a run releases, and in which words that is guaranteed, every
class must say itself, or it is refused before anything runs.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.clients import ClientAlgorithm, Samples
from jaxfl.component import Component, Scalar, capability, changed_since, field
from jaxfl.contracts import asked, expect, expect_like, name_of, own_code
from jaxfl.models.objective import Objective
from jaxfl.models.per_example import check_per_example
from jaxfl.numerics.noise import laplace, normal
from jaxfl.numerics.rows import Rows
from jaxfl.privacy.deployment import (
    ATTACK_FIRST,
    LAPLACE,
    NOISE_FIRST,
    OVERHEARD,
    SAID_OPENLY,
    STEP,
    Deployment,
    Release,
    Turn,
)
from jaxfl.types import State


class Privacy(Component):
    """A mechanism of differential privacy. Abstract.

    ``noise_multiplier`` is the noise in units of the clip; 0 is no noise and no privacy. Instead
    of it, ``epsilon`` may be given: ``jaxfl.accounting.calibrate`` then finds the least noise that
    keeps a run of known length within (epsilon, delta), and runs by ``simulate`` or from a file
    do so by themselves.

    A class of one's own overrides at least one of ``objective``, ``message`` and ``release``,
    which add noise, and declares ``protects``, ``trusts``, ``neighbours`` and ``releases``; one
    that changes a hook of another mechanism declares ``releases`` anew. ``check`` refuses others.

    >>> jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=2.0).on_messages
    True
    """

    noise_multiplier: Scalar | None = field(default=None, at_least=0)
    """Noise in units of the clip; none: no noise, or as much as ``epsilon`` takes."""
    epsilon: float | None = field(default=None, above=0)
    """Target; only without ``noise_multiplier``."""
    delta: float = field(default=1e-5, above=0, below=1)
    """Of the guarantee (epsilon, delta)."""
    discretisation: float = field(default=STEP, above=0, below=1)
    """Step of the privacy loss distributions by which epsilon is computed, and noise found for
    one; always rounded up: a smaller one is tighter and takes longer."""

    protects = capability("")
    """Whose data: ``EXAMPLE``, ``MESSAGE``, ``CLIENT``, or what it is in words."""
    trusts = capability("")
    """Whom the guarantee trusts, and against whom it protects, in words."""
    hides_cohort = capability(False)
    """Whether who takes part is part of the secret: the server's step then sees the expected
    share of clients, not the true one."""

    @capability
    def reach(self) -> Scalar | None:
        """The largest norm that what is protected can have in the first round: the clip; None
        where there is none. Audits plant what is as large, or ten times so.
        """
        return None

    norm = capability(2)
    """The order of that norm: 1 for the sum of magnitudes."""

    streams = capability(True)
    """``bound`` takes updates that are never all held; who overrides it declares it anew."""

    NOISING: ClassVar[tuple[str, ...]] = ("objective", "message", "release")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_multiplier is not None and self.epsilon is not None:
            raise ValueError(
                f"{type(self).__name__}: give noise_multiplier or epsilon, not both; got "
                f"{self.noise_multiplier} and {self.epsilon}"
            )

    @property
    def calibrated(self) -> bool:
        """Whether the noise is known; otherwise ``epsilon`` says what it should reach."""
        return self.epsilon is None

    @property
    def bounds(self) -> bool:
        """Whether the server bounds what it receives, as noise on the aggregate needs."""
        return type(self).bound is not Privacy.bound

    @property
    def on_messages(self) -> bool:
        """Whether it works on messages, so that it can come before or after the attack."""
        return type(self).message is not Privacy.message

    @property
    def noises_aggregate(self) -> bool:
        """Whether it works on the aggregate; noise is then taken to be there, not on messages."""
        return type(self).release is not Privacy.release

    def check_declared(self) -> None:
        """Raises ValueError where the class adds no noise or does not say what it releases."""
        name = type(self).__name__
        if all(getattr(type(self), hook) is getattr(Privacy, hook) for hook in self.NOISING):
            raise ValueError(
                f"{name} overrides none of {', '.join(self.NOISING)}: it would add no noise"
            )
        multiplier = asked(self, "multiplier") if self.calibrated else 0.0
        if not isinstance(multiplier, int | float | np.number | np.ndarray | Array):
            raise ValueError(
                f"{name}.multiplier returned {type(multiplier).__name__}; needs a number"
            )
        missing = [what for what in ("protects", "trusts") if not getattr(self, what)]
        if missing:
            raise ValueError(f"{name} does not declare {' and '.join(missing)}")
        changed = changed_since(type(self), "releases")
        if changed:
            raise ValueError(
                f"{name} changes {' and '.join(changed)} and does not declare what it releases: "
                "define releases in the same class"
            )

    def check(self, algorithm: ClientAlgorithm, noise_order: str, expected: int) -> None:
        """Raises ValueError where the mechanism does not go with the other parts.

        ``expected`` is the number of clients that a round has on average.
        """
        if noise_order == ATTACK_FIRST and not self.on_messages:
            raise ValueError(
                f"noise_order is of a mechanism on messages and the attack; with "
                f"{type(self).__name__} it must be {NOISE_FIRST}; got {ATTACK_FIRST}"
            )

    def check_model(self, objective: Objective) -> None:
        """Raises ValueError where the mechanism cannot cover the model."""
        check_per_example(objective)

    # What it does, from the client's data to the model; each the identity by default.

    def init(self, dim: int) -> State:
        """The server's memory at the start of a run, for messages of so many numbers."""
        return ()

    def multiplier(self) -> Scalar:
        """The noise multiplier; 0 where none was given."""
        return 0.0 if self.noise_multiplier is None else self.noise_multiplier

    def threshold(self, state: State) -> Float[Array, ""]:
        """The server's clip of this round; NaN where there is none."""
        return jnp.full((), jnp.nan)

    def objective(
        self, objective: Objective, count: Int[Array, ""], batch_size: int | None
    ) -> Objective:
        """The objective of a client with ``count`` samples, as its algorithm sees it."""
        return objective

    def samples(self, samples: Samples) -> Samples:
        """The client's samples, drawn as the mechanism draws them."""
        return samples

    def message(
        self,
        message: Float[Array, " d"],
        key: Key[Array, ""],
        crafted: Bool[Array, ""] | bool = False,
    ) -> Float[Array, " d"]:
        """One client's message as it is sent.

        Args:
          message: a client's update; where the attack comes first, what it made of it.
          key: this client's, of this round.
          crafted: whether an attacker made it.
        """
        return message

    def crafted(self, message: Float[Array, " d"]) -> Float[Array, " d"]:
        """What the server takes a message for that was crafted after the mechanism."""
        return message

    def bound(self, sent: Rows, state: State) -> tuple[Rows, State]:
        """All messages as the server bounds them, and what ``release`` must know of them."""
        return sent, ()

    def release(
        self,
        aggregate: Float[Array, " d"],
        seen: State,
        turn: Turn,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        """The aggregate as it leaves the server, and the new memory."""
        return aggregate, state

    def checked(self, hook: str, *given: Any) -> Any:
        """What a hook answers, looked at as it is traced: the like of what it was first given.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        name = f"{name_of(self)}.{hook} returned"
        with own_code(self, f".{hook}"):
            got = getattr(self, hook)(*given)
            first, memory = got if hook in ("bound", "release") else (got, ())
        kind = {"objective": Objective, "samples": Samples}.get(hook)
        if hook == "threshold":
            expect(name, first, (), "the server's clip")
        elif kind is None:
            expect(name, first, given[0].shape, "as it was given")
        elif not isinstance(first, kind):
            raise ValueError(f"{name} {type(first).__name__}; needs {kind.__name__}")
        if hook == "release":
            expect_like(f"{name} the memory", memory, given[3])
        return got

    # What that amounts to.

    def declared(self, run: Deployment) -> Sequence[Release]:
        """``releases``, whose answer is looked at.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        found = asked(self, "releases", run)
        each = found if isinstance(found, Sequence) else [found]
        wrong = [type(one).__name__ for one in each if not isinstance(one, Release)]
        if wrong:
            raise ValueError(f"{name_of(self)}.releases returned {wrong[0]}; needs Releases")
        return each

    @abc.abstractmethod
    def releases(self, run: Deployment) -> Sequence[Release]:
        """What a run releases about each kind of client; empty where no noise bounds it."""

    @abc.abstractmethod
    def neighbours(self, run: Deployment) -> str:
        """Between which neighbouring runs the guarantee is, in words."""

    def replaces(self, run: Deployment) -> bool:
        """Whether neighbours differ by one replaced by another, rather than by nothing."""
        return False

    def caveats(self, run: Deployment) -> tuple[str, ...]:
        """What is not guaranteed in such a run, besides noise that is missing."""
        local = type(self).objective is not Privacy.objective or self.on_messages
        clean = self.noises_aggregate or not local or run.noise_order == ATTACK_FIRST
        overheard = (OVERHEARD,) if clean and run.overheard else ()
        return (*overheard, *((SAID_OPENLY,) if run.fairness else ()))


def clipped(
    value: Float[Array, " d"], clip: Float[Array, ""], order: int = 2
) -> Float[Array, " d"]:
    """``value`` scaled down to norm ``clip``; zero where its norm is not finite."""
    largest = jnp.max(jnp.abs(value), initial=0)
    # Squares of large float32 overflow; a power of two scales without rounding.
    scale = jnp.where(largest > 2.0**30, jnp.asarray(2.0**-80, value.dtype), 1)
    small = value * scale
    norm = jnp.sum(jnp.abs(small)) if order == 1 else jnp.sqrt(jnp.sum(jnp.square(small)))
    bounded = small * (clip / jnp.where(norm > 0, norm, 1))
    return jnp.where(jnp.isfinite(largest), jnp.where(norm > clip * scale, bounded, value), 0)


def draw(kind: str, key: Key[Array, ""], like: Float[Array, " d"]) -> Float[Array, " d"]:
    """Noise of scale 1: standard deviation for a Gaussian, parameter b for a Laplacian."""
    sample = laplace if kind == LAPLACE else normal
    return sample(key, like.shape, like.dtype)
