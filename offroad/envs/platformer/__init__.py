"""Levels to run and jump through, written in JAX: `offroad/Platformer-v0`."""

from typing import Any

from gymnasium.vector import AutoresetMode

from offroad.envs import PLATFORMER_DECISIONS
from offroad.envs.functional import JaxEnv, JaxVectorEnv
from offroad.envs.platformer.platformer import GROUPS, Platformer

__all__ = ["GROUPS", "Platformer", "make_single", "make_vector"]


def make_single(**options: Any) -> JaxEnv:
    """A single game. Options as of `Platformer`."""
    return JaxEnv(Platformer(**options))


def make_vector(
    num_envs: int = 1,
    max_episode_steps: int | None = PLATFORMER_DECISIONS,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **options: Any,
) -> JaxVectorEnv:
    """A compiled batch of games. Other options as of `Platformer`."""
    return JaxVectorEnv(Platformer(**options), num_envs, max_episode_steps, autoreset_mode)
