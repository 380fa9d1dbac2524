"""Gymnasium's standard locomotion tasks (v5) and a swing-up, as batches on `MujocoVectorEnv`.

Models, observations, rewards and their terms in info, and terminations are those of `gymnasium.envs.mujoco` with its
default arguments.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs import mujoco as gymnasium_mujoco
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError, unknown

ASSETS = Path(gymnasium_mujoco.__file__).parent / "assets"
Models = mujoco.MjModel | Sequence[mujoco.MjModel]


class PlanarRunner(MujocoVectorEnv):
    """What the tasks in the vertical plane share: reward for speed along x and for health, a cost of effort."""

    asset: ClassVar[str]
    frame_skip: ClassVar[int]
    control_cost: ClassVar[float]
    healthy_reward: ClassVar[float]
    position_noise: ClassVar[float]
    velocity_limit: ClassVar[float]

    def __init__(self, num_envs: int = 1, models: Models | None = None, **kwargs: Any):
        """`models` replaces the standard model; the other arguments are those of `MujocoVectorEnv`."""
        models = models or _asset(self.asset)
        first = models[0] if isinstance(models, Sequence) else models
        super().__init__(
            models,
            num_envs=num_envs,
            frame_skip=self.frame_skip,
            observation_space=_unbounded(first.nq - 1 + first.nv),
            **kwargs,
        )

    @abc.abstractmethod
    def _velocity_noise(self, random: np.random.Generator) -> Float[ndarray, "nv"]: ...

    @abc.abstractmethod
    def _healthy(self) -> Bool[ndarray, "N"]: ...

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        _no_options(options)
        start = self.models[world].qpos0
        position = start + random.uniform(-self.position_noise, self.position_noise, len(start))
        return position, self._velocity_noise(random)

    def _observe(self) -> Float[ndarray, "N obs"]:
        velocity = np.clip(self.qvel, -self.velocity_limit, self.velocity_limit)
        return np.concatenate((self.qpos[:, 1:], velocity), axis=1)

    def _evaluate(
        self, action: Float[ndarray, "N U"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        speed = (self.qpos[:, 0] - self.qpos_before[:, 0]) / self.dt
        effort = self.control_cost * np.square(action).sum(axis=1)
        healthy = self._healthy()
        info = self._reset_info() | {"x_velocity": speed, "reward_forward": speed, "reward_ctrl": -effort}
        if not self.healthy_reward:
            return speed - effort, ~healthy, info
        survive = self.healthy_reward * healthy
        return speed + survive - effort, ~healthy, info | {"reward_survive": survive}


class HalfCheetah(PlanarRunner):
    """Run right. Observation 17: z, pitch, 6 joint angles, then all 9 velocities. Never terminates."""

    asset = "half_cheetah.xml"
    frame_skip = 5
    control_cost = 0.1
    healthy_reward = 0.0
    position_noise = 0.1
    velocity_limit = np.inf

    def _velocity_noise(self, random: np.random.Generator) -> Float[ndarray, "nv"]:
        return 0.1 * random.standard_normal(self.qvel.shape[1])

    def _healthy(self) -> Bool[ndarray, "N"]:
        return np.ones(self.num_envs, bool)

    def _reset_info(self) -> dict[str, ndarray]:
        return {"x_position": self.qpos[:, 0]}


class UprightRunner(PlanarRunner):
    """The runners that may fall."""

    frame_skip = 4
    control_cost = 1e-3
    healthy_reward = 1.0
    position_noise = 5e-3
    velocity_limit = 10.0

    def _velocity_noise(self, random: np.random.Generator) -> Float[ndarray, "nv"]:
        return random.uniform(-self.position_noise, self.position_noise, self.qvel.shape[1])

    def _reset_info(self) -> dict[str, ndarray]:
        return {"x_position": self.qpos[:, 0], "z_distance_from_origin": self.qpos[:, 1] - self.models[0].qpos0[1]}


class Hopper(UprightRunner):
    """Hop right on one leg. Observation 11: z, pitch, 3 joint angles, then all 6 velocities, clipped to 10."""

    asset = "hopper.xml"

    def _healthy(self) -> Bool[ndarray, "N"]:
        z, pitch = self.qpos[:, 1], self.qpos[:, 2]
        others = np.concatenate((self.qpos[:, 2:], self.qvel), axis=1)
        return (z > 0.7) & (np.abs(pitch) < 0.2) & (np.abs(others) < 100).all(axis=1)


class Walker2d(UprightRunner):
    """Walk right on two legs. Observation 17: z, pitch, 6 joint angles, then all 9 velocities, clipped to 10."""

    asset = "walker2d_v5.xml"

    def _healthy(self) -> Bool[ndarray, "N"]:
        z, pitch = self.qpos[:, 1], self.qpos[:, 2]
        return (z > 0.8) & (z < 2.0) & (np.abs(pitch) < 1.0)


class Ant(MujocoVectorEnv):
    """Run right on four legs.

    Observation 105: height and orientation of the torso (5), 8 joint angles, all 14 velocities, contact forces on the
    13 bodies (6 each, clipped to 1).
    """

    control_cost = 0.5
    contact_cost = 5e-4
    noise = 0.1

    def __init__(self, num_envs: int = 1, models: Models | None = None, **kwargs: Any):
        """`models` replaces the standard model; the other arguments are those of `MujocoVectorEnv`."""
        super().__init__(
            models or _asset("ant.xml"),
            num_envs=num_envs,
            frame_skip=5,
            observation_space=_unbounded(105),
            inspect=self._inspect,
            **kwargs,
        )
        # After a step with RK4, both are those of the integrator's last stage: no function of the state.
        self._add_extra("torso", (2,))
        self._add_extra("contact_force", (self.models[0].nbody, 6))

    def _inspect(self, world: int, data: mujoco.MjData) -> None:
        self.extras["torso"][world] = data.xpos[1, :2]
        self.extras["contact_force"][world] = data.cfrc_ext

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        _no_options(options)
        start = self.models[world].qpos0
        position = start + random.uniform(-self.noise, self.noise, len(start))
        velocity = self.noise * random.standard_normal(self.qvel.shape[1])
        self.extras["torso"][world] = position[:2]
        self.extras["contact_force"][world] = 0.0
        return position, velocity

    def _observe(self) -> Float[ndarray, "N obs"]:
        contact = np.clip(self.extras["contact_force"][:, 1:], -1, 1).reshape(self.num_envs, -1)
        return np.concatenate((self.qpos[:, 2:], self.qvel, contact), axis=1)

    def _evaluate(
        self, action: Float[ndarray, "N U"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        speed = (self.extras["torso"] - self.extras_before["torso"]) / self.dt
        effort = self.control_cost * np.square(action).sum(axis=1)
        contact = self.contact_cost * np.square(np.clip(self.extras["contact_force"], -1, 1)).sum(axis=(1, 2))
        z = self.qpos[:, 2]
        healthy = (z >= 0.2) & (z <= 1.0)
        survive = healthy.astype(float)
        forward = speed[:, 0]
        info = self._reset_info() | {
            "x_velocity": forward,
            "y_velocity": speed[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -effort,
            "reward_contact": -contact,
            "reward_survive": survive,
        }
        return forward + survive - (effort + contact), ~healthy, info

    def _reset_info(self) -> dict[str, ndarray]:
        x, y = self.qpos[:, 0], self.qpos[:, 1]
        return {"x_position": x, "y_position": y, "distance_from_origin": np.hypot(x, y)}


class CartPoleSwingUp(MujocoVectorEnv):
    """Swing a pole up with a cart that is too weak to do it in one go, and balance it in the middle of the rail.

    Gymnasium's inverted pendulum with a free hinge of damping 0.1 (instead of 1) and a motor of 60 N (instead of 300);
    the pole starts hanging down. Observation 5: position of the cart in m (the rail ends at -1 and 1), cosine and sine
    of the angle from upright, velocity of the cart in m/s, angular velocity in rad/s. Reward, at most 1 a step:
    (1 + cos angle) / 2 - 0.1 position^2 - 0.01 action^2. Never terminates; a step takes 40 ms.
    """

    def __init__(self, num_envs: int = 1, models: Models | None = None, **kwargs: Any):
        """`models` replaces the standard model; the other arguments are those of `MujocoVectorEnv`."""
        super().__init__(
            models or self.standard_model(),
            num_envs=num_envs,
            frame_skip=2,
            observation_space=_unbounded(5),
            **kwargs,
        )

    @staticmethod
    def standard_model() -> mujoco.MjModel:
        spec = mujoco.MjSpec.from_file(str(ASSETS / "inverted_pendulum.xml"))
        hinge = spec.joint("hinge")
        hinge.limited, hinge.damping[0] = mujoco.mjtLimited.mjLIMITED_FALSE, 0.1
        motor = spec.actuator("slide")
        motor.gear[0], motor.ctrlrange = 60.0, (-1.0, 1.0)
        return spec.compile()

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        _no_options(options)
        return np.array([0.0, np.pi]) + random.uniform(-0.1, 0.1, 2), random.uniform(-0.1, 0.1, 2)

    def _observe(self) -> Float[ndarray, "N obs"]:
        x, angle = self.qpos.T
        return np.stack((x, np.cos(angle), np.sin(angle), *self.qvel.T), axis=1)

    def _evaluate(
        self, action: Float[ndarray, "N U"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        x, angle = self.qpos.T
        upright = (1 + np.cos(angle)) / 2
        off_centre = 0.1 * np.square(x)
        effort = 0.01 * np.square(action).sum(axis=1)
        info = self._reset_info() | {
            "reward_upright": upright,
            "reward_position": -off_centre,
            "reward_ctrl": -effort,
        }
        return upright - off_centre - effort, np.zeros(self.num_envs, bool), info

    def _reset_info(self) -> dict[str, ndarray]:
        return {"x_position": self.qpos[:, 0]}


TASKS: dict[str, type[PlanarRunner | Ant | CartPoleSwingUp]] = {
    "HalfCheetah-v5": HalfCheetah,
    "Ant-v5": Ant,
    "Hopper-v5": Hopper,
    "Walker2d-v5": Walker2d,
    "CartPoleSwingUp-v0": CartPoleSwingUp,
}
"""Registered as `offroad/<name>`, with the time limits of `offroad.envs.LOCOMOTION`."""


def make_vector(task: str, num_envs: int = 1, **kwargs: Any) -> MujocoVectorEnv:
    """The vector environment of a name in `TASKS`; `gymnasium.make_vec` calls it and adds the time limit."""
    if task not in TASKS:
        raise unknown("locomotion task", task, TASKS)
    return TASKS[task](num_envs, **kwargs)


def make_single(task: str, **kwargs: Any) -> SingleMujocoEnv:
    """The single environment of a name in `TASKS`; `gymnasium.make` calls it and adds the time limit."""
    return SingleMujocoEnv(make_vector(task, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))


def _asset(name: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(ASSETS / name))


def _unbounded(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)


def _no_options(options: Mapping[str, Any]) -> None:
    if options:
        raise OffroadError(
            f"reset options {sorted(options)} are unknown to this task; "
            "the only one is 'reset_mask', of a vector environment"
        )
