import gymnasium as gym
import jax
import jax_envs
import numpy as np
import pytest
from tiny import cheetah, leaves, ppo, same, train_ppo

from offroad import train
from offroad.train.on_policy import _HostLoop, _JaxLoop


def test_seeds_trained_side_by_side_are_the_seeds_trained_alone():
    env = jax_envs.point(4)
    both = train_ppo(env, 96, seed=[3, 5])
    for row, seed in enumerate((3, 5)):
        alone = train_ppo(env, 96, seed=seed)
        for a, b in zip(leaves(both.agent), leaves(alone.agent)):
            np.testing.assert_allclose(a[row], b, rtol=1e-3, atol=1e-5)
        for a, b in zip(both.history, alone.history):
            assert a["value_loss"][row] == pytest.approx(b["value_loss"], rel=1e-3)
    assert leaves(both.agent)[0][0].tolist() != leaves(both.agent)[0][1].tolist()


def test_rollouts_of_one_call_are_summed_up():
    result = train_ppo(jax_envs.point(4), 160, rollouts_per_call=5)  # 40 steps of each environment
    assert [line["step"] for line in result.history] == [160]
    assert 4 <= result.history[0]["episode/count"] < 8  # what was left of the first ones does not count
    assert result.history[0]["episode/length"] == 20


def test_the_agent_that_was_given_stays_usable():
    for env in (jax_envs.point(4), cheetah(4)):
        agent = ppo(env)
        before = [leaf.copy() for leaf in leaves(agent)]
        result = train.on_policy(agent, env, 64, progress=False)
        assert all((a == b).all() for a, b in zip(leaves(agent), before))
        assert not same(agent, result.agent)


def test_everything_compiles_once():
    env = jax_envs.point(4)
    loop = _JaxLoop(ppo(env), env, 0, 1, 1)
    loop.start()
    for _ in range(3):
        loop.advance()
    assert loop._advance._cache_size() == 1
    env = cheetah(4)
    loop = _HostLoop(ppo(env), env, 0, 1)
    loop.start()
    for _ in range(3):
        loop.advance()
    assert loop._update._cache_size() == 1
    assert [act._cache_size() for act in loop._collector.policy._compiled.values()] == [1]


def test_fake_steps_do_not_count():
    env = gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")  # NEXT_STEP
    result = train_ppo(env, 64)
    ended = sum(line["episode/count"] for line in result.history)
    assert ended > 0
    assert 64 <= result.step < 64 + 32
    assert jax.tree.leaves(result.agent)


def test_what_an_environment_tells_is_logged():
    env = cheetah(4)
    env.metrics = lambda: {"coverage/cells": 7.5}
    assert [line["coverage/cells"] for line in train_ppo(env, 64).history] == [7.5, 7.5]
