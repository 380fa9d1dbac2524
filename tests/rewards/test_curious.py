from dataclasses import replace

import gymnasium as gym
import jax
import jax.numpy as jnp
import jax_envs
import numpy as np
import pytest
import tiny
from gymnasium.vector import AutoresetMode
from worlds import KEY, VECTOR, lock, pay, random_steps

from offroad import train
from offroad.agents import AGENTS, DQN, PPO, SAC, DQNConfig, PPOConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from offroad.errors import OffroadError
from offroad.rewards import (
    E3B,
    ICM,
    RND,
    Counts,
    CountsConfig,
    Curious,
    CuriousConfig,
    E3BConfig,
    Fitting,
    ICMConfig,
    IntrinsicRewardEnv,
    RNDConfig,
    Scaling,
    Sum,
)
from offroad.rewards.intrinsic import BonusScale
from offroad.train.restore import load_agent

SMALL = {"hidden": (8,), "size": 4, "fitting": Fitting(minibatch=16)}


def icm(spaces=VECTOR, **options):
    return ICM.create(spaces, ICMConfig(**{**SMALL, **options}), KEY)


def rnd(spaces=VECTOR, **options):
    return RND.create(spaces, RNDConfig(**{**SMALL, **options}), KEY)


def ppo(spaces=VECTOR):
    return PPO.create(spaces, PPOConfig(rollout=12, minibatch=24, epochs=1, hidden=(8,)), KEY)


def rollout(seed=0, scale=1.0):
    steps, mask = random_steps(seed=seed)
    return Rollout(replace(steps, reward=np.float32(scale) * steps.reward), (), mask)


@jax.jit
def update(agent, batch):
    return agent.update(batch, KEY)


def test_the_scale_is_the_decaying_std_of_the_discounted_bonus():
    rng, scaling = np.random.default_rng(0), Scaling(discount=0.5, decay=0.9)
    scale, totals, mean, square, weight = BonusScale.create(2), np.zeros(2), 0.0, 0.0, 0.0
    assert scale.std == 1
    for _ in range(3):
        bonus, mask = rng.random((5, 2)).astype(np.float32), rng.random((5, 2)) < 0.7
        scale = scale.update(jnp.where(mask, bonus, 0.0), jnp.asarray(mask), scaling)
        seen = []
        for b, m in zip(bonus, mask):
            totals = np.where(m, 0.5 * totals + b, totals)
            seen.extend(totals[m])
        mean, square, weight = (
            0.9**5 * a + (1 - 0.9**5) * b
            for a, b in ((mean, np.mean(seen)), (square, np.square(seen).mean()), (weight, 1))
        )
    expected = np.sqrt(square / weight - (mean / weight) ** 2)
    np.testing.assert_allclose(scale.std, expected, rtol=1e-4)
    silent = scale.update(jnp.zeros((5, 2)), jnp.zeros((5, 2), bool), scaling)
    np.testing.assert_allclose(silent.std, scale.std, rtol=1e-6)


@pytest.mark.parametrize("bonus", [0.01, 3.0])
def test_a_first_bonus_alone_does_not_explode(bonus):
    scale = BonusScale.create(1).update(jnp.full((1, 1), bonus), jnp.ones((1, 1), bool), Scaling())
    assert bonus / scale.std == pytest.approx(10, rel=1e-3)


def test_the_scale_of_short_calls_is_that_of_a_long_one():
    bonus, every = np.random.default_rng(1).random((512, 4)).astype(np.float32), jnp.ones((512, 4), bool)
    whole = BonusScale.create(4).update(jnp.asarray(bonus), every, Scaling())
    scale, step = BonusScale.create(4), jax.jit(lambda scale, b: scale.update(b, jnp.ones((1, 4), bool), Scaling()))
    for row in bonus:
        scale = step(scale, row[None])
    np.testing.assert_allclose(scale.std, whole.std, rtol=0.15)


def test_rewards_add_and_scale():
    batch = rollout()
    args = (batch.transitions, batch.mask, KEY)
    both = 0.5 * icm() + rnd() * 2
    assert isinstance(both, Sum)
    bonus, paid = both.pay(*args)
    expected = 0.5 * icm().pay(*args)[0] + 2 * rnd().pay(*args)[0]
    np.testing.assert_allclose(bonus, expected, rtol=1e-5)
    np.testing.assert_allclose((2 * both).pay(*args)[0], 2 * expected, rtol=1e-5)
    learnt, metrics = paid.update(*args)
    assert {"0_icm/forward_loss", "1_rnd/predictor_loss"} <= metrics.keys()
    assert not tiny.same(learnt.parts[0].model, both.parts[0].model)
    assert not both.episodic
    assert (both + E3B.create(VECTOR, E3BConfig(**SMALL), KEY)).episodic


def test_without_the_weight_of_the_task_its_reward_changes_nothing():
    """Multiplying it by 1000 gives the same agent to the bit."""
    agent = Curious(ppo(), 0.5 * icm() + rnd(), extrinsic=0.0)
    one, other = (update(agent, rollout(scale=scale)) for scale in (1.0, 1000.0))
    assert tiny.same(one, other)
    assert not tiny.same(one[0].agent, agent.agent)
    assert one[1]["intrinsic/share"] == 1
    mixed = Curious(ppo(), rnd(), extrinsic=1.0)
    assert not tiny.same(*(update(mixed, rollout(scale=scale))[0].agent for scale in (1.0, 1000.0)))


def test_the_agent_inside_learns_from_the_mixture():
    agent = Curious(ppo(), icm(), extrinsic=2.0, intrinsic=0.5)
    batch = rollout()
    learnt, _ = update(agent, batch)
    pay_key, reward_key, agent_key = jax.random.split(KEY, 3)
    bonus, reward = agent.reward.pay(batch.transitions, batch.mask, pay_key)
    mixed = 2 * batch.transitions.reward + 0.5 * bonus
    batch = replace(batch, transitions=replace(batch.transitions, reward=mixed))
    expected, _ = jax.jit(lambda agent: agent.update(batch, agent_key))(agent.agent)
    taught, _ = jax.jit(lambda reward: reward.update(batch.transitions, batch.mask, reward_key))(reward)
    for a, b in zip(jax.tree.leaves((learnt.agent, learnt.reward)), jax.tree.leaves((expected, taught))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_in_the_warm_up_only_the_reward_learns():
    agent = Curious(ppo(), rnd(), warm_up=1)
    first, _ = update(agent, rollout())
    second, _ = update(first, rollout(1))
    assert tiny.same(first.agent, agent.agent)
    assert not tiny.same(first.reward, agent.reward)
    assert not tiny.same(second.agent, agent.agent)
    assert first.reward.scale.weight == 0 < second.reward.scale.weight


def test_it_is_created_from_a_config():
    config = CuriousConfig(PPOConfig(rollout=12, minibatch=24), RNDConfig(**SMALL), 0.0, 1.0, 3)
    agent = Curious.create(VECTOR, config, KEY, agent=PPO, reward=RND)
    assert agent.config == config
    assert agent.config.rollout == 12


def test_a_run_continues_to_the_bit(tmp_path):
    """Networks, statistics and memories of episodes come back with the checkpoint."""

    def curious(env):
        spaces = Spaces.of(env)
        reward = rnd(spaces) + E3B.create(spaces, E3BConfig(**SMALL), KEY)
        return Curious(tiny.ppo(env), reward)

    def run(steps, out, **options):
        env = tiny.cheetah(2)
        agent = train.on_policy(curious(env), env, steps, out=out, progress=False, **options).agent
        env.close()
        return agent

    whole = run(48, tmp_path / "whole")
    run(32, tmp_path / "parts")
    assert tiny.same(run(48, tmp_path / "parts", resume=True), whole)


def test_the_agent_inside_comes_back_without_its_bonus(tmp_path):
    """From its run alone, whatever the reward: bonus and memories stay unread."""
    env = tiny.cheetah(2)
    spaces = Spaces.of(env)
    agent = Curious(tiny.ppo(env), rnd(spaces) + E3B.create(spaces, E3BConfig(**SMALL), KEY))
    trained = train.on_policy(agent, env, 32, out=tmp_path / "run", progress=False).agent
    assert tiny.same(load_agent(tmp_path / "run"), trained.agent)
    assert tiny.same(load_agent(tmp_path / "run", like=agent), trained)


def test_the_agent_inside_of_a_compiled_run_comes_back(tmp_path):
    env = jax_envs.point(4)
    agent = Curious(tiny.ppo(env), rnd(Spaces.of(env)))
    trained = train.on_policy(agent, env, 32, out=tmp_path / "run", progress=False).agent
    assert tiny.same(load_agent(tmp_path / "run"), trained.agent)


def tired(agent, reward, wrap):
    """`wrap(agent, reward)`, and the same with memories of episodes that were never finished."""
    steps, mask = random_steps(reward.spaces, ends=0.0)
    paid = pay(reward, steps, mask)[1]
    norm = replace(agent.return_norm, discounted=agent.return_norm.discounted + 3)
    remembering = replace(reward, memory=paid.memory, scale=replace(reward.scale, discounted=paid.scale.discounted))
    return wrap(agent, reward), wrap(replace(agent, return_norm=norm), remembering)


@pytest.mark.parametrize("make", [tiny.cheetah, jax_envs.point])
def test_a_run_forgets_the_episodes_of_the_run_before(make):
    """The trainer resets the environments, so that nothing that an agent knew of their episodes is true any more."""
    env = make(2)
    reward = E3B.create(Spaces.of(env), E3BConfig(**SMALL), KEY)
    agents = tired(tiny.ppo(env), reward, Curious)
    assert not tiny.same(*agents)
    assert tiny.same(*(train.on_policy(agent, env, 32, progress=False).agent for agent in agents))
    env.close()


def test_a_run_whose_environment_cannot_be_restored_begins_new_episodes(tmp_path):
    env = tiny.steps_env({"end": 5}, {"end": 30})
    agent = Curious(tiny.ppo(env), E3B.create(Spaces.of(env), E3BConfig(**SMALL), KEY))
    trained = train.on_policy(agent, env, 32, out=tmp_path, progress=False).agent
    assert not trained.reward.memory.fresh.all()
    restored = train.on_policy(agent, env, 32, out=tmp_path, resume=True, progress=False).agent
    assert tiny.same(restored, trained.begin_episodes())
    assert tiny.same(restored.reward.memory, agent.reward.memory)
    assert tiny.same(restored.agent.network, trained.agent.network)


def test_off_policy_agents_are_paid_afresh():
    space = Spaces(VECTOR.observation, gym.spaces.Box(-1.0, 1.0, (2,)), 2)
    (steps, _), (discrete, _) = random_steps(space), random_steps()
    sac = SAC.create(space, tiny.SACConfig(batch=12, hidden=(8,)), KEY)
    dqn = DQN.create(VECTOR, DQNConfig(batch=12, hidden=(8,)), KEY)
    for agent, reward, batch in ((sac, icm(space), steps), (dqn, rnd(), discrete)):
        learner, first = Curious(agent, reward, extrinsic=0.0), jax.tree.map(lambda x: x[:, 0], batch)
        one, other = (update(learner, replace(first, reward=r)) for r in (first.reward, 1000 * first.reward))
        assert tiny.same(one, other)
        assert not tiny.same(one[0].agent, agent)
        assert jax.tree.structure(one[0]) == jax.tree.structure(learner)  # so that updates can be scanned
        assert [x.shape for x in jax.tree.leaves(one[0])] == [x.shape for x in jax.tree.leaves(learner)]
    episodic = Curious(dqn, E3B.create(VECTOR, E3BConfig(**SMALL), KEY))
    with pytest.raises(OffroadError, match="IntrinsicRewardEnv"):
        episodic.update(jax.tree.map(lambda x: x[:, 0], discrete), KEY)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_observations_of_different_episodes_are_never_paired(mode):
    """The bonus of `Steps` would be huge between episodes; trainer and wrapper see the same transitions."""

    seen = []

    def look(steps, mask):
        before, after = np.asarray(steps.observation)[mask], np.asarray(steps.next_observation)[mask]
        seen.append((before, after))

    env = tiny.steps_env({"end": 3}, {"cut": 4}, mode=mode)
    spaces = Spaces.of(env)
    reward = Counts.create(spaces, CountsConfig(columns=(1,), low=(0.0,), high=(10.0,)), KEY)
    wrapped = IntrinsicRewardEnv(env, reward, update_every=6)
    learn = wrapped._update
    wrapped._update = lambda reward, steps, mask, key: look(steps, mask) or learn(reward, steps, mask, key)
    wrapped.reset(seed=0)
    for _ in range(12):
        _, _, _, _, info = wrapped.step(np.zeros((2, 1), np.float32))
    before, after = (np.concatenate(part) for part in zip(*seen))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])  # of one episode
    np.testing.assert_array_equal(after[:, 1], before[:, 1] + 1)  # and one step
    # Steps 1 to 4 of the episode were counted as often as they happened.
    counted = np.asarray(wrapped.intrinsic_reward.table)
    np.testing.assert_array_equal(counted[1:5], [(after[:, 1] == t).sum() for t in range(1, 5)])
    assert info["intrinsic_reward"].shape == (2,)


def test_the_wrapper_pays_what_the_reward_says():
    def wrapped():
        env = tiny.steps_env({"end": 3}, {"end": 5})
        box = Counts.create(
            Spaces.of(env), CountsConfig(columns=(1,), low=(0.0,), high=(10.0,), scaling=Scaling(False)), KEY
        )
        return IntrinsicRewardEnv(env, box, extrinsic=10.0, update_every=2)

    env = wrapped()
    env.reset(seed=0)
    paid = [env.step(np.full((2, 1), 2.0, np.float32))[1] for _ in range(3)]
    # Step t leads to cell t. After two steps cells 1 and 2 are known twice, but not cell 3.
    np.testing.assert_allclose(paid, np.full((3, 2), 21.0), rtol=1e-6)
    paid = env.step(np.full((2, 1), 2.0, np.float32))[1]  # world 0 begins again
    np.testing.assert_allclose(paid, [20 + 1 / np.sqrt(3), 21.0], rtol=1e-6)


def test_the_state_of_the_wrapper_comes_back():
    def make():
        env = tiny.cheetah(2)
        return IntrinsicRewardEnv(env, rnd(Spaces.of(env)), update_every=3)

    one, other = make(), make()
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2, 6)).astype(np.float32)
    for env in (one, other):
        env.reset(seed=0)
    for action in actions[:4]:
        one.step(action)
    other.set_state(one.get_state())
    for action in actions[4:]:
        np.testing.assert_array_equal(one.step(action)[1], other.step(action)[1])
    assert tiny.same(one.intrinsic_reward, other.intrinsic_reward)


def test_the_wrapper_names_mistakes():
    env = tiny.steps_env({"end": 3})
    with pytest.raises(OffroadError, match="created for 2 environments, this one has 1"):
        IntrinsicRewardEnv(env, rnd())
    with pytest.raises(OffroadError, match="resets itself"):
        IntrinsicRewardEnv(tiny.stack(2), rnd())
    cheetah = tiny.cheetah(2)
    with pytest.raises(
        OffroadError, match=r"created for observations Box\(-5.0, 5.0, \(3,\), float32\), but the environ"
    ):
        IntrinsicRewardEnv(cheetah, rnd())
    with pytest.raises(OffroadError, match="update_every is 0"):
        IntrinsicRewardEnv(cheetah, rnd(Spaces.of(cheetah)), update_every=0)
    with pytest.raises(OffroadError, match="reset_mask"):
        IntrinsicRewardEnv(cheetah, rnd(Spaces.of(cheetah))).reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(OffroadError, match=r"but the agent has Discrete\(3\)"):
        Curious(ppo(), icm(Spaces(VECTOR.observation, gym.spaces.Discrete(4), 2)))
    with pytest.raises(OffroadError, match="columns has 7; counts need at least 1 bin, and columns from 0 to 2"):
        Counts.create(VECTOR, CountsConfig(columns=(7,)), KEY)
    with pytest.raises(OffroadError, match="low < high"):
        Counts.create(VECTOR, CountsConfig(columns=(0,), low=(1.0,), high=(1.0,)), KEY)


def test_a_reset_ends_the_episodes_that_the_reward_has_yet_to_learn_from():
    env = tiny.steps_env({"end": 9}, {"end": 9})
    reward = rnd(Spaces.of(env))
    wrapped, learnt = IntrinsicRewardEnv(env, reward, update_every=4), []
    wrapped._update = lambda reward, steps, mask, key: (learnt.append(steps), (reward, {"loss": np.float32(2.0)}))[1]
    for _ in range(2):
        wrapped.reset(seed=0)
        for _ in range(2):
            wrapped.step(np.full((2, 1), 2.0, np.float32))
    assert learnt[0].truncated.all(1).tolist() == [False, True, False, False]
    assert wrapped.metrics() == {"intrinsic/loss": 2.0}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_can_be_curious(name):
    kind, config = AGENTS[name]
    discrete = name in ("dqn", "discrete_cql", "ppo")
    action = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    spaces = Spaces(VECTOR.observation, action, 2)
    agent = kind.create(spaces, config(**({"rollout": 12, "minibatch": 24} if name == "ppo" else {})), KEY)
    steps, mask = random_steps(spaces)
    batch = Rollout(steps, (), mask) if name == "ppo" else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
    after, metrics = jax.eval_shape(lambda a, b: a.update(b, KEY), Curious(agent, rnd(spaces)), batch)
    assert "intrinsic/share" in metrics
    assert jax.tree.structure(after) == jax.tree.structure(Curious(agent, rnd(spaces)))


def test_a_bonus_opens_a_lock_that_chance_does_not():
    """Nineteen right actions in a row: 1 in 524 288 by chance, and no reward on the way."""

    def opened(weight):
        env = lock()
        spaces = Spaces.of(env)
        config = PPOConfig(rollout=24, minibatch=96, epochs=4, hidden=(32,), learning_rate=3e-3, entropy=0.01, gae=0.9)
        reward = weight * Counts.create(spaces, CountsConfig(), KEY)
        agent = Curious(PPO.create(spaces, config, KEY), reward, extrinsic=5.0)
        agent = train.on_policy(agent, env, 24 * 16 * 90, rollouts_per_call=30, progress=False).agent
        return train.evaluate(agent, env, 16).returns.mean()

    assert opened(0.0) == 0
    assert opened(1.0) == 1
