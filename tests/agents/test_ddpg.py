from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from jax_envs import point
from tiny import distance, stack
from tiny import eight as batch

from offroad.agents import DDPG, SAC, TD3, DDPGConfig, SACConfig, TD3Config
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.ensemble import apply_ensemble
from offroad.nets.relational import Relational
from offroad.train.evaluate import evaluate
from offroad.train.off_policy import off_policy

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def make(**config):
    return DDPG.create(SPACES, DDPGConfig(hidden=(16,), batch=8, **config), KEY)


@pytest.mark.parametrize("value_range", [None, (-0.1, 0.2)])
def test_the_critics_loss_is_the_papers_without_future_after_termination(value_range):
    agent, data = make(discount=0.9, value_range=value_range), batch()
    following = agent.target_critic(data.next_observation, agent.target_policy(data.next_observation))
    target = data.reward + 0.9 * np.where(data.terminated, 0, following)
    if value_range:
        assert target.min() < -0.1
        assert target.max() > 0.2
        target = np.clip(target, *value_range)
    values = agent.critic(data.observation, (data.action - 1) / 3)
    _, metrics = update(agent, data, KEY)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((values - target) ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["value"], np.mean(values), rtol=1e-4)
    _, other = update(agent, batch(truncated=~data.truncated), KEY)
    assert other["critic_loss"] == metrics["critic_loss"]


@pytest.mark.parametrize(("binary", "penalised"), [((), [0, 1]), ((1,), [0]), ((0, 1), [])])
def test_the_policys_loss_is_minus_the_value_plus_the_penalty_of_what_is_no_switch(binary, penalised):
    agent, data = make(action_penalty=0.3, binary=binary), batch()
    after, metrics = update(agent, data, KEY)
    own = agent.policy(data.observation)
    penalty = 0.3 * np.mean(own[:, penalised] ** 2) if penalised else 0
    expected = penalty - np.mean(after.critic(data.observation, own))
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-4)


def test_the_policy_step_raises_the_value_and_a_large_penalty_shrinks_actions():
    data = batch()
    agent = make(action_penalty=0.0)
    after, _ = update(agent, data, KEY)

    def value(policy):
        return float(after.critic(data.observation, policy(data.observation)).mean())

    assert value(after.policy) > value(agent.policy)
    agent = make(action_penalty=1e3)
    after, _ = update(agent, data, KEY)
    assert jnp.square(after.policy(data.observation)).mean() < jnp.square(agent.policy(data.observation)).mean()


def test_the_targets_follow_slowly():
    start = make(polyak=0.1)
    after, _ = update(start, batch(), KEY)
    for moved, target, before in (
        (after.policy, after.target_policy, start.target_policy),
        (after.critic, after.target_critic, start.target_critic),
    ):
        assert distance(moved, before) > 0
        expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, moved, before)
        assert distance(target, expected) < 1e-3 * distance(moved, before)


def test_exploration_mixes_gaussian_noise_and_uniform_actions():
    observation = jnp.zeros((4000, 3))
    still, memory = make().act(observation)
    assert memory == ()
    np.testing.assert_array_equal(still, still[:1].repeat(4000, 0))
    noisy, _ = make(random_action=0.0, exploration_noise=0.1).act(observation, KEY)
    np.testing.assert_allclose((noisy - still).std(0), 3 * 0.1, rtol=0.05)
    uniform, _ = make(random_action=1.0).act(observation, KEY)
    np.testing.assert_allclose(uniform.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(uniform.std(0), 6 / 12**0.5, rtol=0.03)
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.05
    mixed, _ = make(random_action=0.3, exploration_noise=0.0).act(observation, KEY)
    moved = np.any(mixed != still, axis=1)  # whole actions are replaced, not components
    np.testing.assert_allclose(moved.mean(), 0.3, atol=0.03)
    assert np.all(mixed[moved] != still[moved])
    wild, _ = make(random_action=0.0, exploration_noise=10.0).act(observation, KEY)
    np.testing.assert_allclose([wild.min(), wild.max()], [-2, 4], atol=1e-5)


def test_switches_are_at_a_bound_however_they_were_chosen():
    agent = make(binary=(1,), random_action=0.5)
    observation = jax.random.normal(KEY, (1000, 3))
    unit = agent.policy(observation)
    action, _ = agent.act(observation)
    np.testing.assert_allclose(action[:, 0], 1 + 3 * unit[:, 0], atol=1e-5)
    np.testing.assert_array_equal(action[:, 1], np.where(unit[:, 1] > 0, 4, -2))
    noisy, _ = agent.act(observation, KEY)
    assert set(np.unique(noisy[:, 1])) == {-2, 4}
    assert len(np.unique(noisy[:, 0])) > 900


def test_critics_learn_switches_at_their_bounds_from_actions_in_between():
    """Random exploration and demonstrators know nothing of switches."""
    agent, data = make(binary=(1,)), batch()
    snapped = data.action.at[:, 1].set(jnp.where(data.action[:, 1] > 1, 4.0, -2.0))
    assert update(agent, data, KEY)[1]["critic_loss"] == update(agent, batch(action=snapped), KEY)[1]["critic_loss"]
    assert update(make(), data, KEY)[1]["critic_loss"] != update(make(), batch(action=snapped), KEY)[1]["critic_loss"]


def test_user_mistakes_are_named():
    with pytest.raises(OffroadError, match="ddpg needs"):
        DDPG.create(Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Discrete(2)), DDPGConfig(), KEY)
    with pytest.raises(OffroadError, match="component 2 of an action with 2"):
        make(binary=(0, 2))
    taken = gym_spaces.Dict(action=gym_spaces.Box(-1, 1, (3,)))
    with pytest.raises(OffroadError, match="named 'action'"):
        DDPG.create(Spaces(taken, gym_spaces.Box(-1, 1, (2,))), DDPGConfig(), KEY)


def test_learns_to_push_a_point_to_the_origin():
    env = point()
    config = DDPGConfig(
        hidden=(32, 32),
        batch=64,
        discount=0.9,
        learning_rate=3e-3,
        polyak=0.01,
        action_penalty=0.0,
        value_range=(-20.0, 0.0),
        normalise_observation=True,
    )
    agent = DDPG.create(Spaces.of(env), config, KEY)
    before = evaluate(agent, point(), 40).returns.mean()
    result = off_policy(agent, env, 4_000, learning_starts=500, train_every=16, update_ratio=0.25, progress=False)
    after = evaluate(result.agent, point(), 40).returns.mean()
    assert before < -10
    assert after > -3  # the best policy earns about -2


def test_annealing_lowers_the_step_linearly_to_its_end_and_no_further():
    """Adam's first step changes a parameter by the learning rate, whatever the gradient."""
    agent, data = make(learning_rate=1e-2, anneal_updates=10, anneal_to=0.2), batch()
    for done, rate in ((0, 1e-2), (5, 6e-3), (10, 2e-3), (30, 2e-3)):
        late = eqx.tree_at(lambda a: [s[1].count for s in a.optimiser_states], agent, [jnp.int32(done)] * 2)
        after, _ = update(late, data, KEY)
        assert [int(state[1].count) for state in after.optimiser_states] == [done + 1] * 2
        for moved, before in ((after.policy, agent.policy), (after.critic, agent.critic)):
            steps = [np.abs(x - y).max() for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(before))]
            np.testing.assert_allclose(max(steps), rate, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "config"),
    [(DDPG, DDPGConfig(binary=(3,))), (TD3, TD3Config()), (SAC, SACConfig())],
    ids=("ddpg", "td3", "sac"),
)
def test_relational_agents_see_a_set_of_objects_of_any_size(kind, config):
    """Policy and critics ignore the blocks' order and what stands in empty slots, but nothing else."""
    config = replace(config, hidden=(16,), encoder=Relational(scales=(1, 10, 50)))
    env = stack(6, blocks=3)
    agent = kind.create(Spaces.of(env), config, KEY)
    x, _ = env.reset(seed=0)
    action = jax.random.uniform(KEY, (6, 4), minval=-1, maxval=1)

    @jax.jit
    def outputs(x):
        critics = agent.critic if kind is DDPG else agent.critics
        values = critics(x, action) if kind is DDPG else apply_ensemble(critics, x, action)
        return agent.act(x)[0][:, :3], values

    def away(x):
        return max(float(np.abs(a - b).max()) for a, b in zip(outputs(x), wanted))

    wanted = outputs(x)
    assert wanted[0].shape == (6, 3)
    order = [2, 0, 1]
    assert away(x | {name: x[name][:, order] for name in ("objects", "goals", "mask")}) < 1e-5
    assert away(x | {"objects": x["objects"][:, order]}) > 1e-4  # other goals for the blocks
    random = np.random.default_rng(1)
    rest = {name: random.normal(size=(6, 2, x[name].shape[-1])).astype(np.float32) for name in ("objects", "goals")}
    rest["mask"] = np.zeros((6, 2), np.int8)
    padded = x | {name: np.concatenate([x[name], rest[name]], 1) for name in rest}
    assert away(padded) < 1e-5
    assert away(padded | {"mask": np.ones((6, 5), np.int8)}) > 1e-4  # two blocks more
    one = x | {name: x[name][:, :1] for name in ("objects", "goals", "mask")}
    assert np.isfinite(outputs(one)[1]).all()
    assert away(one) > 1e-4
