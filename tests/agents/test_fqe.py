"""Fitted Q evaluation against the exact values of random decision processes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad import train
from offroad.agents.fqe import FQE, FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError

STATES, ACTIONS, GAMMA = 4, 3, 0.8
SPACES = Spaces(gym_spaces.Discrete(STATES), gym_spaces.Discrete(ACTIONS, start=5))
RNG = np.random.default_rng(0)
CHANCE, REWARD = RNG.dirichlet(np.full(STATES, 0.5), (STATES, ACTIONS)), RNG.uniform(-1, 1, (STATES, ACTIONS))
CONFIG = FQEConfig(discount=GAMMA, hidden=(), learning_rate=0.02, polyak=0.05, batch=128, critics=3)


class Table(eqx.Module):
    """A policy of fixed chances."""

    chances: jax.Array

    def act(self, observation, key=None, memory=()):
        logits = jnp.log(self.chances)[observation]
        return 5 + (jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)), memory


POLICY = Table(jnp.asarray(np.eye(ACTIONS)[REWARD.argmax(1)] * 0.7 + 0.1))


def exact(chances: np.ndarray) -> np.ndarray:
    """The values of the states, by solving the linear equations."""
    moves = np.einsum("sa,sat->st", chances, CHANCE)
    return np.linalg.solve(np.eye(STATES) - GAMMA * moves, (chances * REWARD).sum(1))


@pytest.fixture(scope="module")
def data():
    """A uniformly random walk."""
    n, rng = 4000, np.random.default_rng(1)
    state, action = np.zeros(n + 1, int), rng.integers(ACTIONS, size=n)
    for t in range(n):
        state[t + 1] = rng.choice(STATES, p=CHANCE[state[t], action[t]])
    ended = np.arange(n) == n - 1
    return Dataset(
        state[:-1], 5 + action, REWARD[state[:-1], action], ended & False, ended, final_observations=state[-1:]
    )


@pytest.mark.parametrize("sampled", [False, True])
def test_values_are_those_of_the_policy_not_of_the_data(data, sampled):
    config = FQEConfig(**{**vars(CONFIG), "sampled": sampled})
    learner = FQE.create(SPACES, config, POLICY, jax.random.key(0))
    learner = train.offline(learner, data, 1500, progress=False).agent
    chances = np.asarray(POLICY.chances)
    if not sampled:
        chances = np.eye(ACTIONS)[chances.argmax(1)]
    states, key = jnp.arange(STATES), jax.random.key(3)
    if sampled:  # a value is that of one sampled action: average over many
        found = jax.vmap(lambda key: learner.value(states, key))(jax.random.split(key, 2000)).mean(0)
    else:
        found = learner.value(states)
    assert found.shape == (3, STATES)
    truth = exact(chances)
    assert np.abs(truth - exact(np.full((STATES, ACTIONS), 1 / 3))).max() > 0.3
    np.testing.assert_allclose(found.mean(0), truth, atol=0.12)


def test_the_policy_stays_as_it_was_and_clipping_bounds_values(data):
    config = FQEConfig(**{**vars(CONFIG), "value_range": (-0.1, 0.1)})
    learner = train.offline(FQE.create(SPACES, config, POLICY, jax.random.key(0)), data, 100, progress=False).agent
    np.testing.assert_array_equal(learner.policy.chances, POLICY.chances)
    assert np.abs(learner.value(jnp.arange(STATES))).max() <= np.float32(0.1)


def test_an_end_is_worth_nothing_afterwards_and_critics_differ_where_no_data_are():
    n = 512
    seen = np.zeros(n, int)  # state 0 only
    ended = np.ones(n, bool)
    data = Dataset(seen, np.full(n, 5), np.full(n, 2.0), ended, ~ended)
    always = Table(jnp.eye(ACTIONS)[jnp.zeros(STATES, int)] + 1e-6)
    config = FQEConfig(**{**vars(CONFIG), "hidden": (16,)})
    learner = train.offline(FQE.create(SPACES, config, always, jax.random.key(0)), data, 600, progress=False).agent
    values = np.asarray(learner.value(jnp.arange(STATES)))
    np.testing.assert_allclose(values[:, 0], 2.0, atol=0.02)
    assert values[:, 1:].std(0).min() > 5 * values[:, 0].std()


class Push(eqx.Module):
    gain: jax.Array

    def act(self, observation, key=None, memory=()):
        return self.gain * observation, memory


@pytest.mark.parametrize("gain", [-0.5, 0.5])
def test_box_actions_are_judged_as_the_environment_clips_them(gain):
    """One step: reward -(x + a)^2 for actions that the space bounds."""
    rng, n = np.random.default_rng(0), 4000
    x, a = rng.uniform(-1, 1, (n, 1)).astype(np.float32), rng.uniform(-3, 3, (n, 1)).astype(np.float32)
    ended = np.ones(n, bool)
    data = Dataset(x, a, -((x + np.clip(a, -2, 2)) ** 2)[:, 0], ended, ~ended)
    spaces = Spaces(gym_spaces.Box(-1, 1, (1,)), gym_spaces.Box(-2, 2, (1,)))
    config = FQEConfig(hidden=(32, 32), learning_rate=3e-3, batch=128, critics=2)
    learner = FQE.create(spaces, config, Push(jnp.float32(gain)), jax.random.key(0))
    learner = train.offline(learner, data, 1000, progress=False).agent
    where = jnp.linspace(-0.9, 0.9, 7)[:, None]
    np.testing.assert_allclose(learner.value(where).mean(0), -((where + gain * where) ** 2)[:, 0], atol=0.15)
    beyond = learner.action_value(where, jnp.full_like(where, 50.0))
    np.testing.assert_allclose(beyond, learner.action_value(where, jnp.full_like(where, 2.0)))


def test_what_users_get_wrong_is_told():
    with pytest.raises(OffroadError, match="value_range"):
        FQE.create(SPACES, FQEConfig(value_range=(1, 0)), POLICY, jax.random.key(0))
    with pytest.raises(OffroadError, match="pass a key"):
        FQE.create(SPACES, FQEConfig(hidden=(), sampled=True), POLICY, jax.random.key(0)).value(jnp.arange(2))
    with pytest.raises(OffroadError, match="one-dimensional Box"):
        FQE.create(Spaces(SPACES.observation, gym_spaces.MultiBinary(2)), CONFIG, POLICY, jax.random.key(0))
