"""SAC: its losses on a case that can be solved by hand, and that it learns."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from offroad import train
from offroad.agents import SAC, SACConfig, stacked
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from tests.jax_envs import point

SPACES = Spaces(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-3.0, 5.0, (2,), np.float32))
SMALL = SACConfig(hidden=(8,), batch=4)
update = jax.jit(SAC.update)


def batch_of(n: int = 4, terminated: bool = False, seed: int = 0) -> Transition:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal((n, *shape)).astype(np.float32)  # noqa: E731
    action = rng.uniform(-3, 5, (n, 2)).astype(np.float32)
    flag = np.full(n, terminated)
    return Transition(normal(3), action, normal(), normal(3), flag, ~flag)


def test_the_critics_fit_the_reward_where_the_episode_terminated():
    """Without a future the target is the reward, whatever the discount and the temperature."""
    agent = SAC.create(SPACES, dataclasses.replace(SMALL, learning_rate=1e-2, hidden=(64,)), jax.random.key(0))
    batch = batch_of(terminated=True)

    def step(agent, key):
        agent, metrics = agent.update(batch, key)
        return agent, metrics["critic_loss"]

    _, losses = jax.jit(lambda a: jax.lax.scan(step, a, jax.random.split(jax.random.key(1), 400)))(agent)
    assert losses[-1] < 1e-3 < losses[0]


def test_a_truncated_step_is_bootstrapped_and_a_terminated_one_is_not():
    agent = SAC.create(SPACES, SMALL, jax.random.key(0))
    loss = lambda batch: update(agent, batch, jax.random.key(1))[1]["critic_loss"]  # noqa: E731
    batch = batch_of(terminated=True)
    far = eqx.tree_at(lambda b: b.next_observation, batch, batch.next_observation + 5)
    assert loss(batch) == loss(far)
    truncated = dataclasses.replace(batch, terminated=~batch.terminated)
    assert loss(truncated) != loss(dataclasses.replace(far, terminated=~batch.terminated))


def test_the_temperature_moves_towards_the_target_entropy():
    for target, sign in ((100.0, 1), (-100.0, -1)):
        agent = SAC.create(SPACES, dataclasses.replace(SMALL, target_entropy=target), jax.random.key(0))
        changed, _ = update(agent, batch_of(), jax.random.key(1))
        assert np.sign(changed.log_temperature - agent.log_temperature) == sign


def test_the_targets_follow_slowly():
    agent = SAC.create(SPACES, SMALL, jax.random.key(0))
    changed, _ = update(agent, batch_of(), jax.random.key(1))
    expected = jax.tree.map(lambda new, old: 0.005 * new + 0.995 * old, changed.critics, agent.target_critics)
    for found, wanted in zip(jax.tree.leaves(changed.target_critics), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_actions_are_in_the_environments_units():
    agent = SAC.create(SPACES, SMALL, jax.random.key(0))
    far = eqx.tree_at(lambda a: a.actor.head.layers[-1].bias, agent, jnp.array([50.0, -50.0, 0.0, 0.0]))
    action, _ = far.act(np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(action, [[5.0, -3.0]], atol=1e-4)
    noisy, _ = agent.act(np.zeros((100, 3), np.float32), jax.random.key(0))
    assert noisy.std() > 0.1
    assert ((noisy >= -3) & (noisy <= 5)).all()


def test_discrete_actions_are_refused():
    with pytest.raises(OffroadError, match="ppo or dqn"):
        SAC.create(Spaces(SPACES.observation, spaces.Discrete(3)), SMALL, jax.random.key(0))


def test_learns_continuous_control():
    seeds = (0, 1, 2)
    config = SACConfig(hidden=(32, 32), learning_rate=3e-3, batch=64, discount=0.9)
    env = point(1)
    agents = stacked([SAC.create(Spaces.of(env), config, jax.random.key(seed)) for seed in seeds])
    run = train.off_policy(
        agents, env, 2_500, seed=seeds, replay=Replay(2_500), learning_starts=500, train_every=50, progress=False
    )
    returns = train.evaluate(run.agent, point(16), 16, seed=100, stacked=True).returns.mean(-1)
    assert (returns > -4.0).all()  # doing nothing costs 20
