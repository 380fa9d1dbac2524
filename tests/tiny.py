"""Agents so small that they compile in seconds, and a Gymnasium environment whose every number can be told by hand."""

from dataclasses import dataclass, replace

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import Array

import offroad
from offroad import train
from offroad.agents import PPO, SAC, PPOConfig, SACConfig, stacked
from offroad.agents.agent import Agent
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition


def cheetah(num_envs=4, **options):
    return offroad.make_vec("offroad/HalfCheetah-v5", num_envs=num_envs, num_threads=1, **options)


def stack(num_envs=4, **options):
    """Two slots for blocks; resets are left to the caller."""
    options = {"blocks": 2, "num_threads": 1, "autoreset_mode": AutoresetMode.DISABLED, **options}
    return offroad.make_vec("offroad/Stack-v0", num_envs=num_envs, **options)


def stack_episodes(env, steps, options, seed=0):
    """What random actions bring about: transitions `[steps, N]`, and the states before them, `states[t][n]`."""
    random, rows, states = np.random.default_rng(seed), [], []
    before, _ = env.reset(seed=seed)
    for part in options:
        before, _ = env.reset(options=part)
    for step in range(steps):
        states.append([env.world_state(world) for world in range(env.num_envs)])
        action = random.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        after, reward, terminated, _, _ = env.step(action)
        end = np.full(env.num_envs, step + 1 == steps)
        rows.append(Transition(before, action, reward.astype(np.float32), after, terminated, end))
        before = after
    return jax.tree.map(lambda *x: np.stack(x), *rows), states


def ppo(env, seed=0, **config):
    config = PPOConfig(**{"rollout": 8, "epochs": 1, "minibatch": 16, "hidden": (8,), **config})
    return PPO.create(Spaces.of(env), config, jax.random.key(seed))


def sac(env, seed=0, **config):
    return SAC.create(Spaces.of(env), SACConfig(**{"batch": 8, "hidden": (8,), **config}), jax.random.key(seed))


def agents(create, env, seeds):
    return create(env, seeds) if isinstance(seeds, int) else stacked([create(env, seed) for seed in seeds])


def train_ppo(env, steps, seed=0, **options):
    return train.on_policy(agents(ppo, env, seed), env, steps, seed=seed, **{"progress": False, **options})


def train_sac(env, steps, seed=0, **options):
    options = {"learning_starts": 60, "train_every": 8, "update_ratio": 0.125, "progress": False, **options}
    return train.off_policy(agents(sac, env, seed), env, steps, seed=seed, **options)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(one, other):
    """Whether two agents agree to the bit."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@dataclass(frozen=True)
class ProportionalConfig:
    rollout: int = 5
    batch: int = 4


class Proportional(Agent):
    """Acts `gain * step of the episode + its own count of the calls in this episode`; learning adds `change`."""

    gain: Array
    change: Array
    spaces: Spaces = eqx.field(static=True)
    config: ProportionalConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces, config=None, key=None, gain=1.0, change=0.0):
        return cls(jnp.float32(gain), jnp.float32(change), spaces, ProportionalConfig())

    def initial_memory(self, num_envs):
        return jnp.zeros(num_envs)

    def act(self, observation, key=None, memory=()):
        where = observation["where"] if isinstance(observation, dict) else observation
        noise = 0.0 if key is None else jax.random.normal(key, memory.shape)
        return (self.gain * where[:, 1] + memory + noise)[:, None], memory + 1

    def update(self, batch, key):
        return replace(self, gain=self.gain + self.change), {"loss": jnp.float32(0)}


class Steps(gym.Env):
    """Shows `[episode, step]` (with `nested`: in a Dict). The reward is the action that arrives.

    Episodes terminate at step `end` or are truncated at step `cut`. In the environment's step number `fail_at` it
    raises, at `nan_at` it returns a NaN, from `huge_at` on it pays rewards whose squares overflow.
    """

    action_space = spaces.Box(-3.0, 3.0, (1,), np.float32)

    def __init__(self, end=None, cut=None, nested=False, fail_at=None, nan_at=None, huge_at=None):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict({"where": box, "again": spaces.Discrete(100)}) if nested else box
        self.end, self.cut, self.nested = end, cut, nested
        self.fail_at, self.nan_at, self.huge_at = fail_at, nan_at, huge_at
        self.episode = self.total = 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return self._show(), {}

    def step(self, action):
        self.t, self.total = self.t + 1, self.total + 1
        if self.total == self.fail_at:
            raise RuntimeError("the motor burnt")
        reward = np.nan if self.total == self.nan_at else float(action[0])
        if self.huge_at and self.total >= self.huge_at:
            reward = 1e30
        return self._show(), reward, self.t == self.end, self.t == self.cut, {}

    def _show(self):
        where = np.array([self.episode, self.t], np.float64)
        return {"where": where, "again": self.t} if self.nested else where


def steps_env(*each, mode=AutoresetMode.SAME_STEP):
    """One copy of `Steps` for each dictionary of arguments."""
    return SyncVectorEnv([lambda options=options: Steps(**options) for options in each], autoreset_mode=mode)


def eight(**changes):
    """Eight random transitions: 3 observed numbers, actions in [-2, 4] x [-2, 4]; three terminate, three are cut."""
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    values = {
        "observation": jax.random.normal(a, (8, 3)),
        "action": jax.random.uniform(b, (8, 2), minval=-2, maxval=4),
        "reward": jax.random.normal(c, (8,)),
        "next_observation": jax.random.normal(d, (8, 3)),
        "terminated": jnp.arange(8) % 3 == 0,
        "truncated": jnp.arange(8) % 3 == 1,
    }
    return Transition(**values | changes)


def distance(a, b):
    """Between two trees of arrays, summed over all numbers."""
    return sum(float(jnp.abs(x - y).sum()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
