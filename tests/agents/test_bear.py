import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents import BEAR, TD3, BEARConfig, TD3Config
from offroad.agents.bear import NEAR, mmd
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
LINE = Spaces(gym_spaces.Box(-1, 1, (1,)), gym_spaces.Box(-1, 1, (1,)))
update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def batch(n=8):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal((n, *shape)).astype(np.float32)  # noqa: E731
    action = rng.uniform(-2, 4, (n, 2)).astype(np.float32)
    return jax.tree.map(
        jnp.asarray, Transition(normal(3), action, normal(), normal(3), np.arange(n) % 3 == 0, np.arange(n) % 3 == 1)
    )


def values(critics, observation, actions):
    """`[critic, sample, row]`, one sample at a time."""
    members = [jax.tree.map(lambda x, i=i: x[i], critics) for i in (0, 1)]
    return np.stack([[critic(observation, action) for action in actions] for critic in members])


def trained(agent, data, updates):
    """After updates that each see all the data; and the metrics of the last."""
    step = lambda agent, key: agent.update(data, key)  # noqa: E731
    agent, metrics = jax.jit(lambda agent: jax.lax.scan(step, agent, jax.random.split(KEY, updates)))(agent)
    return agent, {name: float(x[-1]) for name, x in metrics.items()}


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_the_discrepancy_of_small_samples_by_hand(kernel):
    one, other = np.float32([[0, 1], [2, 0]])[:, None], np.float32([[1, 1], [0, 0], [3, -1]])[:, None]
    power = 1 if kernel == "laplacian" else 2

    def mean(a, b):
        return np.mean([[np.exp(-(np.abs(x - y) ** power).sum() / 6) for x in a] for y in b])

    expected = np.sqrt(mean(one, one) + mean(other, other) - 2 * mean(one, other))
    found = mmd(jnp.asarray(one), jnp.asarray(other), kernel, 3.0)
    np.testing.assert_allclose(found, [expected], rtol=1e-4)


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_equal_samples_do_not_differ_and_have_a_gradient(kernel):
    x = jax.random.normal(KEY, (4, 5, 2))
    np.testing.assert_allclose(mmd(x, x[::-1], kernel, 1.0), 0, atol=1.5e-3)
    pull = lambda shift: jnp.sum(mmd(x + shift, x, kernel, 1.0))  # noqa: E731
    assert np.isfinite(jax.grad(pull)(0.0))
    assert jax.grad(pull)(0.3) > 0 > jax.grad(pull)(-0.3)


def test_the_losses_are_the_papers():
    config = BEARConfig(
        hidden=(8,), behaviour_hidden=(8,), discount=0.9, backup_samples=6, samples=3, policy_learning_rate=1e-2,
        behaviour_kl=0.3, bandwidth=2.0,
    )  # fmt: skip
    agent, data = BEAR.create(SPACES, config, KEY), batch()
    other = BEAR.create(SPACES, config, jax.random.key(1))
    agent = dataclasses.replace(
        agent, target_critics=other.critics, target_actor=other.actor, log_multiplier=jnp.float32(0.7)
    )
    unit = (data.action - 1) / 3
    behaviour_key, target_key, shown_key, own_key = jax.random.split(KEY, 4)
    after, metrics = update(agent, data, KEY)

    policy = agent.target_actor(data.next_observation)
    drawn = jnp.tanh(policy.mean + jnp.exp(policy.log_std) * jax.random.normal(target_key, (6, 8, 2)))
    worth = values(agent.target_critics, data.next_observation, drawn)
    worth = (0.75 * worth.min(0) + 0.25 * worth.max(0)).max(0)
    target = data.reward + 0.9 * np.where(data.terminated, 0, worth)
    error = values(agent.critics, data.observation, unit[None])[:, 0] - target
    np.testing.assert_allclose(metrics["critic_loss"], (error**2).mean(1).sum(), rtol=1e-4)

    mean, log_std = (np.asarray(x) for x in agent.behaviour.encode(data.observation, unit))
    latent = jnp.asarray(mean + np.exp(log_std) * jax.random.normal(behaviour_key, (8, 4)))
    decoded = np.tanh(agent.behaviour.decode(data.observation, latent))
    kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))
    np.testing.assert_allclose(metrics["behaviour_loss"], ((decoded - unit) ** 2).mean() + 0.3 * kl.mean(), rtol=1e-4)

    shown = after.behaviour.decode(data.observation, jnp.clip(jax.random.normal(shown_key, (3, 8, 4)), -NEAR, NEAR))
    noise = jnp.clip(jax.random.normal(own_key, (3, 8, 2)), -NEAR, NEAR)

    def loss(actor):
        policy = actor(data.observation)
        raw = policy.mean + jnp.exp(policy.log_std) * noise
        members = [jax.tree.map(lambda x, i=i: x[i], after.critics) for i in (0, 1)]
        worth = jnp.stack([jnp.stack([critic(data.observation, a) for a in jnp.tanh(raw)]) for critic in members])
        return jnp.exp(0.7) * mmd(raw, shown, "laplacian", 2.0).mean() - worth.min(0).mean()

    adam = optax.adam(1e-2)
    change, _ = adam.update(jax.grad(loss)(agent.actor), adam.init(agent.actor))
    expected = optax.apply_updates(agent.actor, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.actor, expected)


def test_the_best_sample_by_the_first_critic_is_played():
    agent, seen = BEAR.create(SPACES, BEARConfig(hidden=(8,), backup_samples=4), KEY), batch().observation
    policy = agent.actor(seen)
    drawn = jnp.tanh(policy.mean + jnp.exp(policy.log_std) * jax.random.normal(KEY, (4, 8, 2)))
    best = values(agent.critics, seen, drawn)[0].argmax(0)
    np.testing.assert_allclose((agent.act(seen, KEY)[0] - 1) / 3, np.asarray(drawn)[best, np.arange(8)], atol=1e-5)


def test_the_multiplier_grows_while_the_discrepancy_is_too_large_and_falls_else():
    data, config = batch(), BEARConfig(hidden=(8,), behaviour_hidden=(8,))
    _, metrics = update(BEAR.create(SPACES, config, KEY), data, KEY)
    apart = float(metrics["discrepancy"])
    for threshold, sign in ((0.9 * apart, 1), (1.1 * apart, -1)):
        agent = BEAR.create(SPACES, dataclasses.replace(config, threshold=threshold), KEY)
        change = float(update(agent, data, KEY)[0].log_multiplier - agent.log_multiplier)
        assert np.sign(change) == sign
    bound = dataclasses.replace(agent, log_multiplier=jnp.float32(-5))
    assert update(bound, data, KEY)[0].log_multiplier == -5
    # A larger multiplier, a smaller discrepancy.
    found = []
    for multiplier in (-5.0, 5.0):
        config = BEARConfig(
            hidden=(32,), behaviour_hidden=(32,), policy_learning_rate=3e-3, multiplier_learning_rate=0.0
        )
        agent = dataclasses.replace(BEAR.create(SPACES, config, KEY), log_multiplier=jnp.float32(multiplier))
        found.append(trained(agent, data, 200)[1]["discrepancy"])
    assert found[1] < 0.5 * found[0]


def test_at_first_the_policy_only_matches_the_behaviour():
    data = batch()
    agent = BEAR.create(SPACES, BEARConfig(hidden=(8,), behaviour_hidden=(8,), match_updates=1), KEY)
    scaled = dataclasses.replace(agent, critics=jax.tree.map(lambda x: 5 * x, agent.critics))
    one, other = (update(x, data, KEY)[0].actor for x in (agent, scaled))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other))
    one, other = (update(dataclasses.replace(x, updates=jnp.int32(1)), data, KEY)[0].actor for x in (agent, scaled))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other))


@pytest.mark.parametrize(("mode", "kl"), [(0.8, 0.5), (0.3, 0.05)])
def test_the_autoencoder_knows_behaviour_with_two_modes(mode, kl):
    """Two pilots, one goes left, the other right, neither straight on: a Gaussian would have its mean there."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (256, 1)).astype(np.float32)
    action = (rng.choice([-mode, mode], (256, 1)) + 0.05 * rng.standard_normal((256, 1))).astype(np.float32)
    off = np.zeros(256, bool)
    data = jax.tree.map(jnp.asarray, Transition(seen, action, seen[:, 0], seen, ~off, off))
    config = BEARConfig(
        hidden=(8,), behaviour_hidden=(32, 32), behaviour_learning_rate=3e-3, behaviour_kl=kl, samples=1,
        backup_samples=1,
    )  # fmt: skip
    agent, _ = trained(BEAR.create(LINE, config, KEY), data, 600)
    latent = jax.random.normal(KEY, (8, 256, 2))
    drawn = np.tanh(agent.behaviour.decode(data.observation, latent)) / mode
    assert np.mean(np.abs(drawn) > 0.6) > 0.8
    assert 0.35 < np.mean(drawn > 0) < 0.65


def test_values_stay_those_of_the_data_where_td3_overestimates():
    """The more the better, as far as the data show. A cliff at 0.4 is beyond them: no value is above 0.4 / (1 - g)."""
    rng, n, off = np.random.default_rng(0), 256, np.zeros(256, bool)
    seen, following = rng.uniform(-1, 1, (2, n, 1)).astype(np.float32)
    action = rng.uniform(-0.3, 0.3, (n, 1)).astype(np.float32)
    data = jax.tree.map(jnp.asarray, Transition(seen, action, action[:, 0], following, off, off))
    config = BEARConfig(
        hidden=(32, 32), behaviour_hidden=(32, 32), behaviour_kl=0.01, discount=0.9, polyak=0.05,
        critic_learning_rate=3e-3, policy_learning_rate=3e-3, behaviour_learning_rate=3e-3,
        multiplier_learning_rate=0.03, threshold=0.02, backup_samples=4, samples=4,
    )  # fmt: skip
    bear, metrics = trained(BEAR.create(LINE, config, KEY), data, 800)
    found = np.asarray(bear.act(data.observation)[0])
    assert metrics["value"] < 0.4 / (1 - 0.9)
    assert found.max() < 0.4
    assert found.mean() > 0.05

    naive = TD3Config(hidden=(32, 32), discount=0.9, polyak=0.05, learning_rate=3e-3)
    td3, metrics = trained(TD3.create(LINE, naive, KEY), data, 800)
    assert metrics["value"] > 1.5 * 0.4 / (1 - 0.9)
    assert np.mean(td3.act(data.observation)[0]) > 0.8
