"""The parts of a federation, and whether they fit together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.attacks import Attack, NoAttack
from jaxfl.clients import ClientAlgorithm, FedSGD
from jaxfl.component import Component, field, promises
from jaxfl.fairness import Fairness
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.participation import Full, Participation, Uniform
from jaxfl.privacy import NoPrivacy, Privacy
from jaxfl.privacy.deployment import ATTACK_FIRST, NOISE_FIRST, NOTHING
from jaxfl.smoothing import CRFL


class Federation(Component):
    """The parts of a federation. Each is replaceable; numbers in them are leaves.

    >>> federation = Federation(aggregator=jaxfl.Krum(f=2), byzantine=2)
    >>> federation.replace(aggregator=jaxfl.Median()).aggregator
    Median(lower=False)
    """

    algorithm: ClientAlgorithm = FedSGD(batch_size=32)
    attack: Attack = NoAttack()
    aggregator: Aggregator = Mean()
    optimizer: Optimizer = SGD(learning_rate=0.1)
    participation: Participation = Full()
    privacy: Privacy = NoPrivacy()
    fairness: Fairness | None = None
    smoothing: CRFL | None = None
    """What the server does to its model before it sends it."""
    byzantine: int = field(default=0, at_least=0)
    """How many clients of the population are Byzantine; which ones, the seed decides."""
    byzantine_per_round: int | None = field(default=None, at_least=0)
    """How many of them are in every cohort of ``Uniform`` participation; None: as it happens.
    Fixing it changes what subsampling adds to privacy."""
    noise_order: str = field(default=NOISE_FIRST, choices=(NOISE_FIRST, ATTACK_FIRST))
    """The order of a mechanism on messages, such as ``MessagePrivacy``, and the attack.
    ``noise_then_attack``: all follow the mechanism, attackers then rewrite their messages; what
    they craft is neither clipped nor noised. ``attack_then_noise``: the attack works on clean
    updates, and every message, also a crafted one, is clipped and noised.
    ``MessagePrivacy.clip_byzantine`` overrides the clip."""

    def check(self, population: int, root: int = 0, rare: int = 0) -> None:
        """Raises ValueError where the parts do not fit together.

        Args:
          population: how many clients there are.
          root: how many samples the server has of its own.
          rare: how many samples only attackers have.
        """
        if self.byzantine > population:
            raise ValueError(
                f"byzantine must be at most the number of clients, {population}; "
                f"got {self.byzantine}"
            )
        leaves_slots = self.participation.leaves_slots(population)
        self._check_fixed(population)
        self._check_messages(population)
        cohort = self.participation.cohort(population)
        self.aggregator.check(cohort)
        if self.aggregator.needs_root and not root:
            raise ValueError(
                f"{self.aggregator} needs samples of the server's own: set root of the data, such "
                "as dataset.split(partition, clients, root=RootData(size=100)) or, in a file, "
                "data.root = {size = 100}"
            )
        if self.attack.needs_rare and not rare:
            raise ValueError(
                f"{self.attack} needs samples that only attackers have: set some apart, as "
                "dataset.set_apart(RareData(label=7)).split(...) or, in a file, "
                "data.rare = {label = 7}"
            )
        if self.attack.needs_root and "update" not in self.aggregator.needs_root:
            raise ValueError(
                f"{self.attack} works against a defence with an update of the server's own, such "
                f"as FLTrust; got {self.aggregator}"
            )
        if self.aggregator.needs_everybody and (leaves_slots or cohort < population):
            raise ValueError(
                f"{self.aggregator} compares what clients have sent in all rounds, so it does not "
                f"go with {type(self.participation).__name__} participation; use Full"
            )
        if leaves_slots and not self.aggregator.accepts_absent:
            raise ValueError(
                f"{self.aggregator} cannot leave out absent clients, so it does not go with "
                f"{type(self.participation).__name__} participation; use Full or Uniform"
            )

    def why_held(self) -> str | None:
        """Why a round must hold all updates at once, or None where it can stream them."""
        parts: list[tuple[Component, tuple[str, ...]]] = [
            (self.aggregator, ("aggregate", "aggregate_mixed")),
            (self.privacy, ("bound",)),
        ]
        if self.byzantine and self.attack.crafts:
            parts.append((self.attack, ("craft",)))
        for part, methods in parts:
            if not promises(part, "streams", *methods):
                return f"{type(part).__name__} needs all updates at once"
        if not promises(self.algorithm, "post_processes"):
            return f"{type(self.algorithm).__name__} reads the messages at the server too"
        return None

    @property
    def private(self) -> bool:
        """Whether there is a mechanism of differential privacy."""
        return self.privacy.protects != NOTHING

    def check_privacy(self, population: int) -> None:
        """Raises ValueError where the mechanism does not go with the parts that it depends on."""
        expected = self.participation.expected(population)
        self.privacy.check_declared()  # by itself: a class may have a ``check`` of its own
        self.privacy.check(self.algorithm, self.noise_order, expected)
        covered = self.privacy.noises_aggregate or self.privacy.hides_cohort
        if self.private and covered and not promises(self.algorithm, "post_processes"):
            raise ValueError(
                f"{type(self.algorithm).__name__}: its server's half may know clients otherwise "
                f"than by the aggregate, which is all that {type(self.privacy).__name__} covers; "
                "where it does not, the class declares post_processes = capability(True)"
            )

    def _check_messages(self, population: int) -> None:
        algorithm, name = self.algorithm, type(self.algorithm).__name__
        follower = next((p for p in (self.aggregator, self.attack) if p.follows_model), None)
        if self.aggregator.needs_segments:
            follower = self.aggregator
        if algorithm.width > 1 and follower is not None:
            raise ValueError(
                f"{name} sends more than a model, which {follower} compares messages with"
            )
        if self.fairness is not None and algorithm.width > 1:
            raise ValueError(f"{name} sends more than an update, which fairness cannot weigh")
        if self.fairness is not None:
            self.fairness.check(population)
        self.check_privacy(population)

    def _check_fixed(self, population: int) -> None:
        fixed, cohort = self.byzantine_per_round, self.participation.cohort(population)
        if fixed is None:
            return
        if not isinstance(self.participation, Uniform):
            raise ValueError(
                "byzantine_per_round goes with Uniform participation; got "
                f"{type(self.participation).__name__}"
            )
        least = max(0, cohort - (population - self.byzantine))
        if not least <= fixed <= min(self.byzantine, cohort):
            raise ValueError(
                f"byzantine_per_round must be from {least} to {min(self.byzantine, cohort)} with "
                f"{self.byzantine} Byzantine of {population} clients and a cohort of {cohort}; "
                f"got {fixed}"
            )

    def cohort(
        self, byzantine: Bool[Array, " K"], key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        """The clients of a round: ids, and which slots hold a client."""
        population = byzantine.shape[0]
        if self.byzantine_per_round is None:
            return self.participation.sample(population, key, turn)
        draw_key, order_key = jax.random.split(key)
        drawn = jax.random.permutation(draw_key, population)
        # Byzantine clients first, each kind in a random order.
        kinds = drawn[jnp.argsort(~byzantine[drawn], stable=True)]
        cohort, fixed = self.participation.cohort(population), self.byzantine_per_round
        first = jnp.arange(cohort)
        place = jnp.where(first < fixed, first, first - fixed + self.byzantine)
        return jax.random.permutation(order_key, kinds[place]).astype(jnp.int32), None
