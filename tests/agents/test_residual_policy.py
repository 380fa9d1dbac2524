"""Residual policies: the base's share never reaches the learner, and a good base is a good start."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from offroad import train
from offroad.agents import PPO, SAC, PPOConfig, SACConfig
from offroad.agents.residual_policy import ResidualPolicy
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from tests.agents.test_ppo import rollout_of
from tests.jax_envs import point


class Halfway(eqx.Module):
    """Moves to the origin, but stops short of it by `offset`."""

    offset: jax.Array

    def __call__(self, observation, memory):
        return jnp.clip(-(observation - self.offset), -1, 1), memory


BASE = Halfway(jnp.array([0.5]))
CONFIG = PPOConfig(rollout=20, minibatch=160, epochs=8, learning_rate=3e-3, discount=0.9, hidden=(16,))


def residual(learner=PPO, config=CONFIG, scale=0.5):
    spaces = Spaces.of(point())
    return ResidualPolicy.create(spaces, config, jax.random.key(0), learner=learner, base=BASE, scale=scale)


def test_the_action_is_the_bases_plus_a_bounded_correction():
    agent = residual(SAC, SACConfig(hidden=(8,)), scale=0.25)
    seen = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    action, _ = agent.act(seen, jax.random.key(1))
    correction = action - BASE(seen, ())[0]
    assert np.abs(correction).max() <= 0.25 * 2.0  # a quarter of half the range [-2, 2]
    assert np.abs(correction).max() > 0


def test_learning_sees_only_the_correction():
    """The learner's update equals the one that it would make by itself on actions without the base's share."""
    agent = residual(config=dataclasses.replace(CONFIG, rollout=8, minibatch=16, epochs=1))
    rollout = rollout_of(agent.spaces.observation, agent.learner.spaces.action, 8, 8)
    base = np.asarray(jax.vmap(BASE, in_axes=(0, None))(rollout.transitions.observation, ())[0])
    shifted = eqx.tree_at(lambda r: r.transitions.action, rollout, rollout.transitions.action + base)
    alone, _ = eqx.filter_jit(agent.learner.update)(rollout, jax.random.key(1))
    inside, _ = eqx.filter_jit(agent.update)(shifted, jax.random.key(1))
    for x, y in zip(jax.tree.leaves(alone.network), jax.tree.leaves(inside.learner.network)):
        np.testing.assert_allclose(x, y, atol=1e-4)
    assert isinstance(shifted, Rollout)
    assert jax.tree.leaves(inside.base)[0] == 0.5  # the base is not trained


def test_starts_near_the_base_and_improves_on_it():
    env = point()
    agent = residual()
    base = train.evaluate(agent, env, 16, seed=100).returns.mean()
    run = train.on_policy(agent, env, 20_000, rollouts_per_call=4, progress=False)
    learnt = train.evaluate(run.agent, env, 16, seed=100).returns.mean()
    assert base > -15  # the untrained correction does no harm; standing still costs 20
    assert learnt > base / 2  # half the cost or less
