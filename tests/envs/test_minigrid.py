"""MiniGrid through its adapter."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offroad
from offroad.data.spaces import Spaces
from offroad.envs import minigrid as adapter
from offroad.errors import OffroadError

pytest.importorskip("minigrid")


def test_view_is_minigrids_own_spread_out():
    env, own = gym.make("offroad/MiniGrid-DoorKey-8x8-v0"), gym.make("MiniGrid-DoorKey-8x8-v0")
    check_env(adapter.make_single("DoorKey-8x8"), skip_render_check=True)
    seen, info = env.reset(seed=4)
    expected, _ = own.reset(seed=4)
    for action in (0, 2, 2, 1, 2, 3):
        np.testing.assert_array_equal(seen, expected["image"].astype(int) * [25, 50, 100])
        seen, reward, *_, info = env.step(action)
        expected, *_ = own.step(action)
        assert (info["x"], info["y"]) == tuple(own.unwrapped.agent_pos)
        assert isinstance(reward, float)


def test_agents_can_read_it_and_the_goal_pays():
    env = offroad.make_vec("offroad/MiniGrid-Empty-8x8-v0", 2)
    Spaces.of(env)
    env.reset(seed=0)
    for action in [2] * 5 + [1] + [2] * 4:  # along the wall, then down to the goal
        env.step(np.full(2, action))
    _, reward, terminated, _, info = env.step(np.full(2, 2))
    assert (reward > 0.9).all()
    assert terminated.all()
    assert info["final_info"]["y"].tolist() == [6, 6]


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(OffroadError, match=r"pip install 'offroad\[minigrid\]'"):
        adapter.make_single("Empty-8x8")
