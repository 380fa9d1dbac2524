import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from jax_envs import point
from tiny import distance
from tiny import eight as batch

from offroad.agents.td3 import TD3, TD3Config
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.evaluate import evaluate
from offroad.train.off_policy import off_policy

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def make(**config):
    return TD3.create(SPACES, TD3Config(hidden=(16,), batch=8, **config), KEY)


def member(critics, i):
    return jax.tree.map(lambda x: x[i], critics)


def test_the_critics_loss_is_the_papers_with_the_smaller_target_and_without_future_after_termination():
    agent = make(target_noise=0.0, discount=0.9)
    data = batch()
    unit = (data.action - 1) / 3
    next_unit = agent.target_policy(data.next_observation)
    both = [member(agent.target_critics, i)(data.next_observation, next_unit) for i in (0, 1)]
    target = data.reward + 0.9 * np.where(data.terminated, 0, np.minimum(*both))
    expected = sum(np.mean((member(agent.critics, i)(data.observation, unit) - target) ** 2) for i in (0, 1))
    _, metrics = update(agent, data, KEY)
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)
    _, other = update(agent, batch(truncated=~data.truncated), KEY)
    assert other["critic_loss"] == metrics["critic_loss"]


def test_target_noise_smooths_and_is_clipped():
    quiet, noisy, clipped = (
        update(make(**config), batch(), KEY)[1]["critic_loss"]
        for config in (
            {"target_noise": 0.0},
            {"target_noise": 1.0},
            {"target_noise": 1.0, "target_noise_clip": 0.0},
        )
    )
    assert quiet == clipped
    assert quiet != noisy


def test_policy_and_targets_move_only_every_other_update():
    start = make(polyak=0.1)
    first, _ = update(start, batch(), KEY)
    assert distance(first.critics, start.critics) > 0
    assert distance(first.policy, start.policy) == 0
    assert distance(first.target_critics, start.target_critics) == 0
    second, _ = update(first, batch(), KEY)
    for moved, target, before in (
        (second.policy, second.target_policy, start.target_policy),
        (second.critics, second.target_critics, start.target_critics),
    ):
        assert distance(moved, before) > 0
        expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, moved, before)
        assert distance(target, expected) < 1e-3 * distance(moved, before)
    third, _ = update(second, batch(), KEY)
    assert distance(third.policy, second.policy) == 0


def test_the_policy_step_raises_the_first_critics_value():
    agent = make(policy_delay=1, learning_rate=1e-3)
    data = batch()
    after, _ = update(agent, data, KEY)

    def value(policy):
        return float(member(after.critics, 0)(data.observation, policy(data.observation)).mean())

    assert value(after.policy) > value(agent.policy)


def test_actions_are_in_the_environments_units_with_noise_only_while_exploring():
    agent = make(exploration_noise=0.1)
    observation = jnp.zeros((4000, 3))
    still, memory = agent.act(observation)
    assert memory == ()
    np.testing.assert_array_equal(still, still[:1].repeat(4000, 0))
    noisy, _ = agent.act(observation, KEY)
    np.testing.assert_allclose((noisy - still).std(0), 3 * 0.1, rtol=0.05)
    wild, _ = make(exploration_noise=10.0).act(observation, KEY)
    np.testing.assert_allclose([wild.min(), wild.max()], [-2, 4], atol=1e-5)


def test_discrete_actions_are_refused():
    with pytest.raises(OffroadError, match="td3 needs"):
        TD3.create(Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Discrete(2)), TD3Config(), KEY)


def test_learns_to_push_a_point_to_the_origin():
    env = point()
    config = TD3Config(hidden=(32, 32), batch=64, discount=0.9, learning_rate=3e-3, normalise_observation=True)
    agent = TD3.create(Spaces.of(env), config, KEY)
    before = evaluate(agent, point(), 40).returns.mean()
    result = off_policy(agent, env, 4_000, learning_starts=500, train_every=16, update_ratio=0.25, progress=False)
    after = evaluate(result.agent, point(), 40).returns.mean()
    assert before < -10
    assert after > -3  # the best policy earns about -2
