"""The kitchen's MuJoCo model, from the installed gymnasium-robotics, and what its numbers mean.

Positions (30): robot 9 (7 arm joints in rad, 2 fingers in m), then objects 21. Actuators follow joint positions.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.errors import OffroadError

ROBOT, OBJECTS = 9, 21
FRAME_SKIP = 40

GOALS: dict[str, tuple[slice, tuple[float, ...]]] = {
    "bottom burner": (slice(11, 13), (-0.88, -0.01)),
    "top burner": (slice(15, 17), (-0.92, -0.01)),
    "light switch": (slice(17, 19), (-0.69, -0.05)),
    "slide cabinet": (slice(19, 20), (0.37,)),
    "hinge cabinet": (slice(20, 22), (0.0, 1.45)),
    "microwave": (slice(22, 23), (-0.75,)),
    "kettle": (slice(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
"""Of each subtask the joints that it is about, as a slice of the positions, and where they are to be."""
NEAR = 0.3
"""A subtask is done when its joints are nearer to their goal than this (Euclidean; rad and m)."""

SETS = {
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
}
"""The target subtasks of D4RL's data sets; "complete" has those of "partial"."""

START = np.concatenate(
    (
        [0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394],  # arm
        [0.0479267505, 0.0371350919],  # fingers
        [-2.6627985e-4, -5.18043486e-5, 3.1287722e-5, -4.51199853e-5, -3.90842156e-6, -4.22629655e-5, 6.28065475e-5],
        [4.04984708e-5, 4.6273094e-4, -2.26906415e-4, -4.65501369e-4, -6.44129196e-3, -1.77048263e-3, 1.08009684e-3],
        [-0.26939744, 0.350383255, 1.61944683, 1.00618764, 4.06395120e-3, -6.62095997e-3, -2.68278933e-4],  # kettle
    )
)
"""The positions that every episode of D4RL and of gymnasium-robotics starts with."""
LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
HIGH = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
"""Bounds of the positions that the robot's actuators are told."""
NOISE = np.array([0.1] * 9 + [0.005] * 2 + [0.0005] * 6 + [0.005] * 3 + [0.1] * 3 + [0.005] * 3 + [0.1] * 3 + [0.005])
"""Amplitudes of the noise of every position in D4RL's robot specification, before its noise ratio."""


def load() -> mujoco.MjModel:
    """The model, with D4RL's view of the kitchen as its camera.

    Raises `OffroadError` where gymnasium-robotics is not installed.
    """
    package = find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise OffroadError(
            "the kitchen's model comes with gymnasium-robotics, which is not installed; pip install 'offroad[robotics]'"
        )
    assets = Path(package.origin).parent / "envs" / "assets" / "kitchen_franka" / "kitchen_assets"
    spec = mujoco.MjSpec.from_file(str(assets / "kitchen_env_model.xml"))
    camera = spec.cameras[0]
    # 2.2 m from (-0.2, 0.5, 2.0), azimuth 70 degrees, elevation -35 degrees
    camera.name, camera.pos, camera.quat = "view", VIEW_POSITION, VIEW_ORIENTATION
    return spec.compile()


def _view() -> tuple[ndarray, ndarray]:
    azimuth, elevation = np.deg2rad(70), np.deg2rad(-35)
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    axes = np.stack((right, np.cross(right, forward), -forward), axis=1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return np.array([-0.2, 0.5, 2.0]) - 2.2 * forward, quaternion


VIEW_POSITION, VIEW_ORIENTATION = _view()


def goal(tasks: tuple[str, ...]) -> Float[ndarray, "30"]:
    """The positions that these subtasks ask for, 0 where they ask for nothing."""
    positions = np.zeros(ROBOT + OBJECTS)
    for task in tasks:
        joints, values = GOALS[task]
        positions[joints] = values
    return positions


def satisfied(positions: Float[ndarray, "*batch 30"], tasks: tuple[str, ...]) -> Bool[ndarray, "*batch tasks"]:
    """Which of these subtasks are done in these positions."""
    far = [np.linalg.norm(positions[..., joints] - values, axis=-1) for joints, values in (GOALS[t] for t in tasks)]
    return np.stack(far, axis=-1) < NEAR
