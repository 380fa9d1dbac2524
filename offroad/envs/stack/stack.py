"""Stacking cubes from sparse reward: a goal-conditioned, multi-object task with an entity axis.

The task is that of Li et al. 2020 (arXiv 1912.11032) with a free hand instead of the Fetch arm. Shapes: N worlds,
n slots for blocks; `*batch` stands for any leading axes.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs.stack.goals import TASKS, near, starts
from offroad.envs.stack.scene import BLOCK, OPEN, ROBOT, build
from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError, unknown

MOST_BLOCKS = 9
FEATURES = 16  # numbers that describe a block
START_HEIGHT = 0.20  # of the hand
WORKSPACE = np.array([[-0.3, -0.3, 0.016], [0.3, 0.3, 0.75]])  # of the hand's targets


@dataclass(frozen=True)
class Decision:
    """What one action does: first the gripper moves alone, then the hand travels `reach` at full deflection."""

    gripper_first: int  # physics steps of 8 ms
    motion: int  # physics steps
    reach: float  # m
    horizon: int  # decisions of an episode, for each block that is to be moved


DECISIONS = {
    "long": Decision(gripper_first=8, motion=15, reach=0.10, horizon=15),  # 184 ms
    "short": Decision(gripper_first=0, motion=5, reach=0.05, horizon=50),  # 40 ms, the paper's
}


@dataclass(frozen=True)
class Precision:
    """When a block is in its place, and the hand away from all goals."""

    distance: float  # m, between a block and its goal
    height: float  # m, the part of it along z
    away: float  # m, between the hand and the nearest goal


PRECISIONS = {
    "loose": Precision(distance=0.05, height=np.inf, away=0.10),  # the paper's
    "strict": Precision(distance=0.025, height=0.01, away=0.08),
}


class Stack(MujocoVectorEnv):
    """Bring every block to its goal and take the hand away.

    **Observation** (float32, SI units): `robot` 10: hand position 3, openings of the fingers 2, hand velocity 3,
    finger velocities 2; `objects` `[n, 16]`: position 3, position relative to the hand 3, sine and cosine of four
    times the yaw 2 (a cube looks the same every quarter turn), tilt 2 (horizontal part of the axis that points up),
    velocity relative to the hand 3, angular velocity 3; `goals` `[n, 3]`: where each block is to go; `mask` `[n]`: 1
    for blocks that are there, whose slots come first; absent slots are zero.

    **Action** in [-1, 1]: motion of the hand along x, y, z in units of the decision's reach, and each finger's distance
    from the middle: 0.025 m times (1 + a), at most 0.04 m; 0 touches a block, -1 squeezes with 15 N.

    **Reward**: the paper's incremental one, minus 1 and divided by the number of blocks plus one, so that it lies in
    [-1, 0]: -(blocks out of place + 1 unless all are in place and the hand is away) / (blocks + 1). Never terminates.

    **Options** of `reset`: `task` ("tower", "towers", "pyramid" or "pick"); `blocks`, how many are there; `built`, how
    many of them, from the first, are in place from the start; `held`, whether the next one starts in the hand;
    `goal_distance`, the most that the first goal lies from its block, in m; or `state`, from `world_state`.

    Info: `placed` (number of blocks in place), `success` (with the precision of the reward), `success_loose` and
    `success_strict`.

    Args:
        blocks: n, at most 9.
        decision: "long" (184 ms: the gripper first, then up to 10 cm) or "short" (40 ms, 5 cm, all at once).
        precision: "strict" (2.5 cm, 1 cm in height, hand 8 cm away) or "loose" (5 cm, hand 10 cm away).
        task: for episodes whose options name none.
        friction: of all surfaces.
        kwargs: those of `MujocoVectorEnv`. By default an episode takes 15 long or 50 short decisions for each block
            that is not in place from the start.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        blocks: int = 2,
        decision: str = "long",
        precision: str = "strict",
        task: str = "tower",
        friction: float | int = 1.0,
        **kwargs: Any,
    ):
        if not 1 <= blocks <= MOST_BLOCKS:
            raise OffroadError(f"blocks is {blocks}; expected 1 to {MOST_BLOCKS}")
        for kind, name, known in (
            ("decision", decision, DECISIONS),
            ("precision", precision, PRECISIONS),
            ("task", task, TASKS),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        self.blocks, self.task = blocks, task
        self.decision, self.precision = DECISIONS[decision], PRECISIONS[precision]
        self._scenes = [build(blocks, present, friction) for present in range(1, blocks + 1)]
        everywhere = {"robot": (10,), "objects": (blocks, FEATURES), "goals": (blocks, 3)}
        parts: dict[str, gym.Space] = {
            name: gym.spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in everywhere.items()
        }
        super().__init__(
            self._scenes[-1],
            num_envs=num_envs,
            frame_skip=self.decision.gripper_first + self.decision.motion,
            observation_space=gym.spaces.Dict(parts | {"mask": gym.spaces.MultiBinary(blocks)}),
            action_space=gym.spaces.Box(-1, 1, (4,), np.float32),
            **kwargs,
        )
        self._add_extra("goals", (blocks, 3))
        self._add_extra("mask", (blocks,))
        self._add_extra("limit", ())

    # Goals, for any batch of observations.

    def placed(self, observation: Mapping[str, ndarray], precision: Precision) -> Bool[ndarray, "*batch n"]:
        """Which blocks are in place; False for slots without a block."""
        error = observation["objects"][..., :3] - observation["goals"]
        near = np.linalg.norm(error, axis=-1) <= precision.distance
        level = np.abs(error[..., 2]) <= precision.height
        return np.asarray(near & level & (observation["mask"] > 0))

    def compute_reward(self, observation: Mapping[str, ndarray]) -> Float[ndarray, "*batch"]:
        """The reward of having arrived at these observations, whose goals may have been exchanged."""
        placed, present = self.placed(observation, self.precision), observation["mask"] > 0
        missing = present.sum(-1) - placed.sum(-1)
        unfinished = (missing > 0) | ~self._away(observation, self.precision)
        return (-(missing + unfinished) / (present.sum(-1) + 1)).astype(np.float32)

    def compute_success(
        self, observation: Mapping[str, ndarray], precision: str | None = None
    ) -> Bool[ndarray, "*batch"]:
        """Whether all blocks are in place. By the strict precision the hand must also be away, unless a goal is in
        the air, where a block must be held. "loose" is the paper's criterion."""
        chosen = self.precision if precision is None else PRECISIONS[precision]
        missing = (observation["mask"] > 0) & ~self.placed(observation, chosen)
        done = ~missing.any(-1)
        if chosen is PRECISIONS["loose"]:
            return np.asarray(done)
        return np.asarray(done & (self._away(observation, chosen) | _in_air(observation).any(-1)))

    def stands(self, seconds: float | int = 1.0) -> Bool[ndarray, "N"]:
        """Whether each world succeeds now, strictly, and still does after `seconds` with an idle hand.

        The worlds themselves do not move.
        """
        before = self.compute_success(self._observe(), "strict")
        now = self._state.copy()
        idle = np.concatenate((self.qpos[:, :3], self.qpos[:, 3:ROBOT]), axis=1)
        for _ in range(math.ceil(seconds / self.dt)):
            self._physics.step(self._state, idle)
        after = self.compute_success(self._observe(), "strict")
        self._state[:] = now
        return before & after

    def _away(self, observation: Mapping[str, ndarray], precision: Precision) -> Bool[ndarray, "*batch"]:
        distance = np.linalg.norm(observation["robot"][..., None, :3] - observation["goals"], axis=-1)
        return np.all((distance > precision.away) | (observation["mask"] == 0), axis=-1)

    # What `MujocoVectorEnv` asks for.

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        options = dict(options)
        if (state := options.pop("state", None)) is not None:
            return self._saved_state(world, state)
        task, count = options.pop("task", self.task), options.pop("blocks", self.blocks)
        built, held = options.pop("built", 0), options.pop("held", False)
        distance = options.pop("goal_distance", None)
        self._check_options(task, count, built, held, options)

        start = starts(random, count)
        goals = TASKS[task](random, start)
        if distance is not None:
            goals = near(goals, start, distance)
        start[:built] = goals[:built]
        for _ in range(1000):  # the others stay clear of what is built
            gap = np.linalg.norm(start[built:, None, :2] - start[None, :built, :2], axis=-1)
            if not (gap < 1.5 * BLOCK).any():
                break
            start[built:] = starts(random, count)[built:]
        hand = np.array([0.0, 0.0, START_HEIGHT + BLOCK * built])
        if held:
            start[built] = hand
        fingers = BLOCK / 2 if held else OPEN

        position, velocity = self._scenes[count - 1].qpos0.copy(), np.zeros(self.qvel.shape[1])
        position[:ROBOT] = *hand, fingers, fingers
        position[ROBOT:].reshape(-1, 7)[:count, :3] = start
        self._set_task(world, goals, self.decision.horizon * max(count - built, 1))
        return position, velocity

    def _controls(self, action: Float[ndarray, "N A"]) -> Float[ndarray, "N P U"]:
        first, motion = self.decision.gripper_first, self.decision.motion
        hand = self.qpos[:, :3]
        control = np.empty((self.num_envs, first + motion, ROBOT))
        control[:, :first, :3] = hand[:, None]
        target = np.clip(hand + self.decision.reach * np.clip(action[:, :3], -1, 1), *WORKSPACE)
        control[:, first:, :3] = target[:, None]
        control[:, :, 3:] = np.clip(BLOCK / 2 * (1 + action[:, 3]), 0, OPEN)[:, None, None]
        return control

    def _observe(self) -> dict[str, ndarray]:
        hand, hand_velocity = self.qpos[:, :3], self.qvel[:, :3]
        pose = self.qpos[:, ROBOT:].reshape(self.num_envs, self.blocks, 7)
        velocity = self.qvel[:, ROBOT:].reshape(self.num_envs, self.blocks, 6)
        mask = self.extras["mask"]
        features = (
            pose[..., :3],
            pose[..., :3] - hand[:, None],
            _orientation(pose[..., 3:]),
            velocity[..., :3] - hand_velocity[:, None],
            velocity[..., 3:],
        )
        return {
            "robot": np.concatenate((self.qpos[:, :ROBOT], self.qvel[:, :ROBOT]), axis=1, dtype=np.float32),
            "objects": (np.concatenate(features, axis=-1) * mask[..., None]).astype(np.float32),
            "goals": self.extras["goals"].astype(np.float32),
            "mask": mask.astype(np.int8),
        }

    def _evaluate(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        observation = self._observe()
        reward = self.compute_reward(observation).astype(float)
        return reward, np.zeros(self.num_envs, bool), self._outcome(observation)

    def _reset_info(self) -> dict[str, ndarray]:
        return self._outcome(self._observe())

    def _outcome(self, observation: Mapping[str, ndarray]) -> dict[str, ndarray]:
        loose, strict = (self.compute_success(observation, name) for name in ("loose", "strict"))
        return {
            "placed": self.placed(observation, self.precision).sum(-1),
            "success": (strict if self.precision is PRECISIONS["strict"] else loose).copy(),
            "success_loose": loose,
            "success_strict": strict,
        }

    # States of worlds, for demonstrations.

    def world_state(self, world: int) -> dict[str, ndarray]:
        """What `reset(options={"state": ...})` needs to continue from where a world is now."""
        goals = self.extras["goals"][world, self.extras["mask"][world] > 0]
        return {"qpos": self.qpos[world].copy(), "qvel": self.qvel[world].copy(), "goals": goals.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        for world, (mask, limit) in enumerate(zip(self.extras["mask"], self.extras["limit"])):
            self.models[world], self._limits[world] = self._scenes[int(mask.sum()) - 1], limit

    def _saved_state(self, world: int, state: Mapping[str, ndarray]) -> tuple[ndarray, ndarray]:
        count = len(state["goals"])
        if np.shape(state["qpos"]) != self.qpos[world].shape or count > self.blocks:
            raise OffroadError(
                f"a saved state of {count} blocks with qpos {np.shape(state['qpos'])} does not fit a scene for "
                f"{self.blocks} blocks with qpos {self.qpos[world].shape}; use demonstrations made with as many blocks"
            )
        self._set_task(world, np.asarray(state["goals"]), self.decision.horizon * count)
        return np.asarray(state["qpos"]), np.asarray(state["qvel"])

    def _set_task(self, world: int, goals: Float[ndarray, "k 3"], limit: int) -> None:
        count = len(goals)
        self.extras["goals"][world], self.extras["mask"][world] = 0.0, 0.0
        self.extras["goals"][world, :count], self.extras["mask"][world, :count] = goals, 1.0
        self._limits[world] = limit if self.max_episode_steps is None else self.max_episode_steps
        self.extras["limit"][world] = self._limits[world]
        self.models[world] = self._scenes[count - 1]

    def _check_options(self, task: str, count: int, built: int, held: bool, others: Mapping[str, Any]) -> None:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        if not 1 <= count <= self.blocks:
            raise OffroadError(
                f"the task asks for {count} blocks, the scene has room for {self.blocks}; make the environment with "
                f"blocks={max(count, 1)}"
                if count > self.blocks
                else f"the task asks for {count} blocks, expected 1 to {self.blocks}"
            )
        if not 0 <= built <= count - int(held):
            raise OffroadError(f"options ask for {built} of {count} blocks built and held={held}; expected fewer built")
        if others:
            raise unknown("reset option", next(iter(others)), OPTIONS)


OPTIONS = ("task", "blocks", "built", "held", "goal_distance", "state")


def make_vector(num_envs: int = 1, **kwargs: Any) -> Stack:
    """`gymnasium.make_vec("offroad/Stack-v0", ...)`."""
    return Stack(num_envs, **kwargs)


def make_single(**kwargs: Any) -> SingleMujocoEnv:
    """`gymnasium.make("offroad/Stack-v0", ...)`."""
    return SingleMujocoEnv(Stack(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))


def _in_air(observation: Mapping[str, ndarray]) -> Bool[ndarray, "*batch n"]:
    """Goals that rest neither on the table nor on the place of another block."""
    goals, present = observation["goals"], observation["mask"] > 0
    gap = goals[..., :, None, :] - goals[..., None, :, :]  # from place j to place i
    below = (np.linalg.norm(gap[..., :2], axis=-1) < 0.8 * BLOCK) & (np.abs(gap[..., 2] - BLOCK) < 0.01)
    supported = (goals[..., 2] < 0.5 * BLOCK + 0.01) | (below & present[..., None, :]).any(-1)
    return present & ~supported


def _orientation(quaternion: Float[ndarray, "*batch 4"]) -> Float[ndarray, "*batch 4"]:
    """Sine and cosine of four times the yaw, and the tilt, of a cube whose faces all look the same."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    axes = np.stack(  # the body's axes in the world: axes[..., i, :] is the i-th
        (
            np.stack((1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)), -1),
            np.stack((2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)), -1),
            np.stack((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)), -1),
        ),
        -2,
    )
    upright = np.abs(axes[..., 2]).argmax(-1)[..., None, None]
    up = np.take_along_axis(axes, upright, -2)[..., 0, :]
    side = np.take_along_axis(axes, (upright + 1) % 3, -2)[..., 0, :]
    yaw = 4 * np.arctan2(side[..., 1], side[..., 0])
    tilt = up[..., :2] * np.sign(up[..., 2:])
    return np.concatenate((np.stack((np.sin(yaw), np.cos(yaw)), -1), tilt), -1)
