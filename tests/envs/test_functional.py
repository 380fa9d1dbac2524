"""JAX environments as Gymnasium environments, on a counter whose every step is known."""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from jaxtyping import Array

from offroad.envs.functional import JaxEnv, JaxVectorEnv
from offroad.errors import OffroadError


class Count(NamedTuple):
    count: Array
    luck: Array  # two leaves of different kinds: the state may be any pytree


class Counter(FuncEnv):
    """Adds the action to a counter that starts at a random number in [0, 1); ends above `goal`."""

    observation_space = spaces.Box(-1000, 1000, (2,), np.float32)
    action_space = spaces.Box(0, 2, (1,), np.float32)
    goal = 3.0

    def initial(self, rng, params=None):
        return Count(jax.random.uniform(rng), jax.random.randint(rng, (), 0, 100))

    def transition(self, state, action, rng, params=None):
        return Count(state.count + action[0], jax.random.randint(rng, (), 0, 100))

    def observation(self, state, rng, params=None):
        return jnp.stack([state.count, state.luck.astype(jnp.float32)])

    def reward(self, state, action, next_state, rng, params=None):
        return next_state.count - state.count

    def terminal(self, state, rng, params=None):
        return state.count > self.goal

    def state_info(self, state, params=None):
        return {"count": state.count}

    def transition_info(self, state, action, next_state, params=None):
        return {"count": next_state.count, "before": state.count}


ACTION = np.array([[0.5], [2.0], [0.0]], np.float32)  # copy 1 ends at its second step, copy 2 never


def counters(mode="NextStep", limit=5):
    return JaxVectorEnv(Counter(), 3, limit, mode)


def test_next_step_resets_one_step_after_the_end():
    env = counters()
    start, info = env.reset(seed=0)
    assert np.all(info["count"] == start[:, 0])
    env.step(ACTION)
    observation, reward, terminated, truncated, info = env.step(ACTION)
    np.testing.assert_allclose(observation[:, 0], start[:, 0] + [1, 4, 0], rtol=1e-6)
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    observation, reward, terminated, _, info = env.step(ACTION)
    assert 0 <= observation[1, 0] < 1  # the action was ignored
    assert observation[1, 0] != start[1, 0]
    assert reward.tolist() == [0.5, 0.0, 0.0]
    assert not terminated.any()
    assert info["_before"].tolist() == [True, False, True]
    assert info["_count"].all()
    assert info["count"][1] == observation[1, 0]


def test_same_step_gives_the_final_observation_in_the_info():
    env = counters("SameStep")
    start, _ = env.reset(seed=0)
    _, _, _, _, info = env.step(ACTION)
    assert "final_obs" not in info
    observation, _reward, terminated, _, info = env.step(ACTION)
    assert terminated.tolist() == info["_final_obs"].tolist() == info["_final_info"].tolist() == [False, True, False]
    assert info["final_obs"].dtype == object
    assert info["final_obs"][0] is None
    assert info["final_obs"][1][0] == pytest.approx(start[1, 0] + 4)
    assert info["final_info"]["before"][1] == pytest.approx(start[1, 0] + 2)
    assert 0 <= observation[1, 0] < 1
    assert info["count"][1] == observation[1, 0]
    assert not env.step(ACTION)[2].any()  # the next step is one


def test_disabled_leaves_resets_to_the_caller():
    env = counters("Disabled")
    env.reset(seed=0)
    env.step(ACTION)
    before, _, terminated, _, _ = env.step(ACTION)
    with pytest.raises(OffroadError, match="environment 1 was stepped after its episode had ended"):
        env.step(ACTION)
    after, info = env.reset(options={"reset_mask": terminated})
    assert np.all(after[[0, 2]] == before[[0, 2]])
    assert 0 <= after[1, 0] < 1
    assert info["_count"].tolist() == terminated.tolist()
    env.step(ACTION)


def test_time_limit_truncates_and_never_together_with_a_termination():
    env = counters(limit=2)
    env.reset(seed=0)
    assert not env.step(ACTION)[3].any()
    _, _, terminated, truncated, _ = env.step(ACTION)
    assert terminated.tolist() == [False, True, False]
    assert truncated.tolist() == [True, False, True]


def test_each_copy_is_the_single_environment_with_its_seed():
    env = counters(limit=None)
    batch, _ = env.reset(seed=7)
    singles = [JaxEnv(Counter()) for _ in range(3)]
    for i, single in enumerate(singles):
        observation, info = single.reset(seed=7 + i)
        assert np.all(observation == batch[i])
        assert info == {"count": observation[0]}
    batch, reward, *_ = env.step(ACTION)
    for i, single in enumerate(singles):
        observation, reward_i, *_ = single.step(ACTION[i])
        assert np.all(observation == batch[i])
        assert reward_i == reward[i]


def test_gymnasium_finds_nothing_wrong_with_the_single_environment():
    check_env(JaxEnv(Counter()), skip_render_check=True)


def test_seeds():
    env = counters()
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    following, _ = env.reset()
    listed, _ = env.reset(seed=[5, None, 3])
    assert np.all(first == again)
    assert not np.any(following[:, 0] == first[:, 0])
    assert np.all(listed[2] == first[0])
    assert len({row[0] for row in first}) == 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_restored_state_goes_on_bitwise(mode):
    env = counters(mode)
    env.reset(seed=0)
    env.step(ACTION)
    env.step(ACTION)  # with an episode just ended
    state = env.get_state()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    other = counters(mode)
    other.set_state(state)
    for _ in range(8):
        for one, two in zip(env.step(ACTION)[:4], other.step(ACTION)[:4]):
            np.testing.assert_array_equal(one, two)
    with pytest.raises(OffroadError, match="another num_envs"):
        JaxVectorEnv(Counter(), 2, autoreset_mode=mode).set_state(state)


def test_format_is_that_of_gymnasiums_own_vector_environment():
    ours, theirs = counters("SameStep", None), None
    theirs = gym.vector.SyncVectorEnv(
        [lambda: JaxEnv(Counter()) for _ in range(3)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for _ in range(3):
        one, two = ours.step(ACTION), theirs.step(ACTION)
        for a, b in zip(one[:4], two[:4]):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
        assert one[4].keys() == two[4].keys()
        for name in one[4].keys() & {"final_obs", "_final_obs", "_before", "_count"}:
            assert one[4][name].dtype == two[4][name].dtype
            assert one[4][name].shape == two[4][name].shape


def test_mistakes_are_explained():
    with pytest.raises(OffroadError, match="reset first"):
        counters().step(ACTION)
    with pytest.raises(OffroadError, match="2 seeds; expected one for each of 3"):
        counters().reset(seed=[1, 2])
    with pytest.raises(OffroadError, match="all True in the first reset"):
        counters().reset(options={"reset_mask": np.array([True, False, True])})
