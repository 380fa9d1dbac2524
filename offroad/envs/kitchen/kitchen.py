"""The Franka kitchen with D4RL's observation and tasks, as a batch: `offroad/Kitchen-partial-v0`, `-mixed-v0`."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs.kitchen import model
from offroad.envs.kitchen.model import FRAME_SKIP, HIGH, LOW, NOISE, OBJECTS, ROBOT
from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError, unknown

REACH = 0.16
"""How far ahead of where a joint was seen its actuator is told to be, at most, in rad or m: 2 a second for 80 ms."""


class Kitchen(MujocoVectorEnv):
    """Four things to do in a kitchen with a Franka arm, in any order: D4RL's (arXiv 2004.07219), with the physics of
    gymnasium-robotics' `FrankaKitchen-v1`. Whether a subtask is done is judged, as there, without noise.

    **Observation** 60 (float32): positions of the robot 9 and of the objects 21, both noisy, and 30 goals, constant and
    0 where nothing is asked for. No velocities.

    **Action** in [-1, 1], 9: velocities of the arm's joints (1: 2 rad/s) and of the two fingers. What the actuators
    hear are positions: the last noisy ones seen plus the velocity times 80 ms.

    **Reward** 1 for each subtask the first time that it is done. Terminates when all four are. An episode takes at most
    280 steps of 80 ms when made by Gymnasium's registry.

    Info: `completed` (how many of the four were done so far), `score` (the same in per cent, as D4RL normalises it) and
    `success` (all four).

    Args:
        tasks: "partial" (microwave, kettle, light switch, slide cabinet; D4RL's "complete" has the same), "mixed"
            (microwave, kettle, bottom burner, light switch), or a list of subtasks, keys of `model.GOALS`.
        noise: noise of what is seen, as a share of the amplitudes `model.NOISE`: D4RL's 0.1 is 0.01 rad at the arm.
        terminate: whether an episode ends when all is done.
        kwargs: those of `MujocoVectorEnv`.

    Raises `OffroadError` without gymnasium-robotics, whose model this is, and for unknown tasks.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: str | Sequence[str] = "partial",
        noise: float | int = 0.1,
        terminate: bool = True,
        **kwargs: Any,
    ):
        if isinstance(tasks, str) and tasks not in model.SETS:
            raise unknown("set of kitchen tasks", tasks, model.SETS)
        self.tasks = model.SETS[tasks] if isinstance(tasks, str) else tuple(tasks)
        if not self.tasks:
            raise OffroadError(f"the kitchen was given no tasks; name some of {', '.join(model.GOALS)}")
        for task in self.tasks:
            if task not in model.GOALS:
                raise unknown("kitchen task", task, model.GOALS)
        self.terminate = terminate
        self._noise = noise * NOISE
        self._goal = model.goal(self.tasks)
        super().__init__(
            model.load(),
            num_envs=num_envs,
            frame_skip=FRAME_SKIP,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (2 * (ROBOT + OBJECTS),), np.float32),
            action_space=gym.spaces.Box(-1, 1, (ROBOT,), np.float32),
            **kwargs,
        )
        self._add_extra("seen", (ROBOT + OBJECTS,))
        self._add_extra("done", (len(self.tasks),))

    def satisfied(self) -> Bool[ndarray, "N tasks"]:
        """Which subtasks are done in the state now, whatever was before."""
        return model.satisfied(self.qpos, self.tasks)

    # What `MujocoVectorEnv` asks for.

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        if options:
            raise OffroadError(
                f"reset options {sorted(options)} are unknown to the kitchen; "
                "the only one is 'reset_mask', of a vector environment"
            )
        self.extras["done"][world] = 0.0
        self.extras["seen"][world] = model.START + self._noise * random.uniform(-1, 1, len(self._noise))
        return model.START, np.zeros(self.qvel.shape[1])

    def _controls(self, action: Float[ndarray, "N A"]) -> Float[ndarray, "N U"]:
        return np.clip(self.extras["seen"][:, :ROBOT] + REACH * np.clip(action, -1, 1), LOW, HIGH)

    def _observe(self) -> Float[ndarray, "N obs"]:
        goals = np.broadcast_to(self._goal, self.qpos.shape)
        return np.concatenate((self.extras["seen"], goals), axis=1, dtype=np.float32)

    def _evaluate(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        random = np.stack([random.uniform(-1, 1, len(self._noise)) for random in self.np_random])
        self.extras["seen"][:] = self.qpos + self._noise * random
        new = self.satisfied() & (self.extras["done"] == 0)
        self.extras["done"] += new
        outcome = self._reset_info()
        return new.sum(axis=1).astype(float), outcome["success"] & self.terminate, outcome

    def _reset_info(self) -> dict[str, ndarray]:
        completed = self.extras["done"].sum(axis=1)
        every = len(self.tasks)
        return {"completed": completed.astype(int), "score": 100 * completed / every, "success": completed == every}


def make_vector(num_envs: int = 1, **kwargs: Any) -> Kitchen:
    """`gymnasium.make_vec("offroad/Kitchen-partial-v0", ...)`."""
    return Kitchen(num_envs, **kwargs)


def make_single(**kwargs: Any) -> SingleMujocoEnv:
    """`gymnasium.make("offroad/Kitchen-partial-v0", ...)`."""
    return SingleMujocoEnv(Kitchen(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))
