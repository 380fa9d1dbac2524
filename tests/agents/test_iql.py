import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents.iql import IQL, IQLConfig, expectile_loss
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
update = jax.jit(IQL.update)


def batch(n=8):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal((n, *shape)).astype(np.float32)  # noqa: E731
    action = rng.uniform(-2, 4, (n, 2)).astype(np.float32)
    action[0] = [-2, 4]  # at the bounds
    return jax.tree.map(
        jnp.asarray, Transition(normal(3), action, normal(), normal(3), np.arange(n) % 3 == 0, np.arange(n) % 3 == 1)
    )


def both(critics, *args):
    return np.stack([jax.tree.map(lambda x, i=i: x[i], critics)(*args) for i in (0, 1)])


def lower(critics, *args):
    return np.min(both(critics, *args), 0)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_regression_finds_the_expectile(expectile):
    """That of the uniform distribution on [0, 1]: (1 - tau) m^2 = tau (1 - m)^2."""
    x = (jnp.arange(2000) + 0.5) / 2000
    slope = jax.grad(lambda m: jnp.mean(expectile_loss(x - m, expectile)))
    low, high = 0.0, 1.0
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    odds = np.sqrt(expectile / (1 - expectile))
    assert low == pytest.approx(odds / (1 + odds), abs=1e-3)


@pytest.mark.parametrize("ceiling", [100.0, 1.05])
def test_the_losses_are_the_papers(ceiling):
    config = IQLConfig(hidden=(8,), batch=8, expectile=0.9, inverse_temperature=3.0, max_weight=ceiling, discount=0.9)
    agent = IQL.create(SPACES, config, KEY)
    old = IQL.create(SPACES, config, jax.random.key(1))
    agent, data = dataclasses.replace(agent, target_critics=old.critics), batch()
    unit = (data.action - 1) / 3
    after, metrics = update(agent, data, KEY)

    worth = lower(agent.target_critics, data.observation, unit)
    error = worth - np.asarray(agent.value(data.observation))
    assert (error > 0).any()
    assert (error < 0).any()
    np.testing.assert_allclose(metrics["value_loss"], np.mean(np.where(error > 0, 0.9, 0.1) * error**2), rtol=1e-4)

    # The policy's and the critics' losses see the value that has just been learnt.
    advantage = worth - np.asarray(after.value(data.observation))
    weight = np.minimum(np.exp(3 * advantage), ceiling)
    assert (weight == ceiling).any() == (ceiling < 2)
    policy = agent.actor(data.observation)
    assert np.abs(policy.mean).max() <= 1
    mean, std = np.asarray(policy.mean), np.exp(np.asarray(policy.log_std))
    log_prob = np.sum(-0.5 * ((unit - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi), -1)
    np.testing.assert_allclose(metrics["policy_loss"], -np.mean(weight * log_prob), rtol=1e-4)

    target = data.reward + 0.9 * np.where(data.terminated, 0, np.asarray(after.value(data.next_observation)))
    error = both(agent.critics, data.observation, unit) - target
    np.testing.assert_allclose(metrics["critic_loss"], (error**2).mean(1).sum(), rtol=1e-4)


def test_the_policys_learning_rate_falls_to_nothing():
    agent = IQL.create(SPACES, IQLConfig(hidden=(8,), batch=8, anneal_updates=2), KEY)
    moves = []
    for _ in range(4):
        after, _ = update(agent, batch(), KEY)
        moves.append(float(jnp.abs(after.actor.head.layers[0].bias - agent.actor.head.layers[0].bias).max()))
        agent = after
    assert moves[0] > moves[1] > 0 == moves[2] == moves[3]


def test_dropout_silences_the_policy_in_updates_only():
    config = IQLConfig(hidden=(64, 64), batch=8, dropout=0.5, inverse_temperature=0.0)
    agent, data = IQL.create(SPACES, config, KEY), batch()
    whole = IQL.create(SPACES, dataclasses.replace(config, dropout=0.0), KEY)
    np.testing.assert_array_equal(agent.act(data.observation)[0], whole.act(data.observation)[0])
    np.testing.assert_array_equal(agent.act(data.observation, KEY)[0], whole.act(data.observation, KEY)[0])
    plain = update(whole, data, KEY)[1]
    one, other = (update(agent, data, jax.random.key(i))[1] for i in (1, 2))
    assert one["policy_loss"] != other["policy_loss"] != plain["policy_loss"]
    for name in ("critic_loss", "value_loss"):
        assert one[name] == other[name] == plain[name]


def test_dropout_keeps_the_mean():
    actor = IQL.create(SPACES, IQLConfig(hidden=(64,), dropout=0.3), KEY).actor
    x, head = jnp.ones((1, 3)), actor.head
    drawn = jax.vmap(lambda key: head(x, key))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(drawn.mean(0), head(x), atol=5 * float(drawn.std(0).max()) / np.sqrt(4000))
    silent = jax.vmap(lambda key: jax.grad(lambda b: head.after_first(b, key).sum())(jnp.ones(64)))(
        jax.random.split(KEY, 100)
    )
    assert float((silent == 0).mean()) == pytest.approx(0.3, abs=0.03)
