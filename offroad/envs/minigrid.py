"""MiniGrid's rooms as images: small mazes in which a run takes a minute, `offroad/MiniGrid-MultiRoom-N6-v0` and kin.

MiniGrid's own observation holds a text that no network here reads. Here it is the agent's view alone, 7 x 7 cells with
codes of the object, its colour and its state, spread over 0 to 255: `uint8 [7, 7, 3]`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import UInt8
from numpy import ndarray

from offroad.errors import OffroadError

SPREAD = np.array([25, 50, 100], np.uint8)  # 11 objects, 6 colours, 3 states


class View(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """The view as an image; `info` tells where the agent is: `x`, `y` and `heading` (0 east, counted clockwise)."""

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)

    def observation(self, observation: dict[str, Any]) -> UInt8[ndarray, "7 7 3"]:
        return observation["image"] * SPREAD

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ndarray, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | self._place()

    def step(self, action: Any) -> tuple[ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), terminated, truncated, info | self._place()

    def _place(self) -> dict[str, int]:
        room: Any = self.env.unwrapped
        return {"x": int(room.agent_pos[0]), "y": int(room.agent_pos[1]), "heading": int(room.agent_dir)}


def make_single(task: str, **options: Any) -> View:
    """One task of MiniGrid; it counts its own steps and truncates. Options as of MiniGrid's environment."""
    try:
        import minigrid  # noqa: F401 (registers the environments)
    except ImportError as error:
        raise OffroadError("MiniGrid is missing: pip install 'offroad[minigrid]'") from error
    return View(gym.make(f"MiniGrid-{task}-v0", **options))


def make_vector(
    task: str, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **options: Any
) -> SyncVectorEnv:
    """Several copies, stepped one after the other: a step takes less time than a message to a process."""
    make = [lambda: make_single(task, **options)] * num_envs
    return SyncVectorEnv(make, autoreset_mode=AutoresetMode(autoreset_mode))
