"""How `residual_cheetah.csv` was made: a HalfCheetah that differs from its simulator, hung in a stand and shaken.

Hidden from the simulator: feet and shins half as heavy again, dry friction in the joints, motors that saturate, and
20 ms between a command and its torque. Encoders count in steps of 0.1 mrad; velocities are not measured.
"""

import copy
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
from scipy.signal import butter, lfilter

from offroad.data import tables
from offroad.models import MujocoSimulator

JOINTS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
DELAY = 2


def real_cheetah(model: mujoco.MjModel) -> mujoco.MjModel:
    """The robot that the simulator stands for."""
    model = copy.copy(model)
    for name in ("bshin", "bfoot", "fshin", "ffoot"):
        body = model.body(name).id
        model.body_mass[body] *= 1.5
        model.body_inertia[body] *= 1.5
    for name in JOINTS:
        model.dof_frictionloss[model.joint(name).dofadr[0]] = 2.0
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def saturated(u: np.ndarray) -> np.ndarray:
    """What motors make of a command."""
    return 0.8 * np.tanh(u / 0.8)


def record(seconds: float, seed: int) -> dict[str, np.ndarray]:
    """Times, joint angles and commands of a robot on its stand."""
    model = gym.make("HalfCheetah-v5").unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
    robot = MujocoSimulator(real_cheetah(model), JOINTS)
    steps = round(seconds / robot.dt)
    b, a = butter(2, 8.0 * 2 * robot.dt)  # noise up to 8 Hz
    noise = lfilter(b, a, np.random.default_rng(seed).normal(size=(steps, 6)), axis=0)
    u = np.round(np.clip(0.5 * noise / noise.std(0), -1, 1), 4)
    q, qd, angles = np.zeros((1, 6)), np.zeros((1, 6)), []
    for step in range(steps):
        angles.append(q[0])
        q, qd = robot.step(q, qd, saturated(u[[max(step - DELAY, 0)]]), np.zeros((1, 6)))
    return {"time": np.round(robot.dt * np.arange(steps), 4), "q": np.round(angles, 4), "u": u}


if __name__ == "__main__":
    tables.write_csv(Path(__file__).with_name("residual_cheetah.csv"), record(seconds=16, seed=0))
