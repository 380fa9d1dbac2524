"""One automated car dissolves a traffic jam: the ring in JAX, the controllers it is compared with, and SUMO."""

from typing import Any

from gymnasium.vector import AutoresetMode

from offroad.envs import RING_DECISIONS
from offroad.envs.functional import JaxEnv, JaxVectorEnv
from offroad.envs.ring_road.ring import RingRoad


def make(**ring: Any) -> JaxEnv:
    """A single ring. Arguments as of `RingRoad`."""
    return JaxEnv(RingRoad(**ring))


def make_vec(
    num_envs: int = 1,
    max_episode_steps: int | None = RING_DECISIONS,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **ring: Any,
) -> JaxVectorEnv:
    """A compiled batch of rings. Other arguments as of `RingRoad`."""
    return JaxVectorEnv(RingRoad(**ring), num_envs, max_episode_steps, autoreset_mode)
