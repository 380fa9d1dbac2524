"""Exploration by elliptical episodic bonuses, E3B (Henaff et al. 2022, arXiv 2210.05805).

The bonus of reaching s is phi(s)^T C^-1 phi(s), where C = ridge I + the sum of phi phi^T over the episode so far: large
in directions of feature space that this episode has not been to. phi comes from an inverse model, so it holds what the
actions affect; in a first-person view that may be how one moves more than where, and circling pays like travelling.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.relational import EncoderConfig
from offroad.rewards.features import PATCHES, ActionCode, InverseModel, View
from offroad.rewards.intrinsic import BonusScale, Fitting, IntrinsicReward, Scaling
from offroad.rewards.memory import EpisodeMemory, walk


@dataclass(frozen=True)
class E3BConfig:
    ridge: float = 0.1  # lambda: how much of every direction an episode is taken to know at its start
    logarithm: bool = False  # pay log(1 + bonus), which tames the first steps of an episode
    size: int = 64  # of the features
    hidden: tuple[int, ...] = (256,)
    encoder: EncoderConfig = PATCHES
    frames: int = 0  # how many of the newest frames of an image stack are seen; 0: all
    fitting: Fitting = field(default_factory=Fitting)
    scaling: Scaling = field(default_factory=Scaling)


class E3B(IntrinsicReward):
    """`memory.content` is a square root of C^-1 of every environment, kept by rank-one updates (J. E. Potter's, of the
    Kalman filter). Of C^-1 itself rounding makes a matrix with negative eigenvalues, and NaN, once features are large.
    """

    model: InverseModel
    optimiser_state: PyTree[Array]
    view: View
    memory: EpisodeMemory
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: E3BConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: E3BConfig, key: Key[Array, ""]) -> "E3B":
        view = View.create(spaces, config.frames)
        model = InverseModel.create(view.space, ActionCode(spaces), config.encoder, config.hidden, config.size, key)
        return cls(
            model=model,
            optimiser_state=config.fitting.optimiser().init(model),  # pyright: ignore[reportArgumentType]
            view=view,
            memory=_initial(config, spaces.num_envs),
            scale=BonusScale.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )

    def initial_memory(self, num_envs: int) -> EpisodeMemory:
        return _initial(self.config, num_envs)

    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], EpisodeMemory]:
        def visit(root: Array, phi: Array, t: Array) -> tuple[Array, Array]:
            bonus, root = elliptical(root, phi)
            return jnp.log1p(bonus) if self.config.logarithm else bonus, root

        before, after = self.features(steps.observation), self.features(steps.next_observation)
        empty = self.initial_memory(mask.shape[1]).content
        return walk(self.memory, empty, before, after, steps, mask, visit)

    def features(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        """phi, for any leading axes."""
        return self.model.features(self.view(observation))

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["E3B", dict[str, Float[Array, ""]]]:
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        learner = replace(self, view=self.view.update(steps.observation, mask))
        model, state, metrics = self.config.fitting.fit(
            learner.loss, self.model, self.optimiser_state, steps, mask, key
        )
        return replace(learner, model=model, optimiser_state=state), metrics

    def loss(
        self, model: InverseModel, steps: Transition, weight: Float[Array, " batch"], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        before, after = (model.features(self.view(x)) for x in (steps.observation, steps.next_observation))
        return model.loss(before, after, steps.action, weight)


def elliptical(
    root: Float[Array, "N size size"], phi: Float[Array, "N size"]
) -> tuple[Float[Array, " N"], Float[Array, "N size size"]]:
    """phi^T C^-1 phi, and the root of the inverse of C + phi phi^T, where C^-1 = root root^T."""
    f = jnp.einsum("nji,nj->ni", root, phi)
    bonus = jnp.sum(jnp.square(f), -1)
    moved = jnp.einsum("nij,nj->ni", root, f) / (1 + bonus + jnp.sqrt(1 + bonus))[:, None]
    return bonus, root - moved[:, :, None] * f[:, None, :]


def _initial(config: E3BConfig, num_envs: int) -> EpisodeMemory:
    root = jnp.broadcast_to(jnp.eye(config.size) / jnp.sqrt(config.ridge), (num_envs, config.size, config.size))
    return EpisodeMemory(root, jnp.ones(num_envs, bool))
