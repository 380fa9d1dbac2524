"""Stacking cubes with a free hand: `offroad/Stack-v0`."""

from offroad.envs.stack.stack import Stack, make_single, make_vector

__all__ = ["Stack", "make_single", "make_vector"]
