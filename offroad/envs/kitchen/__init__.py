"""The Franka kitchen of D4RL: seven subtasks, of which four are asked for."""

from offroad.envs.kitchen.kitchen import Kitchen, make_single, make_vector

__all__ = ["Kitchen", "make_single", "make_vector"]
