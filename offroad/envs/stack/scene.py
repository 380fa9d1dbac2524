"""The physics of the stacking tasks: a free hand with two force-limited fingers, a table, and cubes.

No arm: the hand slides along x, y and z under position servos. Lengths in metres, masses in kg, forces in N.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import mujoco

BLOCK = 0.05  # edge of a cube
OPEN = 0.04  # the fingers' widest distance from the middle, each
ROBOT = 5  # joints of the robot: x, y, z and two fingers, before the blocks' free joints
# Where edges of two boxes coincide, MuJoCo (3.10 and 3.11 at least, its issue 3476) finds contacts as deep as a box,
# which blow towers up. Each block is a little slimmer than the one before.
SLIMMER = 5e-5  # on each side
AWAY = 10.0  # absent blocks float out here

_HEAD = """
<mujoco model="stack">
  <option timestep="0.008" integrator="Euler" cone="elliptic" impratio="10"/>
  <visual><headlight ambient="0.4 0.4 0.4"/></visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.75 0.8 0.87" rgb2="0.95 0.96 0.98" width="64" height="64"/>
  </asset>
  <default>
    <geom condim="4" friction="{friction} 0.05 0.01"/>
    <default class="finger">
      <joint type="slide" range="0 {open}" armature="0.1" damping="5"/>
      <geom type="box" size="0.036 0.007 0.0135" mass="0.05" rgba="0.3 0.3 0.35 1"/>
    </default>
  </default>
  <worldbody>
    <light pos="0 0 2" dir="0 0 -1"/>
    <body name="focus" pos="0 0 0.12"/>
    <camera name="view" mode="targetbody" target="focus" pos="0.62 -0.5 0.42"/>
    <geom name="table" type="plane" size="1 1 0.1" rgba="0.85 0.83 0.78 1"/>
    <body name="hand" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" armature="1"/>
      <joint name="y" type="slide" axis="0 1 0" armature="1"/>
      <joint name="z" type="slide" axis="0 0 1" armature="1"/>
      <geom name="palm" type="box" pos="0 0 0.07" size="0.03 0.065 0.02" mass="0.2" rgba="0.45 0.45 0.5 1"/>
      <body name="left" gravcomp="1">
        <joint name="left" class="finger" axis="0 1 0"/>
        <geom name="left" class="finger" pos="0 0.007 0"/>
        <geom class="finger" pos="0 0.007 0.03" size="0.01 0.005 0.025" mass="0" contype="0" conaffinity="0"/>
      </body>
      <body name="right" gravcomp="1">
        <joint name="right" class="finger" axis="0 -1 0"/>
        <geom name="right" class="finger" pos="0 -0.007 0"/>
        <geom class="finger" pos="0 -0.007 0.03" size="0.01 0.005 0.025" mass="0" contype="0" conaffinity="0"/>
      </body>
    </body>
"""
_BLOCK = """
    <body name="block{i}" pos="{x} {i} 0" gravcomp="{absent}">
      <freejoint/>
      <geom name="block{i}" type="box" size="{side} {side} {half}" mass="0.1" rgba="{colour} {present}"
        contype="{present}" conaffinity="{present}"/>
    </body>
"""
_TAIL = """
  </worldbody>
  <equality><joint joint1="left" joint2="right"/></equality>
  <actuator>
    <position joint="x" kp="4000" dampratio="1" forcerange="-80 80" ctrlrange="-1 1"/>
    <position joint="y" kp="4000" dampratio="1" forcerange="-80 80" ctrlrange="-1 1"/>
    <position joint="z" kp="4000" dampratio="1" forcerange="-80 80" ctrlrange="-1 1"/>
    <position joint="left" kp="1000" dampratio="1" forcerange="-15 15" ctrlrange="0 {open}"/>
    <position joint="right" kp="1000" dampratio="1" forcerange="-15 15" ctrlrange="0 {open}"/>
  </actuator>
</mujoco>
"""
COLOURS = ("0.85 0.3 0.25", "0.25 0.5 0.85", "0.3 0.7 0.35", "0.95 0.75 0.2", "0.6 0.35 0.75", "0.95 0.55 0.3")


def build(blocks: int, present: int, friction: float | int = 1.0) -> mujoco.MjModel:
    """The scene with room for `blocks` cubes, of which the first `present` are there.

    All scenes with the same `blocks` have the same sizes, so that worlds of one batch may hold different numbers. An
    absent cube has neither weight nor contacts and costs next to nothing.
    """
    cubes = "".join(
        _BLOCK.format(
            i=i,
            x=AWAY,
            half=BLOCK / 2,
            side=BLOCK / 2 - SLIMMER * i,
            colour=COLOURS[i % len(COLOURS)],
            present=int(i < present),
            absent=int(i >= present),
        )
        for i in range(blocks)
    )
    return mujoco.MjModel.from_xml_string(
        (_HEAD + cubes + _TAIL).replace("{open}", str(OPEN)).replace("{friction}", str(friction))
    )
