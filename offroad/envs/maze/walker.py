"""The ant's low-level walker: it is told a direction and walks that way. It makes the data sets of the ant mazes.

The weights in `walker.npz` are those of an SAC agent, trained and exported by this library (see docs/mazes.md).

The ant has four equal legs, so that walking in any direction from any heading is the same task as walking roughly along
the first leg's side. `egocentric` therefore describes the ant in its own frame, with the legs numbered from the side
that faces the direction, and `to_motors` maps actions back. Physics has the same symmetry.

Shapes: N ants.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.maze import scene
from offroad.envs.maze.maze import standing
from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError

KNEE_SIGNS = np.array([1.0, -1.0, -1.0, 1.0])  # the ankle joints of two legs bend the other way
MOTOR_LEGS = [3, 0, 1, 2]  # the leg that each pair of motors belongs to
FEATURES = 28
WEIGHTS = Path(__file__).parent / "walker.npz"
EFFORT = 0.65  # of the trained policy's torques: it falls less often, and is slower


class Walker:
    """The trained walker: torques that bring ants towards a place in a straight line.

    `weights` is the `policy.npz` that `offroad export` writes for an SAC agent of `AntDirection`.
    """

    def __init__(self, weights: str | Path = WEIGHTS):
        with np.load(weights, allow_pickle=False) as file:
            arrays = [file[str(i)] for i in range(len(file.files) - 4)]  # the last four are the actions' bounds
        self._layers = list(zip(arrays[::2], arrays[1::2]))

    def __call__(self, observations: Float[ndarray, "N 29"], places: Float[ndarray, "N 2"]) -> Float[ndarray, "N 8"]:
        """Actions of `AntMaze` in [-1, 1] for its observations; `places` are x and y in m."""
        way = places - observations[:, :2]
        direction = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
        features, turns = egocentric(observations[:, :15], observations[:, 15:], direction)
        first, *others = self._layers
        x = _product(features.astype(np.float32), first[0]) + first[1]
        for weight, bias in others:
            x = _product(np.maximum(x, 0.0), weight) + bias
        return to_motors(EFFORT * np.tanh(x[:, :8]).astype(float), turns)  # the other half are standard deviations


def _product(x: Float[ndarray, "N size"], weight: Float[ndarray, "size out"]) -> Float[ndarray, "N out"]:
    """`x @ weight`, a few rows at a time. BLAS spreads larger products over threads, whose number then changes the last
    digits, and thereby, as ants are chaotic, the whole data set; and threads wait for each other on a busy machine."""
    return np.concatenate([x[row : row + 4] @ weight for row in range(0, len(x), 4)])


def egocentric(
    qpos: Float[ndarray, "N 15"], qvel: Float[ndarray, "N 14"], direction: Float[ndarray, "N 2"]
) -> tuple[Float[ndarray, "N 28"], Int[ndarray, "N"]]:
    """What the ant feels, in its own frame, and by how many quarters that frame is turned from the torso's.

    Features: height; where up is (3) and where the direction is (2); linear and angular velocity (6); then the angles
    of hips (4) and knees (4) and their velocities (8), anticlockwise. The frame is turned about the torso's axis by the
    multiple of 90 degrees that brings its x axis, 45 degrees to the right of the first leg, nearest to the direction.
    """
    axes = _rotation(qpos[:, 3:7])  # columns: the torso's axes in the world
    ahead = np.einsum("ni,nij->nj", direction, axes[:, :2])
    turns = np.round(np.arctan2(ahead[:, 1], ahead[:, 0]) / (np.pi / 2)).astype(int) % 4
    vectors = np.stack((axes[:, 2], ahead, np.einsum("ni,nij->nj", qvel[:, :3], axes), qvel[:, 3:6]), axis=1)
    cosine, sine = np.array([1, 0, -1, 0])[turns, None], np.array([0, 1, 0, -1])[turns, None]
    x, y, z = np.moveaxis(vectors, 2, 0)
    turned = np.stack((cosine * x + sine * y, cosine * y - sine * x, z), axis=2)
    legs = np.stack((qpos[:, 7::2], qpos[:, 8::2] * KNEE_SIGNS, qvel[:, 6::2], qvel[:, 7::2] * KNEE_SIGNS), axis=1)
    legs = np.take_along_axis(legs, _legs(turns)[:, None], axis=2)
    parts = (qpos[:, 2:3], turned[:, 0], turned[:, 1, :2], turned[:, 2], turned[:, 3], legs.reshape(-1, 16))
    return np.concatenate(parts, axis=1), turns


def to_motors(action: Float[ndarray, "N 8"], turns: Int[ndarray, "N"]) -> Float[ndarray, "N 8"]:
    """Torques of hips (4) and knees (4) in the frame of `egocentric` as the controls of the ant's motors."""
    back = np.argsort(_legs(turns), axis=1)
    hips, knees = (np.take_along_axis(half, back, axis=1) for half in (action[:, :4], action[:, 4:]))
    return np.stack((hips, knees * KNEE_SIGNS), axis=2)[:, MOTOR_LEGS].reshape(-1, 8)


def _legs(turns: Int[ndarray, "N"]) -> Int[ndarray, "N 4"]:
    return (np.arange(4) + turns[:, None]) % 4


def _rotation(quaternion: Float[ndarray, "N 4"]) -> Float[ndarray, "N 3 3"]:
    w, x, y, z = (quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


class AntDirection(MujocoVectorEnv):
    """Walk in a direction that changes every 100 steps, on open ground, with the ant of the mazes.

    **Observation** (28): the features of `egocentric`. **Action** in [-1, 1] (8): torques in the same frame.
    **Reward**: the speed along the direction in m/s. An episode takes at most 500 steps (50 s) and terminates when the
    ant lies on its back. This is the task of OGBench's walkers but for the frame and that end.
    """

    RESAMPLE = 100  # steps

    def __init__(self, num_envs: int = 1, **kwargs: Any):
        """The arguments are those of `MujocoVectorEnv`."""
        super().__init__(
            scene.ant(),
            num_envs=num_envs,
            frame_skip=5,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float64),
            **kwargs,
        )
        self._add_extra("direction", (2,))

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        if options:
            raise OffroadError(f"reset options {sorted(options)} are unknown to AntDirection; it has none")
        self.extras["direction"][world] = _direction(random)
        return standing(self.models[world], random)

    def _controls(self, action: Float[ndarray, "N A"]) -> Float[ndarray, "N U"]:
        return to_motors(action, self._egocentric()[1])

    def _egocentric(self) -> tuple[Float[ndarray, "N 28"], Int[ndarray, "N"]]:
        return egocentric(self.qpos, self.qvel, self.extras["direction"])

    def _observe(self) -> Float[ndarray, "N obs"]:
        return self._egocentric()[0]

    def _evaluate(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        speed = ((self.qpos - self.qpos_before)[:, :2] * self.extras["direction"]).sum(axis=1) / self.dt
        info = self._reset_info()
        for world in np.flatnonzero((self._steps + 1) % self.RESAMPLE == 0).tolist():
            self.extras["direction"][world] = _direction(self.np_random[world])
        return speed, self._egocentric()[0][:, 3] < 0.0, info

    def _reset_info(self) -> dict[str, ndarray]:
        return {"xy": self.qpos[:, :2].copy(), "direction": self.extras["direction"].copy()}


def _direction(random: np.random.Generator) -> Float[ndarray, "2"]:
    angle = random.uniform(-np.pi, np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def make_vector(num_envs: int = 1, **kwargs: Any) -> AntDirection:
    """`gymnasium.make_vec` calls it and adds the time limit."""
    return AntDirection(num_envs, **kwargs)


def make_single(**kwargs: Any) -> SingleMujocoEnv:
    """The single environment; `gymnasium.make` calls it and adds the time limit."""
    return SingleMujocoEnv(AntDirection(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))
