import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents import BC, BCConfig
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.train import offline

KEY = jax.random.key(0)
OBSERVATION = gym_spaces.Box(-1, 1, (3,))
BOX = Spaces(OBSERVATION, gym_spaces.Box(np.float32([-2, 0]), np.float32([4, 1])))
update = jax.jit(BC.update)
CHOICE = Spaces(OBSERVATION, gym_spaces.Discrete(4, start=2))
WEIGHTS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def transitions(action, observation):
    n = len(observation)
    off = np.zeros(n, bool)
    return Transition(observation, action, np.zeros(n, np.float32), observation + np.nan, off, off)


def observations(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3)).astype(np.float32)


def linear(observation):
    """Inside the bounds, so that a tanh can reach it."""
    unit = 0.2 * observation @ WEIGHTS[:, :2]
    return unit * np.float32([3, 0.5]) + np.float32([1, 0.5])


def choose(observation):
    return 2 + np.argmax(observation @ WEIGHTS, axis=-1)


def filled(expert):
    replay, seen = Replay(2000), observations(2000)
    replay.add(jax.tree.map(lambda x: x[:, None], transitions(expert(seen), seen)), np.ones((2000, 1), bool))
    return replay


def test_the_losses_are_the_squared_error_of_scaled_actions_and_the_cross_entropy():
    config, seen = BCConfig(hidden=(8,)), observations(16)
    agent = BC.create(BOX, config, KEY)
    unit = np.tanh(agent.policy(seen))
    np.testing.assert_allclose(agent.act(seen)[0], unit * np.float32([3, 0.5]) + np.float32([1, 0.5]), rtol=1e-5)
    action = np.random.default_rng(1).uniform([-2, 0], [4, 1], (16, 2)).astype(np.float32)
    expected = np.mean((unit - (action - np.float32([1, 0.5])) / np.float32([3, 0.5])) ** 2)
    _, metrics = update(agent, transitions(action, seen), KEY)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)

    agent = BC.create(CHOICE, config, KEY)
    logits = np.asarray(agent.policy(seen), np.float64)
    action = np.random.default_rng(1).integers(2, 6, 16)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    _, metrics = update(agent, transitions(action, seen), KEY)
    np.testing.assert_allclose(metrics["loss"], -np.log(probability[np.arange(16), action - 2]).mean(), rtol=1e-5)


def test_clones_a_linear_expert():
    """From observations and actions alone: the next observations are NaN."""
    losses = []
    agent = BC.create(BOX, BCConfig(hidden=(32,), batch=64, learning_rate=3e-3), KEY)
    before = jax.tree.map(np.array, agent)
    cloned = offline(agent, filled(linear), 1050, progress=False, callback=losses.append).agent
    unseen = observations(200, seed=1)
    error = np.abs(cloned.act(unseen)[0] - linear(unseen)) / np.float32([3, 0.5])
    assert error.mean() < 0.02
    assert np.abs(agent.act(unseen)[0] - linear(unseen)).mean() > 0.1  # the given one is left as it was
    jax.tree.map(np.testing.assert_array_equal, before, agent)
    assert [entry["step"] for entry in losses] == [*range(100, 1001, 100), 1050]
    assert losses[-1]["loss"] < losses[0]["loss"] / 10


def test_clones_a_choosing_expert_whose_doubt_a_key_samples():
    agent = BC.create(CHOICE, BCConfig(hidden=(32,), batch=64, learning_rate=1e-2, normalise_observation=True), KEY)
    cloned = offline(agent, filled(choose), 500, progress=False).agent
    unseen = observations(300, seed=1)
    assert np.mean(cloned.act(unseen)[0] == choose(unseen)) > 0.93
    sampled = cloned.act(jnp.zeros((1000, 3)), KEY)[0]
    assert len(np.unique(sampled)) > 1
    assert set(np.unique(sampled)) <= {2, 3, 4, 5}


def test_the_same_seed_clones_the_same():
    agent, replay = BC.create(BOX, BCConfig(hidden=(4,), batch=8), KEY), filled(linear)
    one, same, other = (offline(agent, replay, 20, seed=seed, progress=False).agent for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert np.abs(one.policy.head.layers[0].weight - other.policy.head.layers[0].weight).max() > 0


def test_broken_data_stops_the_training():
    with pytest.raises(OffroadError, match=r"'loss' became NaN or infinite before step 30"):
        offline(BC.create(BOX, BCConfig(batch=8), KEY), filled(lambda o: linear(o) + np.nan), 30, progress=False)
    with pytest.raises(OffroadError, match="bc needs"):
        BC.create(Spaces(OBSERVATION, gym_spaces.MultiBinary(3)), BCConfig(), KEY)
