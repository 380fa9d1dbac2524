"""A television in the corner of the view: noise that nobody controls, or channels that the agent can switch.

Curiosity that pays for what cannot be predicted watches it for ever. Noise that no action changes is what features of
an inverse model are meant to leave out (Pathak et al. 2017); channels that an action switches are an effect of the
action, and defeat them too (Burda et al. 2018, arXiv 1808.04355).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Integer, UInt8
from numpy import ndarray

from offroad.errors import OffroadError, unknown

KINDS = ("noise", "switch")


class Television(VectorWrapper):
    """Any vector environment with images and discrete actions, with a television in the upper right corner of its view.

    Args:
        env: observations are `uint8 [height, width, channels]`, actions `Discrete`.
        kind: `"noise"`: another random picture in every step. `"switch"`: one more action, the last, shows another
            random picture and does `idle` in the environment; the picture stays otherwise.
        share: of the view's area that is television.
        values: pixels are below this number.
        idle: the action that the environment is given when the agent switches.

    Episodes and television are seeded together by `reset(seed=...)`. `info` gets `switched`, bool `[N]`.
    """

    def __init__(self, env: VectorEnv, kind: str = "noise", *, share: float = 0.2, values: int = 256, idle: int = 0):
        super().__init__(env)
        space, actions = env.single_observation_space, env.single_action_space
        if not (isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
            raise OffroadError(f"a television needs images, uint8 [height, width, channels]; observations are {space}")
        if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
            raise OffroadError(f"a television needs discrete actions that count from 0; actions are {actions}")
        if kind not in KINDS:
            raise unknown("kind of television", kind, KINDS)
        if not 0 < share <= 1 or not 1 < values <= 256 or not 0 <= idle < actions.n:
            raise OffroadError(
                f"a television with share {share}, values {values} and idle {idle}; expected a share in (0, 1], "
                f"2 to 256 values and one of the {actions.n} actions"
            )
        self.kind, self.values, self.idle = kind, values, idle
        height, width, self.channels = space.shape
        self.rows = slice(0, max(1, round(height * share**0.5)))
        self.columns = slice(width - max(1, round(width * share**0.5)), width)
        self.switch = int(actions.n)  # the number of the action that switches
        if kind == "switch":
            self.single_action_space = gym.spaces.Discrete(actions.n + 1)
            self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._random = np.random.default_rng()
        self._picture = self._another(np.ones(self.num_envs, bool), None)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._random = np.random.default_rng(np.atleast_1d(seed).astype(np.uint64))
        which = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        self._picture = self._another(which, self._picture)
        return self._shown(observation), info

    def step(self, actions: Any) -> tuple[ndarray, ndarray, ndarray, ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        switched = (actions == self.switch) & (self.kind == "switch")
        found = self.env.step(np.where(switched, self.idle, actions))
        observation, reward, terminated, truncated, info = found
        self._picture = self._another(switched | (self.kind == "noise"), self._picture)
        if "final_obs" in info:  # the last view of an episode had its television too
            final = info["final_obs"].copy()
            for world in np.flatnonzero(info["_final_obs"]):
                final[world] = final[world].copy()
                final[world][self.rows, self.columns] = self._picture[world]
            info = info | {"final_obs": final}
        return self._shown(observation), reward, terminated, truncated, info | {"switched": switched}

    def _another(self, which: Bool[ndarray, "N"], picture: Integer[ndarray, "N *picture"] | None) -> ndarray:
        """New pictures for some worlds. All worlds draw, so that one world's television does not depend on others'."""
        height, width = self.rows.stop, self.columns.stop - self.columns.start
        drawn = self._random.integers(0, self.values, (self.num_envs, height, width, self.channels), np.uint8)
        return drawn if picture is None else np.where(which[:, None, None, None], drawn, picture)

    def _shown(self, observation: UInt8[ndarray, "N height width channels"]) -> ndarray:
        observation = observation.copy()
        observation[:, self.rows, self.columns] = self._picture
        return observation
