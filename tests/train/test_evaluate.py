import sys

import jax
import jax.numpy as jnp
import jax_envs
import numpy as np
import pytest
from tiny import Proportional, cheetah, ppo, same, steps_env, train_ppo

from offroad.agents import stacked
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train import Schedule, evaluate
from offroad.train.loop import EVALUATION_SEED


class Left(Proportional):
    def act(self, observation, key=None, memory=()):
        assert key is None
        return jnp.zeros(memory.shape, jnp.int32), memory


def test_each_environment_gives_its_share_of_episodes():
    env = steps_env({"end": 2}, {"cut": 7})
    found = evaluate(Proportional.create(Spaces.of(env), gain=0.0), env, 3)
    assert found.lengths.tolist() == [2, 2, 7, 7]  # rounded up to two each, though the first had time for many more
    np.testing.assert_array_equal(found.returns, [1, 1, 15, 15])  # 0 + 1; 0 + 1 + 2, then the bound 3 four times
    assert found.metrics() == {"eval/return": 8, "eval/length": 4.5}


def test_compiled_evaluation_takes_whole_episodes_of_the_deterministic_policy():
    env = jax_envs.cartpole(4)
    agent = Left.create(Spaces.of(env))
    one, again, other = (evaluate(agent, env, 12, seed=seed) for seed in (0, 0, 1))
    assert one.returns.shape == (12,)
    np.testing.assert_array_equal(one.returns, one.lengths)  # +1 a step
    assert one.lengths.min() > 6
    assert one.lengths.max() < 13
    np.testing.assert_array_equal(one.returns, again.returns)
    assert one.returns.tolist() != other.returns.tolist()


def test_stacked_agents_are_evaluated_each_on_the_same_episodes():
    for env in (jax_envs.point(2), steps_env({"end": 3}, {"cut": 2})):
        create = ppo if hasattr(env, "func_env") else lambda env, seed: Proportional.create(Spaces.of(env), gain=seed)
        pair = [create(env, seed) for seed in (0, 1)]
        both = evaluate(stacked(pair), env, 4, seed=3, stacked=True)
        assert both.metrics()["eval/return"].shape == (2,)
        for row, agent in zip(both.returns, pair):
            np.testing.assert_allclose(row, evaluate(agent, env, 4, seed=3).returns, rtol=1e-5)
        assert both.returns[0].tolist() != both.returns[1].tolist()


def test_a_compiled_environment_needs_a_time_limit():
    env = jax_envs.JaxVectorEnv(jax_envs.CartPole(), 2)
    with pytest.raises(OffroadError, match="max_episode_steps"):
        evaluate(ppo(env), env)


def test_an_episode_that_never_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(sys.modules["offroad.train.evaluate"], "LONGEST", 64)
    env = steps_env({"cut": 4}, {})
    with pytest.raises(OffroadError, match=r"'SyncVectorEnv' has not ended after 64 steps.*add a time limit"):
        evaluate(Proportional.create(Spaces.of(env)), env, 2)
    env = steps_env({"cut": 4}, {"cut": 63})
    assert evaluate(Proportional.create(Spaces.of(env)), env, 2).lengths.tolist() == [4, 63]


@pytest.mark.parametrize("make", [jax_envs.point, cheetah])
def test_training_does_not_notice_that_it_is_evaluated(make):
    eval_env = cheetah(1, max_episode_steps=10) if make is cheetah else make(1)
    schedule = Schedule(evaluate=64, episodes=1)
    watched = train_ppo(make(4), 128, eval_env=eval_env, schedule=schedule)
    assert make is not cheetah or watched.history[-1]["eval/length"] == 10
    assert same(watched.agent, train_ppo(make(4), 128).agent)
    assert [line["step"] for line in watched.history if "eval/return" in line] == [64, 128]
    expected = evaluate(watched.agent, eval_env, 1, seed=EVALUATION_SEED)
    assert watched.history[-1]["eval/return"] == pytest.approx(float(expected.returns[0]), rel=1e-6)


def test_several_seeds_are_evaluated_each():
    result = train_ppo(jax_envs.point(4), 64, seed=[0, 1], eval_env=jax_envs.point(2), schedule=Schedule(episodes=2))
    assert np.shape(result.history[-1]["eval/return"]) == (2,)
    assert jax.tree.leaves(result.agent)[0].shape[0] == 2
