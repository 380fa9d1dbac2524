"""TD3+BC and ReBRAC: the same loss but for what is summed, which critic counts and who is penalised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents import TD3BC, ReBRAC, ReBRACConfig, TD3BCConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def batch(n=8):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal((n, *shape)).astype(np.float32)  # noqa: E731
    action, following = rng.uniform(-2, 4, (2, n, 2)).astype(np.float32)
    end, cut = np.arange(n) % 3 == 0, np.arange(n) % 3 == 1
    return jax.tree.map(
        jnp.asarray, Transition(normal(3), action, normal(), normal(3), end, cut, next_action=following)
    )


def both(critics, *args):
    return jnp.stack([jax.tree.map(lambda x, i=i: x[i], critics)(*args) for i in (0, 1)])


def policy_after(agent, critics, loss):
    """The policy after one step of Adam on `loss(own action, values of both critics)`."""
    data = batch()

    def of(policy):
        own = policy(data.observation)
        return loss(own, both(critics, data.observation, own))

    adam = optax.adam(1e-2)
    change, _ = adam.update(jax.grad(of)(agent.policy), adam.init(agent.policy))
    return optax.apply_updates(agent.policy, change)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one, other)


def test_td3_bc_weighs_values_of_unit_size_against_the_mean_squared_distance():
    config = TD3BCConfig(
        hidden=(8,), batch=8, learning_rate=1e-2, policy_delay=1, target_noise=0.0, normalise_observation=False
    )
    agent, data = TD3BC.create(SPACES, config, KEY), batch()
    unit = (data.action - 1) / 3
    after, metrics = update(agent, data, KEY)
    worth = both(agent.target_critics, data.next_observation, agent.target_policy(data.next_observation)).min(0)
    target = data.reward + 0.99 * np.where(data.terminated, 0, worth)
    error = both(agent.critics, data.observation, unit) - target
    np.testing.assert_allclose(metrics["critic_loss"], (error**2).mean(1).sum(), rtol=1e-4)

    def loss(own, values):
        weight = 2.5 / np.mean(np.abs(both(after.critics, data.observation, agent.policy(data.observation))[0]))
        return -weight * values[0].mean() + ((own - unit) ** 2).mean()

    close(after.policy, policy_after(agent, after.critics, loss))


def test_rebrac_penalises_policy_and_targets():
    config = ReBRACConfig(
        hidden=(8,), batch=8, policy_delay=1, target_noise=0.0, policy_learning_rate=1e-2, policy_penalty=0.3,
        critic_penalty=0.7,
    )  # fmt: skip
    agent, data = ReBRAC.create(SPACES, config, KEY), batch()
    assert len(agent.critics.head.norms) == 1
    unit, next_unit = (data.action - 1) / 3, (data.next_action - 1) / 3
    after, metrics = update(agent, data, KEY)
    own = agent.target_policy(data.next_observation)
    worth = both(agent.target_critics, data.next_observation, own).min(0) - 0.7 * ((own - next_unit) ** 2).sum(-1)
    target = data.reward + 0.99 * np.where(data.terminated, 0, worth)
    error = both(agent.critics, data.observation, unit) - target
    np.testing.assert_allclose(metrics["critic_loss"], (error**2).mean(1).sum(), rtol=1e-4)

    def loss(own, values):
        now = both(after.critics, data.observation, agent.policy(data.observation)).min(0)
        return 0.3 * ((own - unit) ** 2).sum(-1).mean() - (values.min(0) / np.mean(np.abs(now))).mean()

    close(after.policy, policy_after(agent, after.critics, loss))

    bare = Transition(
        *(getattr(data, x) for x in ("observation", "action", "reward", "next_observation")), *[data.terminated] * 2
    )
    with pytest.raises(OffroadError, match="needs the data's next actions"):
        agent.update(bare, KEY)
