"""Environments whose actions are primitives."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from jaxtyping import Array

from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.skills.primitives import Primitives
from offroad.tasks.batches import copied, merge, only, overwrite


class LatentActions(VectorWrapper):
    """A vector environment in which one step plays one primitive, for learning over primitives with any agent.

    The action is a latent one, in [-1, 1]; the observation is what `length` steps of the environment led to, the reward
    the sum of theirs. In a world whose episode ends in the middle of a primitive the rest of it is not played. Worlds
    reset themselves, in the step that finishes them (SAME_STEP autoreset). `info["steps"]` counts the environment's
    steps, `[N]`.

    **Arguments:**

    - `env`: a vector environment whose autoreset is disabled, so that a world can wait for the others.
    - `primitives`: frozen ones, learnt in its spaces.
    - `discount`: of the rewards within a primitive. To learn give the environment's gamma, and the agent
        `gamma ** length`; 1 gives rewards whose sum is the environment's return.

    Raises `OffroadError` for an environment that resets itself, and for primitives of other spaces.
    """

    def __init__(self, env: VectorEnv, primitives: Primitives, *, discount: float | int = 1):
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise OffroadError(
                f"latent actions were given an environment with autoreset_mode {getattr(mode, 'name', mode)}, where no "
                "world can wait for the others; make it with autoreset_mode=AutoresetMode.DISABLED"
            )
        found, expected = Spaces.of(env), primitives.spaces
        if (found.observation, found.action) != (expected.observation, expected.action):
            raise OffroadError(
                f"the primitives observe {expected.observation} and act in {expected.action}, the environment has "
                f"{found.observation} and {found.action}; give the environment that they were learnt for"
            )
        if not primitives.frozen:
            raise OffroadError("these primitives are still learning; call primitives.freeze(dataset, key) first")
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = primitives.latent_spaces.action
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.primitives, self.discount = primitives, discount
        space = expected.action

        def act(primitives: Primitives, observation: Any, latent: Array) -> Array:
            return jax.numpy.clip(primitives.act(observation, latent), space.low, space.high)  # pyright: ignore

        self._act = jax.jit(act)
        self._observation: Any = None
        self._stopped = np.zeros(env.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)  # pyright: ignore[reportArgumentType]
        self._observation = copied(observation)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        worlds, length = self.num_envs, self.primitives.config.length
        latent, total, steps = np.asarray(actions, np.float32), np.zeros(worlds), np.zeros(worlds, np.int64)
        terminated, truncated = np.zeros(worlds, bool), np.zeros(worlds, bool)
        final, final_info, info = np.full(worlds, None, dtype=object), {}, {}
        for age in range(length):
            running = ~(terminated | truncated)
            if not running.any():
                break
            if age:
                self._wake()
            action = np.asarray(self._act(self.primitives, self._observation, latent))
            observation, reward, over, cut, info = self.env.step(action)
            self._observation, self._stopped = copied(observation), over | cut
            total[running] += self.discount**age * reward[running]
            steps += running
            terminated |= running & over
            truncated |= running & cut
            for world in np.flatnonzero(running & self._stopped).tolist():
                final[world] = copied(observation, world)
            merge(final_info, only(info, running & self._stopped))

        ended = terminated | truncated
        info = only(info, ~ended)
        if ended.any():
            info |= {"final_obs": final, "_final_obs": ended, "final_info": final_info, "_final_info": ended.copy()}
            merge(info, only(self._begin(ended), ended))
        return copied(self._observation), total, terminated, truncated, {**info, "steps": steps}

    def _wake(self) -> None:
        """Lets worlds that wait for the others go on with an episode that nobody sees, as none may be stepped after its
        end."""
        if self._stopped.any():
            self._begin(self._stopped)

    def _begin(self, which: np.ndarray) -> dict[str, Any]:
        observation, info = self.env.reset(options={"reset_mask": which.copy()})
        overwrite(self._observation, observation, which)
        return info

    def get_state(self) -> dict[str, Any] | None:
        """All that the future depends on, None if the state of the environment inside cannot be had."""
        if not hasattr(type(self.env), "get_state"):
            return None
        return {"env": self.env.get_state(), "observation": self._observation}  # pyright: ignore

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues, to the bit, where an environment with the same arguments was when `get_state` was called."""
        self.env.set_state(state["env"])  # pyright: ignore[reportAttributeAccessIssue]
        self._observation = state["observation"]
