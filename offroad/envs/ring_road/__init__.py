"""One automated car dissolves a traffic jam: the ring in JAX, the controllers it is compared with, and SUMO."""

from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from offroad.envs.functional import JaxEnv, JaxVectorEnv
from offroad.envs.ring_road.ring import RingRoad

DECISIONS = 600  # in an episode: 300 s, Flow's horizon


def make(**ring: Any) -> JaxEnv:
    """A single ring. Arguments as of `RingRoad`."""
    return JaxEnv(RingRoad(**ring))


def make_vec(
    num_envs: int = 1,
    max_episode_steps: int | None = DECISIONS,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **ring: Any,
) -> JaxVectorEnv:
    """A compiled batch of rings. Other arguments as of `RingRoad`."""
    return JaxVectorEnv(RingRoad(**ring), num_envs, max_episode_steps, autoreset_mode)


def register() -> None:
    """Makes `offroad/RingRoad-v0` and `offroad/SumoRing-v0` known to Gymnasium."""
    gym.register(
        "offroad/RingRoad-v0",
        entry_point="offroad.envs.ring_road:make",
        vector_entry_point="offroad.envs.ring_road:make_vec",
        max_episode_steps=DECISIONS,
    )
    gym.register(
        "offroad/SumoRing-v0",
        entry_point="offroad.envs.ring_road.sumo:SumoRing",
        max_episode_steps=DECISIONS,
    )
