"""HAMR as a control task: walk or turn, in the full model or in the simple one, with the same interface.

Shapes: N worlds. Units at this edge are SI; inside, those of `offroad.envs.hamr.geometry`.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs.hamr import models as hamr_models
from offroad.envs.hamr.drive import FeedbackPhysics, leg_position_controller, record
from offroad.envs.hamr.geometry import BIAS, DOFS, LEGS, REST
from offroad.envs.physics import cores
from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError, unknown

DECISION = 4.0  # ms: 250 Hz
DECISIONS = 75  # 300 ms
REACH = 0.25  # rad, of the leg angles that actions ask for
CONTROLS, TASKS = ("angles", "voltage"), ("walk", "turn")
Correction = Callable[[ndarray, ndarray, ndarray, ndarray], ndarray]
"""`(angle [N, 8], velocity [N, 8], u [N, 8], begun [N]) -> u`: rad, rad/ms, actions; worlds that begin an episode."""


class Hamr(MujocoVectorEnv, abc.ABC):
    """HAMR on flat ground. `HamrFull` and `HamrSimple` differ in physics only.

    **Observation** 28 (float32, SI): position of the chassis 3 in m; roll, pitch, yaw in rad; 8 hip angles in rad;
    velocity of the chassis 3 in m/s (along the world's axes); its angular velocity 3 in rad/s (along its own axes); 8
    rates of the hip angles in rad/s. Legs come in the order FL, RL, FR, RR, each with swing, then lift.

    **Action** 8 in [-1, 1], 250 times a second. With `control="angles"`: where hip angles are to be, in units of 0.25
    rad; a PD on hip angles chooses drive voltages anew in every physics step. With `control="voltage"`: drive voltages,
    -1 for 0 V and 1 for 225 V, held for 4 ms. Either way the model is driven by voltages, so that a policy moves from
    one model to the other unchanged.

    **Reward** of a decision, in SI units: walk 2 d v_x - sqrt(roll^2 + pitch^2), v_x in m/s along the world's x; turn
    d / 2 times the yaw rate in rad/s; both speeds are means over the decision. Never terminates; an episode is cut off
    after 75 decisions (300 ms), or when the physics diverges.

    Info: `x_velocity` in m/s and `yaw_velocity` in rad/s of the last decision.

    Args:
        task: "walk" or "turn".
        direction: d: 1 (forward, left) or -1 (backward, right).
        control: "angles" or "voltage".
        dt: physics step in ms, a whole fraction of 4 ms; None takes the model's default.
        in_air: chassis fixed, no gravity: pose and velocity of the chassis are observed as zero.
        models: instead of the standard model: one, or one for each world, of the same structure and dt.
        kwargs: those of `MujocoVectorEnv`.
    """

    joints = tuple(f"{leg}_{dof}" for leg in LEGS for dof in DOFS)
    """The hip angles, in the order in which they are observed, told and corrected."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str = "walk",
        direction: int = 1,
        control: str = "angles",
        dt: float | int | None = None,
        in_air: bool = False,
        models: mujoco.MjModel | Sequence[mujoco.MjModel] | None = None,
        max_episode_steps: int | None = DECISIONS,
        num_threads: int | None = None,
        **kwargs: Any,
    ):
        for kind, name, known in (("task", task, TASKS), ("control mode", control, CONTROLS)):
            if name not in known:
                raise unknown(kind, name, known)
        if direction not in (-1, 1):
            raise OffroadError(f"direction is {direction}; expected 1 (forward, left) or -1 (backward, right)")
        models = models or self._model(in_air, {} if dt is None else {"dt": dt})
        first = models[0] if isinstance(models, Sequence) else models
        substeps = round(DECISION / first.opt.timestep)
        if substeps < 1 or abs(substeps * first.opt.timestep - DECISION) > 1e-9:
            raise OffroadError(f"the physics step is {first.opt.timestep} ms; expected 4 ms over a whole number")
        self.task, self.direction, self.control, self.in_air = task, direction, control, in_air
        super().__init__(
            models,
            num_envs=num_envs,
            frame_skip=substeps,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (28,), np.float32),
            action_space=gym.spaces.Box(-1, 1, (8,), np.float32),
            max_episode_steps=max_episode_steps,
            num_threads=num_threads,
            **kwargs,
        )
        self.metadata["render_fps"] = round(1e3 / DECISION)
        self._hips = hamr_models.hip_matrix(first)
        self._threads = min(num_envs, num_threads or cores())
        self._correction: Correction | None = None
        if control == "angles":
            self._act_in_every_step()

    def correct(self, correction: Correction) -> None:
        """Puts `correction` between the leg controller and the model. In every physics step it is given hip angles,
        rates and drive voltages as actions, and says which voltages to take, as actions that are not clipped again."""
        self._correction = correction
        self._act_in_every_step()

    # What a model declares.

    @abc.abstractmethod
    def _model(self, in_air: bool, dt: Mapping[str, float]) -> mujoco.MjModel: ...

    @abc.abstractmethod
    def _command(
        self, volts: Float[ndarray, "N 8"], angle: Float[ndarray, "N 8"], velocity: Float[ndarray, "N 8"]
    ) -> Float[ndarray, "N U"]:
        """What the actuators of the MuJoCo model are told, given drive voltages, hip angles and rad/ms."""

    # What `MujocoVectorEnv` asks for.

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        if options:
            raise OffroadError(
                f"reset options {sorted(options)} are unknown to HAMR; the only one is 'reset_mask', of a vector "
                "environment"
            )
        position, velocity = self.models[world].qpos0.copy(), np.zeros(self.qvel.shape[1])
        if not self.in_air:
            # Small differences between episodes, which contacts make large within 100 ms.
            roll, pitch = random.uniform(-0.01, 0.01, 2)
            position[2] += random.uniform(-0.05, 0.05)
            position[3:7] = np.array([1.0, roll / 2, pitch / 2, 0.0]) / np.hypot(1.0, np.hypot(roll, pitch) / 2)
            velocity[:6] = random.uniform(-1, 1, 6) * np.repeat((1e-2, 1e-3), 3)
        return position, velocity

    def _controls(self, action: Float[ndarray, "N 8"]) -> Float[ndarray, "N U"]:
        action = np.clip(action, -1.0, 1.0)
        command = REACH * action if self.control == "angles" else BIAS / 2 * (1 + action)
        if isinstance(self._physics, FeedbackPhysics):
            return command
        return self._command(command, *self._legs(self._state))

    def _law(self, state: Float[ndarray, "N S"], command: Float[ndarray, "N 8"]) -> Float[ndarray, "N U"]:
        angle, velocity = self._legs(state)
        volts = leg_position_controller(command, angle, velocity) if self.control == "angles" else command
        if self._correction is not None:
            begun = state[:, 0] < 1.5 * self.models[0].opt.timestep
            volts = REST + REST * self._correction(angle, velocity, (volts - REST) / REST, begun)
        return self._command(volts, angle, velocity)

    def _act_in_every_step(self) -> None:
        self._physics.close()
        self._physics = FeedbackPhysics(
            self.models, round(self.dt / self.models[0].opt.timestep), self._threads, self._law
        )

    def _legs(self, state: Float[ndarray, "N S"]) -> tuple[Float[ndarray, "N 8"], Float[ndarray, "N 8"]]:
        """Hip angles in rad and their rates in rad/ms."""
        joints, positions = self._hips.shape[1], 1 + self.qpos.shape[1]
        velocities = positions + self.qvel.shape[1]
        return (
            state[:, positions - joints : positions] @ self._hips.T,
            state[:, velocities - joints : velocities] @ self._hips.T,
        )

    def _observe(self) -> Float[ndarray, "N 28"]:
        angle, velocity = self._legs(self._state)
        if self.in_air:
            pose = motion = np.zeros((self.num_envs, 6))
        else:
            pose = np.concatenate((1e-3 * self.qpos[:, :3], _euler(self.qpos[:, 3:7])), axis=1)
            motion = np.concatenate((self.qvel[:, :3], 1e3 * self.qvel[:, 3:6]), axis=1)
        return np.concatenate((pose, angle, motion, 1e3 * velocity), axis=1, dtype=np.float32)

    def _evaluate(
        self, action: Float[ndarray, "N 8"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        x_velocity = yaw_velocity = tilt = np.zeros(self.num_envs)
        if not self.in_air:
            now, before = _euler(self.qpos[:, 3:7]), _euler(self.qpos_before[:, 3:7])
            x_velocity = (self.qpos[:, 0] - self.qpos_before[:, 0]) / DECISION
            turned = (now[:, 2] - before[:, 2] + np.pi) % (2 * np.pi) - np.pi
            yaw_velocity = 1e3 * turned / DECISION
            tilt = np.hypot(now[:, 0], now[:, 1])
        walks = self.task == "walk"
        reward = 2 * self.direction * x_velocity - tilt if walks else 0.5 * self.direction * yaw_velocity
        info = {"x_velocity": x_velocity, "yaw_velocity": yaw_velocity}
        return reward, np.zeros(self.num_envs, bool), info

    def _reset_info(self) -> dict[str, ndarray]:
        return {"x_velocity": np.zeros(self.num_envs), "yaw_velocity": np.zeros(self.num_envs)}


class HamrFull(Hamr):
    """HAMR with its linkages; see `Hamr`. Physics steps of 0.05 ms by default."""

    def _model(self, in_air: bool, dt: Mapping[str, float]) -> mujoco.MjModel:
        return hamr_models.full(in_air=in_air, **dt)

    def _command(self, volts: ndarray, angle: ndarray, velocity: ndarray) -> Float[ndarray, "N 8"]:
        return volts

    @staticmethod
    def log(
        voltages: Float[ndarray, "*worlds T 8"],
        *,
        interval: float | int = 0.25,
        dt: float | int = 0.05,
        in_air: bool = True,
    ) -> dict[str, ndarray]:
        """What the full model does under drive voltages, in the models' units: see `record`."""
        return record(hamr_models.full(dt, in_air=in_air), voltages, interval=interval)


class HamrSimple(Hamr):
    """HAMR with rigid legs; see `Hamr`. Physics steps of 0.25 ms by default.

    Args:
        constants: springs, dampers and torques of the hips: a name in `models.CONSTANTS`.
    """

    def __init__(self, num_envs: int = 1, *, constants: str = "projected", **kwargs: Any):
        self.constants = constants
        super().__init__(num_envs, **kwargs)

    def _model(self, in_air: bool, dt: Mapping[str, float]) -> mujoco.MjModel:
        return hamr_models.simple(in_air=in_air, constants=self.constants, **dt)

    def _command(self, volts: ndarray, angle: ndarray, velocity: ndarray) -> Float[ndarray, "N 8"]:
        return hamr_models.hip_torques(volts, self.constants)

    def driven(self) -> mujoco.MjModel:
        """The standard model in a stand, in steps of this environment, told voltages as actions: what `offroad.models`
        corrects by a log of hip angles in rad, rates in rad/ms and voltages as actions, rows in ms."""
        model = hamr_models.simple(self.models[0].opt.timestep, in_air=True, constants=self.constants)
        return hamr_models.driven_by_voltage(model, self.constants)

    @staticmethod
    def log(
        torques: Float[ndarray, "*worlds T 8"],
        *,
        interval: float | int = 0.25,
        dt: float | int = 0.25,
        in_air: bool = True,
        constants: str = "projected",
    ) -> dict[str, ndarray]:
        """What the simple model does under hip torques in N mm, in the models' units: see `record`."""
        return record(hamr_models.simple(dt, in_air=in_air, constants=constants), torques, interval=interval)


MODELS: dict[str, type[Hamr]] = {"full": HamrFull, "simple": HamrSimple}


def make_vector(model: str, num_envs: int = 1, **kwargs: Any) -> Hamr:
    """The vector environment of a name in `MODELS`; for `gymnasium.make_vec`."""
    return MODELS[model](num_envs, **kwargs)


def make_single(model: str, **kwargs: Any) -> SingleMujocoEnv:
    """The single environment of a name in `MODELS`; for `gymnasium.make`."""
    return SingleMujocoEnv(make_vector(model, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))


def _euler(quaternion: Float[ndarray, "N 4"]) -> Float[ndarray, "N 3"]:
    """Roll, pitch, yaw in rad: rotations about the fixed x, y, z axes, in this order."""
    w, x, y, z = quaternion.T
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.stack((roll, pitch, yaw), axis=1)
