"""What a policy puts out: distributions over actions. Leading axes are a batch; the last axis is one event."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Normal(eqx.Module):
    """A Gaussian with independent components. `log_std` may lack the batch axes that `mean` has."""

    mean: Float[Array, "*batch dim"]
    log_std: Float[Array, "*#batch dim"]

    def mode(self) -> Float[Array, "*batch dim"]:
        return self.mean

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dim"]:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, value: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        z = (value - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - LOG_SQRT_2PI, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 + LOG_SQRT_2PI, axis=-1)


class TanhNormal(eqx.Module):
    """The tanh of a Gaussian with independent components: actions in (-1, 1) (Haarnoja et al. 2018)."""

    mean: Float[Array, "*batch dim"]
    log_std: Float[Array, "*#batch dim"]

    def mode(self) -> Float[Array, "*batch dim"]:
        """The image of the Gaussian's mode, which is what deterministic policies play."""
        return jnp.tanh(self.mean)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dim"]:
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def sample_and_log_prob(self, key: PRNGKeyArray) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """A reparametrised sample and its log density, which stays finite where the action rounds to +-1."""
        noise = jax.random.normal(key, self.mean.shape)
        raw = self.mean + jnp.exp(self.log_std) * noise
        # In terms of the noise the Gaussian's own density does not divide by a small std.
        log_prob = -0.5 * noise**2 - self.log_std - LOG_SQRT_2PI - _log_tanh_slope(raw)
        return jnp.tanh(raw), jnp.sum(log_prob, axis=-1)

    def log_prob(self, action: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """The log density of actions, which are first clipped to 1e-6 inside (-1, 1)."""
        raw = jnp.arctanh(jnp.clip(action, -1 + 1e-6, 1 - 1e-6))
        return Normal(self.mean, self.log_std).log_prob(raw) - jnp.sum(_log_tanh_slope(raw), axis=-1)


class Categorical(eqx.Module):
    """A choice among `n` by unnormalised log probabilities; a logit of -inf forbids its choice."""

    logits: Float[Array, "*batch n"]

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, value: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), value[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        log_p = jax.nn.log_softmax(self.logits)
        p = jnp.exp(log_p)
        return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)


def _log_tanh_slope(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - tanh(x)^2) without the cancellation: 4 / (e^x + e^-x)^2 written with softplus."""
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))
