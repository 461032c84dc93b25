"""Attacks that craft messages from what is sent honestly."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.attacks.base import (
    Attack,
    AttackView,
    Defence,
    honest_mean,
    honest_mean_and_std,
    own_rows,
)
from jaxfl.component import Scalar, field
from jaxfl.types import State


class Gaussian(Attack):
    """Independent ``N(mean, std^2)`` noise in every coordinate instead of an update.

    Knows nothing. Xu et al., "Byzantine-robust federated learning through collaborative
    malicious gradient filtering", ICDCS 2022 (there "random", std 0.5).
    """

    mean: Scalar = field(default=0.0)
    std: Scalar = field(default=0.5, at_least=0)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        shape = (view.attackers.shape[0], updates.shape[1])
        noise = jax.random.normal(key, shape, jnp.promote_types(updates.dtype, jnp.float32))
        mean, std = jnp.asarray(self.mean, noise.dtype), jnp.asarray(self.std, noise.dtype)
        return mean + std * noise, state


class SignFlip(Attack):
    """Each attacker sends the negative of its own honest update. Knows only itself.

    Norms stay as they are, so no screening by norm can see it.
    """

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        return -own_rows(updates, view), state


class ALIE(Attack):
    """A little is enough: all attackers send ``mean + sign * z * std`` of the honest updates.

    Knows all honest updates. ``z_max`` gives the paper's z from n and m.
    Baruch, Baruch, Goldberg, "A little is enough", NeurIPS 2019.
    """

    z: Scalar = field(default=1.0)
    sign: int = field(default=-1, choices=(-1, 1))

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "1 d"], State]:
        mean, std = honest_mean_and_std(updates, view)
        return (mean + self.sign * jnp.asarray(self.z, mean.dtype) * std)[None], state


def z_max(n: int, m: int) -> float:
    """ALIE's largest z at which the attackers still hide among the honest, never below 0.

    ``Phi^-1((n - floor(n/2 + 1)) / (n - m))``: enough honest clients lie farther out to give the
    attackers a majority on their side.
    """
    if not 0 <= m < n:
        raise ValueError(f"z_max needs 0 <= m < n; got n = {n}, m = {m}")
    share = (n - (n // 2 + 1)) / (n - m)
    return max(0.0, float(jax.scipy.stats.norm.ppf(share)))


class IPM(Attack):
    """Inner-product manipulation: all attackers send ``-scale`` times the honest mean.

    Knows all honest updates. A small scale (0.1) defeats distance-based rules where the variance
    is large; a scale above h / m turns the mean itself around.
    Xie, Koyejo, Gupta, "Fall of empires", UAI 2019 (where the scale is called epsilon).
    """

    scale: Scalar = field(default=0.1, at_least=0)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "1 d"], State]:
        mean = honest_mean(updates, view)
        return -jnp.asarray(self.scale, mean.dtype) * mean[None], state
