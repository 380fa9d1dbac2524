import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents.cql import CQL, CQLConfig, propose
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError

KEY = jax.random.key(0)
update = jax.jit(CQL.update)


def spaces(actions):
    return Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (actions,)))


def batch(actions=2, n=8):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal((n, *shape)).astype(np.float32)  # noqa: E731
    action = rng.uniform(-2, 4, (n, actions)).astype(np.float32)
    action[:2] = [[-2], [4]]  # at the bounds
    return jax.tree.map(
        jnp.asarray, Transition(normal(3), action, normal(), normal(3), np.arange(n) % 3 == 0, np.arange(n) % 3 == 1)
    )


def both(critics, observation, actions):
    """Values `[critic, *leading axes]`, one action a state at a time."""
    observation, actions = jnp.asarray(observation), jnp.asarray(actions)
    return np.stack([jax.tree.map(lambda x, i=i: x[i], critics)(observation, actions) for i in (0, 1)])


@pytest.fixture(scope="module")
def steep():
    """One action, 1000 samples of each kind, and values that differ much between actions."""
    config = CQLConfig(hidden=(16,), batch=8, samples=1000, weight=100.0, critic_learning_rate=1e-2, discount=0.0)
    agent = CQL.create(spaces(1), config, KEY)
    return eqx.tree_at(lambda a: a.critics.head.layers, agent, jax.tree.map(lambda x: 3 * x, agent.critics.head.layers))


def test_the_soft_maximum_is_the_integral_over_all_actions(steep):
    data, grid = batch(1), np.linspace(-1, 1, 2001, dtype=np.float32)
    _, metrics = update(steep, data, KEY)
    seen = np.repeat(data.observation[None], len(grid), 0)
    values = both(steep.critics, seen, np.broadcast_to(grid[:, None, None], (len(grid), 8, 1)))
    assert np.ptp(values, axis=1).mean() > 1.5
    exact = np.log(np.trapezoid(np.exp(values), grid, axis=1)).mean()
    assert abs(exact) > 0.2
    assert float(metrics["gap"] + metrics["value"]) == pytest.approx(exact, rel=0.02)


def test_the_gap_raises_the_datas_values_and_lowers_all_others(steep):
    data = batch(1)
    data = dataclasses.replace(data, action=jnp.full((8, 1), 3.4), reward=jnp.zeros(8))
    uniform = np.linspace(-1, 1, 201, dtype=np.float32)[:, None, None] * np.ones((1, 8, 1), np.float32)

    def look(agent):
        there = both(agent.critics, data.observation, (data.action - 1) / 3).mean()
        return there, both(agent.critics, np.repeat(data.observation[None], 201, 0), uniform).mean()

    agent = steep
    for i in range(5):
        agent, _ = update(agent, data, jax.random.key(i))
    (before, everywhere), (after, everywhere_after) = look(steep), look(agent)
    assert after > before
    assert everywhere_after < everywhere


def test_the_critics_loss_with_all_options():
    config = CQLConfig(
        hidden=(8,), batch=8, samples=3, conservative_states=5, backup_samples=4, lagrange_gap=0.5, gap_minimum=1.45,
        weight=2.0, discount=0.9, layer_norm=True, clone_updates=1,
    )  # fmt: skip
    agent, data = CQL.create(spaces(2), config, KEY), batch()
    agent = dataclasses.replace(agent, log_multiplier=jnp.float32(0.3))
    after, metrics = update(agent, data, KEY)
    unit = (data.action - 1) / 3
    target_key, query_key, actor_key = jax.random.split(KEY, 3)

    policy = agent.actor(data.next_observation)
    drawn = [policy.sample_and_log_prob(key)[0] for key in jax.random.split(target_key, 4)]
    worth = np.stack([both(agent.target_critics, data.next_observation, a) for a in drawn]).max(0).min(0)
    target = data.reward + 0.9 * np.where(data.terminated, 0, worth)
    values = both(agent.critics, data.observation, unit)

    first, following = agent.actor(data.observation[:5]), jax.tree.map(lambda x: x[:5], policy)
    queried, density = propose(config, first, following, query_key)
    assert queried.shape == (9, 5, 2)
    np.testing.assert_allclose(density[:3], np.log(0.25), rtol=1e-6)
    for rows, source in ((slice(3, 6), first), (slice(6, 9), following)):
        np.testing.assert_allclose(density[rows], source.log_prob(queried[rows]), rtol=1e-3, atol=1e-3)
    pushed = np.stack([both(agent.critics, data.observation[:5], a) for a in queried], 1)
    gap = np.log(np.mean(np.exp(pushed - np.asarray(density)), 1)) - values[:, :5]
    assert (gap < 1.45).any()
    assert (gap > 1.45).any()
    gaps = np.maximum(gap, 1.45).mean(1)
    expected = 0.5 * ((values - target) ** 2).mean(1).sum() + 2 * np.exp(0.3) * gaps.sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)
    assert after.log_multiplier > agent.log_multiplier  # the gap is above what it shall become

    # The first update clones, then SAC's loss begins.
    sampled, log_prob = agent.actor(data.observation).sample_and_log_prob(actor_key)
    likelihood = agent.actor(data.observation).log_prob(jnp.clip(unit, -1 + 1e-5, 1 - 1e-5))
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(log_prob - likelihood), rtol=1e-3)
    later, metrics = update(dataclasses.replace(agent, updates=jnp.int32(1)), data, KEY)
    value = both(later.critics, data.observation, sampled).min(0)
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(log_prob - value), rtol=1e-3)
    for leaf in jax.tree.leaves(later):
        assert np.isfinite(leaf).all()


def test_the_policys_own_actions_are_another_query():
    config = CQLConfig(hidden=(8,), samples=3, query="policy")
    agent = CQL.create(spaces(2), config, KEY)
    policy = agent.actor(jnp.zeros((5, 3)))
    queried, density = propose(config, policy, policy, KEY)
    assert queried.shape == (3, 5, 2)
    np.testing.assert_allclose(density, policy.log_prob(queried), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("states", [0, 9])
def test_a_batch_has_enough_states_for_the_gap(states):
    with pytest.raises(OffroadError, match="expected 1 to batch = 8"):
        CQL.create(spaces(2), CQLConfig(batch=8, conservative_states=states), KEY)
