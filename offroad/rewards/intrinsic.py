"""The interface of every reward that an agent makes for itself, and what they share: scale, sums, fitting."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError


@dataclass(frozen=True)
class Scaling:
    """How a raw bonus becomes a reward: divided by the running standard deviation of its discounted sum."""

    normalise: bool = True
    discount: float = 0.99
    decay: float = 0.9996  # of what was known before, at every step: half of it is forgotten in 1,700


class BonusScale(eqx.Module):
    """The decaying standard deviation of the discounted sum of bonuses, which runs on across the ends of episodes.

    `mean` and `square` are moments weighted by age; `weight` is the sum of those weights, as in Adam's correction.
    """

    mean: Float[Array, ""]
    square: Float[Array, ""]
    weight: Float[Array, ""]
    discounted: Float[Array, " N"]

    @classmethod
    def create(cls, num_envs: int) -> "BonusScale":
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.zeros(num_envs))

    @property
    def std(self) -> Float[Array, ""]:
        """1 before the first bonus; never less than a tenth of the root mean square, since sums that are all alike, as
        a single one is, say nothing of their spread."""
        weight = jnp.maximum(self.weight, 1e-8)
        square = self.square / weight
        var = square - jnp.square(self.mean / weight)
        return jnp.where(self.weight > 0, jnp.sqrt(jnp.maximum(var, 0.01 * square)), 1.0)

    def update(self, bonus: Float[Array, "T N"], mask: Bool[Array, "T N"], scaling: Scaling) -> "BonusScale":
        def step(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            bonus, mask = now
            total = jnp.where(mask, scaling.discount * total + bonus, total)
            return total, total

        discounted, totals = jax.lax.scan(step, self.discounted, (bonus, mask))
        count = jnp.sum(mask)
        # A reward that has paid nothing yet, as its model is not ready, has no scale yet.
        old = jnp.where(jnp.any(totals * mask != 0), scaling.decay ** len(totals), 1.0)
        mean = jnp.sum(totals * mask) / jnp.maximum(count, 1)
        square = jnp.sum(jnp.square(totals) * mask) / jnp.maximum(count, 1)
        return BonusScale(
            old * self.mean + (1 - old) * mean,
            old * self.square + (1 - old) * square,
            old * self.weight + (1 - old),
            discounted,
        )


class IntrinsicReward(eqx.Module):
    """A reward for what is new to the agent: an immutable pytree whose leaves are all arrays.

    Abstract: concrete rewards are final. `memory` belongs to the present episodes of the `N` environments (`()` if what
    is new does not depend on the episode); `scale` is the running scale of the bonus.
    """

    spaces: eqx.AbstractVar[Spaces]
    config: eqx.AbstractVar[Any]
    memory: eqx.AbstractVar[PyTree[Array]]
    scale: eqx.AbstractVar[BonusScale]

    @classmethod
    @abstractmethod
    def create(cls, spaces: Spaces, config: Any, key: Key[Array, ""]) -> "IntrinsicReward":
        """A new reward for these spaces. Raises `OffroadError` if it cannot work in them."""

    @abstractmethod
    def initial_memory(self, num_envs: int) -> PyTree[Array]:
        """The memory of `num_envs` environments before their first step; `()` if there is none."""

    @abstractmethod
    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], PyTree[Array]]:
        """The raw bonus of every step and the memory after the last one. What it says where `mask` is False is
        ignored, and such steps must leave no trace in the memory."""

    @abstractmethod
    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["IntrinsicReward", dict[str, Float[Array, ""]]]:
        """One learning step on `T` steps of `N` environments; pure. `mask` is False for steps that were none.

        **Returns:** the reward that has learnt, and scalar metrics. Memory and scale stay as they are.
        """

    @property
    def episodic(self) -> bool:
        """Whether the bonus of a step depends on the steps of its episode before it."""
        return bool(jax.tree.leaves(self.memory))

    def begin(self, num_envs: int) -> "IntrinsicReward":
        """The same reward at the first step of `num_envs` environments: no memory of any episode."""
        scale = replace(self.scale, discounted=jnp.zeros(num_envs))
        return replace(self, memory=self.initial_memory(num_envs), scale=scale)

    def forget_scale(self) -> "IntrinsicReward":
        """The same reward as if nothing had been paid yet, though its discounted sums run on: bonuses of a model that
        has hardly learnt are much larger than those that are to come."""
        zero = jnp.zeros(())
        return replace(self, scale=replace(self.scale, mean=zero, square=zero, weight=zero))

    def pay(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], "IntrinsicReward"]:
        """The reward for `T` consecutive steps of `N` environments; pure.

        **Returns:** the bonus, 0 where `mask` is False, and the reward with its memory and scale advanced. Nothing is
        learnt.
        """
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        bonus, memory = self.bonus(steps, mask, key)
        bonus = jnp.where(mask, jax.lax.stop_gradient(bonus), 0.0)
        scale = self.scale.update(bonus, mask, self.config.scaling)
        if self.config.scaling.normalise:
            bonus = bonus / scale.std
        return bonus, replace(self, memory=memory, scale=scale)

    def appraise(self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]) -> Float[Array, "T N"]:
        """The reward as `pay` would give it at the scale reached so far; nothing advances."""
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        bonus, _ = self.bonus(steps, mask, key)
        bonus = jnp.where(mask, jax.lax.stop_gradient(bonus), 0.0)
        return bonus / self.scale.std if self.config.scaling.normalise else bonus

    def __mul__(self, weight: float | int) -> "Sum":
        return Sum((self,), jnp.full(1, weight, jnp.float32))

    __rmul__ = __mul__

    def __add__(self, other: "IntrinsicReward | Sum") -> "Sum":
        return 1.0 * self + other


class Sum(eqx.Module):
    """Weighted rewards, each scaled on its own: `0.5 * icm + rnd`. Has the methods of an `IntrinsicReward`."""

    parts: tuple[IntrinsicReward, ...]
    weights: Float[Array, " parts"]

    @property
    def spaces(self) -> Spaces:
        return self.parts[0].spaces

    @property
    def config(self) -> "SumConfig":
        return SumConfig(tuple(type(part).__name__ for part in self.parts))

    @property
    def episodic(self) -> bool:
        return any(part.episodic for part in self.parts)

    def begin(self, num_envs: int) -> "Sum":
        return Sum(tuple(part.begin(num_envs) for part in self.parts), self.weights)

    def forget_scale(self) -> "Sum":
        return Sum(tuple(part.forget_scale() for part in self.parts), self.weights)

    def pay(self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]) -> tuple[Float[Array, "T N"], "Sum"]:
        keys = jax.random.split(key, len(self.parts))
        paid = [part.pay(steps, mask, k) for part, k in zip(self.parts, keys)]
        total = self._weighted([bonus for bonus, _ in paid])
        return total, Sum(tuple(part for _, part in paid), self.weights)

    def appraise(self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]) -> Float[Array, "T N"]:
        keys = jax.random.split(key, len(self.parts))
        return self._weighted([part.appraise(steps, mask, k) for part, k in zip(self.parts, keys)])

    def _weighted(self, bonuses: list[Array]) -> Float[Array, "T N"]:
        return jnp.einsum("k,ktn->tn", self.weights, jnp.stack(bonuses))

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["Sum", dict[str, Float[Array, ""]]]:
        keys = jax.random.split(key, len(self.parts))
        learnt = [part.update(steps, mask, k) for part, k in zip(self.parts, keys)]
        metrics = {
            f"{i}_{type(part).__name__.lower()}/{name}": value
            for i, (part, found) in enumerate(learnt)
            for name, value in found.items()
        }
        return Sum(tuple(part for part, _ in learnt), self.weights), metrics

    def __mul__(self, weight: float | int) -> "Sum":
        return Sum(self.parts, weight * self.weights)

    __rmul__ = __mul__

    def __add__(self, other: "IntrinsicReward | Sum") -> "Sum":
        other = other if isinstance(other, Sum) else 1.0 * other
        return Sum(self.parts + other.parts, jnp.concatenate([self.weights, other.weights]))


@dataclass(frozen=True)
class SumConfig:
    """What a sum is made of, for a run's `config.json`."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Fitting:
    """How a bonus's model learns from one rollout."""

    epochs: int = 1
    minibatch: int = 256  # transitions per gradient step; a smaller rollout is one minibatch
    learning_rate: float = 1e-3
    max_grad_norm: float = 5.0

    def optimiser(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.adam(self.learning_rate))

    def fit(
        self,
        loss: Callable[[Any, Transition, Float[Array, " batch"], Key[Array, ""]], tuple[Array, dict[str, Array]]],
        model: PyTree[Array],
        state: PyTree[Array],
        steps: Transition,
        mask: Bool[Array, "T N"],
        key: Key[Array, ""],
    ) -> tuple[PyTree[Array], PyTree[Array], dict[str, Array]]:
        """Epochs of minibatch steps on `loss(model, transitions, weight, key) -> (scalar, metrics)`.

        Every epoch shuffles the transitions; what does not fill a last minibatch is left out of that epoch.
        """
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
        weight = mask.reshape(-1).astype(jnp.float32)
        rows = weight.shape[0]
        batches = max(rows // self.minibatch, 1)
        optimiser = self.optimiser()

        def step(carry: Any, now: tuple[Array, Array]) -> tuple[Any, dict[str, Array]]:
            model, state = carry
            index, key = now
            part = jax.tree.map(lambda x: x[index], flat)
            gradient, metrics = jax.grad(loss, has_aux=True)(model, part, weight[index], key)
            change, state = optimiser.update(gradient, state, model)
            return (optax.apply_updates(model, change), state), metrics

        def epoch(carry: Any, key: Key[Array, ""]) -> tuple[Any, dict[str, Array]]:
            order_key, step_key = jax.random.split(key)
            size = min(self.minibatch, rows)
            order = jax.random.permutation(order_key, rows)[: batches * size].reshape(batches, size)
            return jax.lax.scan(step, carry, (order, jax.random.split(step_key, batches)))

        (model, state), metrics = jax.lax.scan(epoch, (model, state), jax.random.split(key, self.epochs))
        return model, state, jax.tree.map(jnp.mean, metrics)


def check_spaces(reward: IntrinsicReward | Sum, spaces: Spaces, whose: str) -> None:
    """Raises `OffroadError` if the reward was created for other observations or actions."""
    for name in ("observation", "action"):
        ours, theirs = getattr(reward.spaces, name), getattr(spaces, name)
        if ours != theirs:
            raise OffroadError(
                f"the reward was created for {name}s {ours}, but {whose} has {theirs}; create it with Spaces.of(env)"
            )


def weighted_mean(x: Float[Array, "*batch"], weight: Float[Array, "*batch"]) -> Float[Array, ""]:
    """The mean over what has weight; 0 where nothing has."""
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1e-8)
