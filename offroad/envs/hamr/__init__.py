"""HAMR, a quadruped of 1.5 g driven by piezo actuators: `offroad/HamrFull-v0` and `offroad/HamrSimple-v0`."""

from offroad.envs.hamr.hamr import Hamr, HamrFull, HamrSimple, make_single, make_vector

__all__ = ["Hamr", "HamrFull", "HamrSimple", "make_single", "make_vector"]
