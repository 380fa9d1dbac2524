"""Residual policies (Silver et al. 2018, arXiv 1812.06298; Johannink et al. 2019, arXiv 1812.03201).

Keep a controller that works and learn a correction of it.

The action is `base(observation) + learner(observation)`. Any agent can be the learner: it sees an action space of its
own, the environment's half range times `scale`, and experience in which the base's share was taken out of the actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout, Transition

Controller = Callable[[PyTree[Any], PyTree[Any]], tuple[Float[Array, "batch action"], PyTree[Any]]]


@dataclass(frozen=True)
class ResidualPolicyConfig:
    """`learner` is the config of the agent that learns the correction; trainers read their settings from it."""

    learner: Any
    scale: float

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "learner"), name)


class ResidualPolicy(Agent):
    """An agent on top of a controller without memory, `base(observation, ()) -> (action, ())`.

    `base` is a pytree that maps a batch of observations to actions in the environment's units. It stays as it is.
    """

    learner: Agent
    base: Controller
    spaces: Spaces = eqx.field(static=True)
    config: ResidualPolicyConfig = eqx.field(static=True)

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        spaces: Spaces,
        config: Any,
        key: Key[Array, ""],
        *,
        learner: type[Agent],
        base: Controller,
        scale: float = 1.0,
    ) -> "ResidualPolicy":
        """`learner.create(..., config, key)` on top of `base`; it corrects by at most `scale` times half the range."""
        box = box_actions(spaces, "a residual policy")
        reach = (scale * ActionScale(box).half).astype(np.float32)
        inner = Spaces(spaces.observation, gym_spaces.Box(-reach, reach, dtype=np.float32), spaces.num_envs)
        return cls(
            learner=learner.create(inner, config, key),
            base=base,
            spaces=spaces,
            config=ResidualPolicyConfig(config, scale),
        )

    def initial_memory(self, num_envs: int) -> PyTree[Any]:
        return self.learner.initial_memory(num_envs)

    def begin_episodes(self) -> "ResidualPolicy":
        return replace(self, learner=self.learner.begin_episodes())

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        correction, memory = self.learner.act(observation, key, memory)
        return self.base(observation, ())[0] + correction, memory

    def update(
        self, batch: Transition | Rollout, key: Key[Array, ""]
    ) -> tuple["ResidualPolicy", dict[str, Float[Array, ""]]]:
        def correction(steps: Transition) -> Transition:
            base = self.base
            for _ in range(steps.reward.ndim - 1):  # a controller takes one leading axis
                base = jax.vmap(base, in_axes=(0, None))
            return eqx.tree_at(lambda t: t.action, steps, steps.action - base(steps.observation, ())[0])

        if isinstance(batch, Rollout):
            batch = eqx.tree_at(lambda b: b.transitions, batch, correction(batch.transitions))
        else:
            batch = correction(batch)
        learner, metrics = self.learner.update(batch, key)
        return replace(self, learner=learner), metrics
