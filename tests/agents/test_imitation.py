"""The loss of Nair et al. against NumPy, and what it does to DDPG, TD3 and SAC where a demonstrator is good or bad."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents import AGENTS, Imitation
from offroad.agents.imitation import imitation_loss
from offroad.data import config as configuration
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (2,)), gym_spaces.Box(-4, 4, (2,)))
ACTOR_CRITICS = ("ddpg", "td3", "sac")
BEST = np.array([0.3, -0.2])
RANDOM = np.random.default_rng(0)
OWN, ACTION = RANDOM.uniform(-1, 1, (2, 12, 2))
DEMONSTRATED = np.arange(12) % 4 != 0


def value(action):
    return -jnp.sum(jnp.square(action - BEST), -1)


def expected(imitation, policy_loss, own):
    """In double precision, row by row."""
    total = imitation.weight_policy * policy_loss
    for i in np.flatnonzero(DEMONSTRATED):
        better = np.sum((ACTION[i] - BEST) ** 2) < np.sum((own[i] - BEST) ** 2)
        if better or not imitation.q_filter:
            total += imitation.weight_cloning * np.sum((own[i] - ACTION[i]) ** 2)
    return total


@pytest.mark.parametrize("q_filter", [True, False])
def test_the_loss_and_its_gradient_are_the_papers(q_filter):
    imitation = Imitation(0.3, 0.7, q_filter)
    action = jnp.float32(ACTION)

    def loss(own):
        return imitation_loss(imitation, -jnp.mean(value(own)), own, action, DEMONSTRATED, value)

    def numeric(own):
        return expected(imitation, np.mean(np.sum((own - BEST) ** 2, -1)), own)

    found, gradient = jax.value_and_grad(loss)(jnp.float32(OWN))
    np.testing.assert_allclose(found, numeric(OWN), rtol=1e-5)
    step = 1e-6
    differences = [
        (numeric(OWN + step * d) - numeric(OWN - step * d)) / (2 * step) for d in np.eye(24).reshape(24, 12, 2)
    ]
    np.testing.assert_allclose(gradient.ravel(), differences, rtol=1e-4, atol=1e-5)


def test_the_filter_matters_in_this_case():
    on, off = (expected(Imitation(q_filter=f), 0.0, OWN) for f in (True, False))
    assert 0 < on < off


def test_without_demonstrations_the_policys_loss_stays_as_it_is():
    loss = jnp.float32(3.0)
    action = jnp.float32(ACTION)
    assert imitation_loss(None, loss, action, action, DEMONSTRATED, value) is loss
    assert imitation_loss(Imitation(), loss, action, action, None, value) is loss


def make(name, **config):
    kind, config_kind = AGENTS[name]
    if name == "ddpg":
        config["action_penalty"] = 0.0
    return kind.create(SPACES, config_kind(hidden=(32,), batch=64, learning_rate=3e-3, **config), KEY)


def batch(sign, key=KEY):
    """Episodes of one step that pay -|unit - observation|^2; demonstrators play `sign * observation`."""
    a, b = jax.random.split(key)
    observation = jax.random.uniform(a, (64, 2), minval=-0.8, maxval=0.8)
    demonstrated = jnp.arange(64) < 32
    unit = jnp.where(demonstrated[:, None], sign * observation, jax.random.uniform(b, (64, 2), minval=-1))
    reward = -jnp.sum(jnp.square(unit - observation), -1)
    done = jnp.ones(64, bool)
    return Transition(observation, 4 * unit, reward, observation, done, ~done, demonstrated)


def learn(agent, sign, updates):
    def one(agent, key):
        return agent.update(batch(sign, key), key)[0], None

    return jax.jit(lambda a: jax.lax.scan(one, a, jax.random.split(KEY, updates))[0])(agent)


def error(agent, sign):
    observation = jax.random.uniform(jax.random.key(7), (200, 2), minval=-0.8, maxval=0.8)
    return float(jnp.abs(agent.act(observation)[0] / 4 - sign * observation).mean())


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_the_filter_ignores_a_demonstrator_worse_than_the_policy(name):
    filtered, blind = (
        learn(make(name, imitation=Imitation(q_filter=q_filter)), -1.0, 800) for q_filter in (True, False)
    )
    assert error(filtered, +1) < 0.2  # as the reward asks
    assert error(blind, -1) < 0.1  # as the demonstrator does
    assert error(blind, +1) > 0.5


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_only_demonstrated_rows_are_cloned_by_the_deterministic_action(name):
    config = {"policy_delay": 1} if name == "td3" else {}
    agent = make(name, imitation=Imitation(0.0, 0.5, q_filter=False), **config)
    data = batch(1.0)
    update = jax.jit(lambda agent, data: agent.update(data, KEY))
    after, metrics = update(agent, data)

    def cloning_loss(agent):
        distance = jnp.sum(jnp.square(agent.act(data.observation)[0] / 4 - data.action / 4), -1)
        return 0.5 * float(jnp.sum(jnp.where(data.demonstrated, distance, 0)))

    assert cloning_loss(after) < cloning_loss(agent)
    for reported in {"policy_loss", "actor_loss"} & metrics.keys():
        np.testing.assert_allclose(metrics[reported], cloning_loss(agent), rtol=1e-4)
    nothing, _ = update(agent, replace(data, demonstrated=jnp.zeros(64, bool)))
    policy = "actor" if name == "sac" else "policy"
    jax.tree.map(np.testing.assert_array_equal, getattr(nothing, policy), getattr(agent, policy))


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_a_batch_without_demonstrations_is_learnt_as_ever(name):
    data = replace(batch(1.0), demonstrated=None)
    update = jax.jit(lambda agent: agent.update(data, KEY))
    plain, imitating = (update(make(name, imitation=imitation))[0] for imitation in (None, Imitation()))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(imitating), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("imitation", [None, Imitation(q_filter=False)])
def test_configurations_survive_json(imitation):
    for name in ACTOR_CRITICS:
        config = AGENTS[name][1](imitation=imitation)
        assert configuration.from_json(type(config), configuration.to_json(config)) == config
