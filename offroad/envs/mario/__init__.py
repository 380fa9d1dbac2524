"""Super Mario Bros from a ROM that you own: `offroad/Mario-v0` (extra `mario`)."""

from offroad.envs.mario.mario import ACTIONS, LEVELS, Mario, make_single, make_vector

__all__ = ["ACTIONS", "LEVELS", "Mario", "make_single", "make_vector"]
