"""A point that walks in one of four directions, which it changes every few steps, and a world to walk in."""

import functools

import gymnasium as gym
import jax
import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.skills import Primitives, PrimitivesConfig

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), gym_spaces.Box(-2, 2, (2,), np.float32))
LENGTH = 5
DIRECTIONS = np.float32([[1.6, 0], [0, 1.6], [-1.6, 0], [0, -1.6]])


def walks(episodes=60, length=40, seed=0, goal=None):
    """Noisy actions; a step moves by a tenth of the action. At `goal` (a distance to the right) episodes terminate."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(4, size=(episodes, length // LENGTH)).repeat(LENGTH, 1)
    actions = (DIRECTIONS[turns] + 0.15 * rng.standard_normal((episodes, length, 2))).astype(np.float32)
    moves = np.concatenate([np.zeros((episodes, 1, 2)), 0.1 * actions.cumsum(1)], 1)
    seen = (rng.uniform(-1, 1, (episodes, 1, 2)) + moves).astype(np.float32)
    arrived = np.zeros((episodes, length), bool) if goal is None else seen[:, 1:, 0] > goal
    stop = np.where(arrived.any(1), arrived.argmax(1), length - 1)
    kept = np.arange(length) <= stop[:, None]
    last = np.arange(length) == stop[:, None]
    return Dataset(
        observations=seen[:, :-1][kept],
        actions=actions[kept],
        rewards=arrived[kept].astype(np.float32),
        terminated=(arrived & last)[kept],
        truncated=(~arrived & last)[kept],
        final_observations=seen[np.arange(episodes), stop + 1],
    )


def learnt(learner, data, updates, seed=0):
    """After so many updates on batches of `data`, all compiled together."""
    batches = data.sample(np.random.default_rng(seed), (updates, learner.config.batch))
    step = lambda learner, now: learner.update(*now)  # noqa: E731
    keys = jax.random.split(jax.random.key(seed), updates)
    learner, metrics = jax.jit(lambda learner, *now: jax.lax.scan(step, learner, now))(learner, batches, keys)
    return learner, jax.tree.map(lambda x: np.asarray(x)[-50:].mean(), metrics)


@functools.cache
def free():
    """Primitives that have learnt from the walks, not yet frozen."""
    config = PrimitivesConfig(batch=64, length=LENGTH, latents=4, hidden=(64, 64), learning_rate=3e-3)
    primitives = Primitives.create(SPACES, config, jax.random.key(0))
    return learnt(primitives, primitives.windows(walks()), 800)[0]


@functools.cache
def tuned():
    """And frozen and finetuned."""
    primitives = free().freeze(walks(), jax.random.key(1))
    return learnt(primitives, primitives.windows(walks()), 400)[0]


class Walk(gym.Env):
    """The walks' world. Beyond `goal` the reward is 1 and the episode over; at step `limit` it is cut off."""

    observation_space, action_space = SPACES.observation, SPACES.action

    def __init__(self, goal=1.0, limit=20, start=0.0):
        self.goal, self.limit, self.start = goal, limit, start

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, np.array([self.start, 0], np.float32)
        return self.x.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t, self.x = self.t + 1, (self.x + 0.1 * action).astype(np.float32)
        arrived = bool(self.x[0] > self.goal)
        return self.x.copy(), float(arrived), arrived, self.t == self.limit, {"t": self.t}


def worlds(*each, mode=AutoresetMode.DISABLED):
    return SyncVectorEnv([lambda options=options: Walk(**options) for options in each], autoreset_mode=mode)
