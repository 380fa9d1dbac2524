"""Disagreement of an ensemble of forward models (Pathak, Gandhi and Gupta 2019, arXiv 1906.04161).

The bonus is the variance of what several models predict. Where the world is random but well known they agree on its
mean, so noise that an agent switches on by itself stops paying, which prediction errors do not achieve.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP
from offroad.nets.relational import EncoderConfig
from offroad.rewards.features import PATCHES, ActionCode, Features, View
from offroad.rewards.intrinsic import BonusScale, Fitting, IntrinsicReward, Scaling, weighted_mean


@dataclass(frozen=True)
class DisagreementConfig:
    members: int = 5
    kept: float = 0.8  # share of a minibatch that each member learns from, drawn for itself: it keeps them different
    size: int = 64  # of the fixed random features that are predicted
    hidden: tuple[int, ...] = (256,)
    encoder: EncoderConfig = PATCHES
    frames: int = 0  # how many of the newest frames of an image stack are seen; 0: all
    fitting: Fitting = field(default_factory=Fitting)
    scaling: Scaling = field(default_factory=Scaling)


class Disagreement(IntrinsicReward):
    """Forward models of fixed random features: nothing that the bonus could run after moves."""

    members: MLP  # stacked along a leading axis
    features: Features
    optimiser_state: PyTree[Array]
    view: View
    memory: PyTree[Array]
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: DisagreementConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: DisagreementConfig, key: Key[Array, ""]) -> "Disagreement":
        features_key, members_key = jax.random.split(key)
        view, action = View.create(spaces, config.frames), ActionCode(spaces)
        sizes = (config.size + action.size, *config.hidden, config.size)
        members = ensemble(lambda key: MLP(sizes, key=key, activation="relu"), config.members, members_key)
        return cls(
            members=members,
            features=Features.create(view.space, config.encoder, config.hidden, config.size, features_key),
            optimiser_state=config.fitting.optimiser().init(members),
            view=view,
            memory=(),
            scale=BonusScale.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )

    def initial_memory(self, num_envs: int) -> PyTree[Array]:
        return ()

    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], PyTree[Array]]:
        return jnp.mean(jnp.var(self._predict(self.members, steps), axis=0), -1), ()

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["Disagreement", dict[str, Float[Array, ""]]]:
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        learner = replace(self, view=self.view.update(steps.observation, mask))
        members, state, metrics = self.config.fitting.fit(
            learner.loss, self.members, self.optimiser_state, steps, mask, key
        )
        return replace(learner, members=members, optimiser_state=state), metrics

    def loss(
        self, members: MLP, steps: Transition, weight: Float[Array, " batch"], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        kept = jax.random.bernoulli(key, self.config.kept, (self.config.members, *weight.shape))
        target = self.features(self.view(steps.next_observation))
        error = 0.5 * jnp.sum(jnp.square(self._predict(members, steps) - jax.lax.stop_gradient(target)), -1)
        losses = jax.vmap(weighted_mean)(error, weight * kept)
        return jnp.sum(losses), {"forward_loss": jnp.mean(losses)}

    def _predict(self, members: MLP, steps: Transition) -> Float[Array, "members *batch size"]:
        phi = jax.lax.stop_gradient(self.features(self.view(steps.observation)))
        return apply_ensemble(members, jnp.concatenate([phi, ActionCode(self.spaces)(steps.action)], -1))
