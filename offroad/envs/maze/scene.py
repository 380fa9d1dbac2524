"""The physics of the maze tasks: D4RL's ant and a point, between walls or on open ground."""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path

import mujoco
import numpy as np
from gymnasium.envs import mujoco as gymnasium_mujoco

from offroad.envs.maze.maps import UNIT, Maze, centre

GYMNASIUM_ANT = Path(gymnasium_mujoco.__file__).parent / "assets" / "ant.xml"
POINT_RADIUS = 0.7  # m
GOAL_RADIUS = 0.5  # m
FLOOR = (0.85, 0.83, 0.78, 1.0)

_POINT = f"""
<mujoco model="point">
  <compiler inertiafromgeom="true" angle="degree"/>
  <option timestep="0.02" integrator="RK4"/>
  <default><geom friction="1 0.5 0.5" density="100"/></default>
  <worldbody>
    <light directional="true" diffuse="0.9 0.9 0.9" pos="0 0 1.3" dir="0 0 -1.3"/>
    <geom name="floor" type="plane" size="1 1 0.2" rgba="0.85 0.83 0.78 1"/>
    <body name="torso">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom name="torso" size="{POINT_RADIUS}" pos="0 0 {POINT_RADIUS}" conaffinity="0" rgba="0.8 0.4 0.2 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" ctrlrange="-1 1"/><motor joint="y" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def point(maze: Maze) -> mujoco.MjModel:
    """A ball of radius 0.7 m that slides in the plane."""
    return _with_maze(mujoco.MjSpec.from_string(_POINT), maze).compile()


def ant(maze: Maze | None = None) -> mujoco.MjModel:
    """D4RL's ant: Gymnasium's with motors of gear 30 and a time step of 20 ms; on open ground if there is no maze."""
    spec = mujoco.MjSpec.from_file(str(GYMNASIUM_ANT))
    spec.option.timestep = 0.02
    for motor in spec.actuators:
        motor.gear[0] = 30.0
    for geom in (spec.default.geom, *spec.geoms):  # the default is for the walls
        geom.solimp[:3] = 0.8, 0.8, 0.01
    floor = spec.geom("floor")
    floor.material, floor.rgba = "", FLOOR
    return (spec if maze is None else _with_maze(spec, maze)).compile()


def _with_maze(spec: mujoco.MjSpec, maze: Maze) -> mujoco.MjSpec:
    """Adds one box for each wall cell, 2 m high, a disc at the goal and a camera that sees everything from above."""
    world, half = spec.worldbody, UNIT / 2
    for i, j in np.argwhere(maze.walls).tolist():
        x, y = centre(np.array([i, j])).tolist()
        world.add_geom(
            name=f"wall_{i}_{j}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[half, half, half / 2],
            pos=[x, y, half / 2],
            contype=1,
            conaffinity=1,
            rgba=[0.45, 0.5, 0.55, 1.0],
        )
    # MuJoCo's search tree over so many walls takes longer than trying them all; the contacts are the same.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    light = spec.visual.headlight
    light.ambient, light.diffuse, light.specular = (0.25,) * 3, (0.2,) * 3, (0.0,) * 3
    for lamp in spec.lights:
        lamp.diffuse, lamp.specular = (0.55,) * 3, (0.0,) * 3
    rows, columns = maze.walls.shape
    middle = UNIT * np.array([(columns - 3) / 2, (rows - 3) / 2])
    floor = spec.geom("floor")
    floor.pos, floor.size = (*middle, 0.0), (half * columns, half * rows, 0.2)
    goal = centre(np.array(maze.goal)).tolist()
    disc = mujoco.mjtGeom.mjGEOM_CYLINDER
    world.add_site(name="goal", type=disc, size=[GOAL_RADIUS, 0.02, 0], pos=[*goal, 0.02], rgba=[0.9, 0.2, 0.25, 1])
    height = 1.35 * half * max(rows, columns) / np.tan(np.radians(22.5))
    world.add_camera(name="view", pos=[*middle, height], fovy=45.0)
    return spec
