"""CRFL: the server clips its model and noises what it sends, which a certificate builds on."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxfl.component import Component, Scalar, field
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal


class CRFL(Component):
    """After every round t = 1, 2, ... the server clips its model, and sends it on with noise.

    With whatever rule and optimiser made w: ``w <- w min(1, rho_t / |w|)``, the norm over all
    parameters and ``rho_t = min(most, start + growth t)``; in the next round all clients get, and
    the server steps from, ``w + noise N(0, I)``. The first model and the last are not noised, so
    ``evaluate`` judges the clipped model; running averages of normalisation are left alone. It is
    no mechanism of privacy. What it proves of the last model: ``jaxfl.certify``.

    Cost: a normal draw of the model's size. Breaks: a clip below the norm that the task needs
    keeps the model from learning, and noise hides what is smaller.
    Xie, Chen, Chen, Li, "CRFL: certifiably robust federated learning against backdoor attacks",
    ICML 2021.

    >>> CRFL().norm_after(jnp.array([1, 20, 200])).round(2).tolist()
    [2.0999999046325684, 4.0, 15.0]
    """

    name = "crfl"
    start: Scalar = field(default=2.0, above=0)
    """The largest norm of a model before the first round."""
    growth: Scalar = field(default=0.1, at_least=0)
    """How much it grows in a round."""
    most: Scalar = field(default=15.0, above=0)
    """Up to where."""
    noise: Scalar = field(default=0.01, at_least=0)
    """Standard deviation of what is added to every parameter."""

    def norm_after(self, rounds: Int[Array, "*n"] | int) -> Float[Array, "*n"]:
        """The largest norm of the model after so many rounds: rho_t."""
        start, growth, most = (jnp.asarray(x) for x in (self.start, self.growth, self.most))
        return jnp.minimum(most, start + growth * rounds)

    def clipped(self, params: Float[Array, " d"], rounds: Int[Array, ""]) -> Float[Array, " d"]:
        """The model as the server keeps it after so many rounds."""
        norm = rows.safe_sqrt(rows.squared_norms(params[None]))
        factor = rows.clip_factors(norm, self.norm_after(rounds).astype(norm.dtype))[0]
        return params * factor.astype(params.dtype)

    def sent(
        self, params: Float[Array, " d"], rounds: Int[Array, ""], key: Key[Array, ""]
    ) -> Float[Array, " d"]:
        """The model as clients get it after so many rounds; the first one as it is."""
        scale = jnp.where(rounds > 0, jnp.asarray(self.noise), 0)
        return params + (scale * normal(key, params.shape, jnp.float32)).astype(params.dtype)
