"""A data set of Gymnasium's pendulum: mediocre swings, which a method should improve on.

A controller swings the pendulum up by its energy and holds it there (Åström & Furuta 2000); its torque has Gaussian
noise, and half of all torques are drawn at random. Episodes are cut off after 200 steps, as in `Pendulum-v1`.
"""

import importlib.metadata
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.made import Made, require_rows

NAMES = ("pendulum-mixed",)
EPISODE = 200  # steps
WORLDS = 50
NOISE = 1.0  # N m, standard deviation
RANDOM = 0.5  # share of the torques
TORQUE = 2.0  # N m, at most


def swing_up(observations: Float[ndarray, "N 3"]) -> Float[ndarray, "N 1"]:
    """Torques that push with the motion while the energy is less than at the top, and hold the pendulum up there.

    Observations are cosine and sine of the angle from upright and the angular velocity in rad/s, torques in N m.
    """
    cosine, sine, velocity = observations.T
    angle = np.arctan2(sine, cosine)
    energy = velocity**2 / 6 + 5 * (cosine - 1)  # J, 0 at rest at the top: a rod of 1 kg and 1 m, 10 m/s^2
    near = (np.abs(angle) < 0.4) & (np.abs(velocity) < 3)
    torque = np.where(near, -10 * angle - 2 * velocity, -energy * np.sign(velocity))
    return np.clip(torque, -TORQUE, TORQUE)[:, None]


def make(
    name: str,
    steps: int,
    seed: int = 0,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """The data set `name` (one of `NAMES`) with `steps` rows, the same for the same seed; one thread makes it.

    `progress` is told how many rows are done. Raises `OffroadError` for a useless number of steps.
    """
    require_rows(steps)
    random = np.random.default_rng(seed)
    env = gym.make_vec("Pendulum-v1", WORLDS, vectorization_mode="sync", max_episode_steps=None)
    episodes = -(-steps // EPISODE)
    observations = np.zeros((episodes, EPISODE + 1, 3), np.float32)
    actions, rewards = np.zeros((episodes, EPISODE, 1), np.float32), np.zeros((episodes, EPISODE), np.float32)
    for first in range(0, episodes, WORLDS):
        now = slice(first, min(first + WORLDS, episodes))
        count = now.stop - first
        observation, _ = env.reset(seed=int(random.integers(2**31)))
        for t in range(EPISODE):
            torque = swing_up(observation) + NOISE * random.standard_normal((WORLDS, 1))
            aimless = random.random((WORLDS, 1)) < RANDOM
            torque = np.where(aimless, random.uniform(-TORQUE, TORQUE, (WORLDS, 1)), torque)
            action = np.clip(torque, -TORQUE, TORQUE).astype(np.float32)
            observations[now, t], actions[now, t] = observation[:count], action[:count]
            observation, reward, *_ = env.step(action)
            rewards[now, t] = reward[:count]
        observations[now, EPISODE] = observation[:count]
        progress(min(now.stop * EPISODE, steps))
    env.close()

    truncated = np.zeros(steps, bool)
    truncated[EPISODE - 1 :: EPISODE] = truncated[-1] = True
    ends = np.flatnonzero(truncated)
    columns = {
        "observations": observations[:, :-1].reshape(-1, 3)[:steps],
        "actions": actions.reshape(-1, 1)[:steps],
        "rewards": rewards.reshape(-1)[:steps],
        "terminated": np.zeros(steps, bool),
        "truncated": truncated,
        "final_observations": observations[ends // EPISODE, ends % EPISODE + 1],
    }
    provenance = {
        "recipe": name,
        "steps": steps,
        "seed": seed,
        "offroad": importlib.metadata.version("offroad"),
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }
    return Made(columns, provenance, f"{episodes} episodes; {rewards.sum(1).mean():.0f} is their mean return")
