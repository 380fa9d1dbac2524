"""Random network distillation (Burda et al. 2018, arXiv 1810.12894): the error in predicting a fixed random network.

What was seen often is predicted well. The answer is a function of the observation alone, so there is always something
to learn; but observations that are never the same twice, such as noise, stay new for long.
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
from offroad.rewards.features import PATCHES, Features, View
from offroad.rewards.intrinsic import BonusScale, Fitting, IntrinsicReward, Scaling, weighted_mean


@dataclass(frozen=True)
class RNDConfig:
    """Defaults: the paper's, but for networks that suit a CPU."""

    size: int = 64  # of the random features
    hidden: tuple[int, ...] = (256,)  # of the predictor
    proportion: float = 0.25  # of the steps that the predictor learns from, drawn anew for every gradient step
    clip: float = 5.0  # of whitened observations
    encoder: EncoderConfig = PATCHES
    frames: int = 0  # how many of the newest frames of an image stack are seen; 0: all
    fitting: Fitting = field(default_factory=Fitting)
    scaling: Scaling = field(default_factory=Scaling)


class RND(IntrinsicReward):
    """The bonus of a step is half the squared error of `predictor` on the features of `target`, which is fixed."""

    predictor: Features
    target: Features
    optimiser_state: PyTree[Array]
    view: View
    memory: PyTree[Array]
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: RNDConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: RNDConfig, key: Key[Array, ""]) -> "RND":
        predictor_key, target_key = jax.random.split(key)
        view = View.create(spaces, config.frames, config.clip, whiten=True)
        predictor = Features.create(view.space, config.encoder, config.hidden, config.size, predictor_key)
        return cls(
            predictor=predictor,
            target=Features.create(view.space, config.encoder, config.hidden, config.size, target_key),
            optimiser_state=config.fitting.optimiser().init(predictor),  # pyright: ignore[reportArgumentType]
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
        return self._error(self.predictor, steps), ()

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["RND", dict[str, Float[Array, ""]]]:
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        learner = replace(self, view=self.view.update(steps.next_observation, mask))
        predictor, state, metrics = self.config.fitting.fit(
            learner.loss, self.predictor, self.optimiser_state, steps, mask, key
        )
        return replace(learner, predictor=predictor, optimiser_state=state), metrics

    def loss(
        self, predictor: Features, steps: Transition, weight: Float[Array, " batch"], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The mean error over a random `proportion` of the transitions, as section 2.4 of the paper has it."""
        kept = jax.random.bernoulli(key, self.config.proportion, weight.shape)
        loss = weighted_mean(self._error(predictor, steps), weight * kept)
        return loss, {"predictor_loss": loss}

    def _error(self, predictor: Features, steps: Transition) -> Float[Array, "*batch"]:
        seen = self.view(steps.next_observation)
        target = jax.lax.stop_gradient(self.target(seen))
        return 0.5 * jnp.sum(jnp.square(predictor(seen) - target), -1)
