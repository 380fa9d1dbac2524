"""A television shows what it should, where it should, and nothing else changes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import offroad
from offroad.envs.television import Television
from offroad.errors import OffroadError


class Corridor(gym.Env):
    """Images that tell the position; the fourth step to the right ends the episode."""

    observation_space = gym.spaces.Box(0, 255, (10, 10, 2), np.uint8)
    action_space = gym.spaces.Discrete(2)  # stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._image(), {}

    def step(self, action):
        self.at += int(action)
        return self._image(), 0.0, self.at == 4, False, {}

    def _image(self):
        return np.full((10, 10, 2), self.at, np.uint8)


def vector(mode=AutoresetMode.SAME_STEP):
    return gym.vector.SyncVectorEnv([Corridor] * 2, autoreset_mode=mode)


def screen(env, observation):
    return observation[..., env.rows, env.columns, :]


def outside(env, observation):
    rest = observation.astype(int)
    rest[..., env.rows, env.columns, :] = -1
    return rest[rest >= 0]


def test_noise_changes_in_every_step_and_only_there():
    env = Television(vector(), "noise", share=0.25)
    assert env.action_space == vector().action_space
    before, _ = env.reset(seed=0)
    assert screen(env, before).shape == (2, 5, 5, 2)
    for position in (1, 2, 3):
        now, *_, info = env.step(np.ones(2, int))
        assert (screen(env, now) != screen(env, before)).mean() > 0.95
        np.testing.assert_array_equal(outside(env, now), position)
        assert not info["switched"].any()
        before = now
    assert (screen(env, now)[0] != screen(env, now)[1]).mean() > 0.95
    last, *_, info = env.step(np.ones(2, int))
    np.testing.assert_array_equal(outside(env, last), 0)  # the next episode
    for final, shown in zip(info["final_obs"], screen(env, last)):
        np.testing.assert_array_equal(outside(env, final), 4)
        np.testing.assert_array_equal(screen(env, final), shown)


def test_only_the_last_action_switches():
    env = Television(vector(), "switch", share=0.25, values=5)
    assert env.single_action_space.n == 3
    first, _ = env.reset(seed=0)
    assert screen(env, first).max() < 5
    now, *_ = env.step(np.array([1, 0]))
    np.testing.assert_array_equal(screen(env, now), screen(env, first))
    later, *_, info = env.step(np.array([2, 1]))
    assert info["switched"].tolist() == [True, False]
    changed = (screen(env, later) != screen(env, now)).mean((1, 2, 3))
    assert changed[0] > 0.5
    assert changed[1] == 0
    np.testing.assert_array_equal(outside(env, later), 1)  # the world that switched stood still


def test_same_seed_same_television():
    env = Television(vector(), "noise")
    runs = []
    for seed in (0, 0, 1):
        env.reset(seed=seed)
        runs.append(np.stack([env.step(np.zeros(2, int))[0] for _ in range(3)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_it_stands_in_a_minigrid_and_in_the_platformer():
    pytest.importorskip("minigrid")
    env = Television(offroad.make_vec("offroad/MiniGrid-MultiRoom-N4-S5-v0", 2), "switch", idle=6)
    first, _ = env.reset(seed=0)
    assert env.single_action_space.n == 8
    now, _, _, _, info = env.step(np.array([7, 0]))
    np.testing.assert_array_equal(outside(env, now[0]), outside(env, first[0]))
    assert info["heading"].shape == (2,)
    env.close()
    game = Television(offroad.make_vec("offroad/Platformer-v0", 2), "noise")
    assert screen(game, game.reset(seed=0)[0]).std() > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "off"}, "unknown kind"), ({"share": 0.0}, "share 0.0"), ({"idle": 2}, "one of the 2 actions")],
)
def test_bad_options_have_clear_errors(options, message):
    with pytest.raises(OffroadError, match=message):
        Television(vector(), **options)


def test_vectors_have_no_television():
    with pytest.raises(OffroadError, match="needs images"):
        Television(offroad.make_vec("CartPole-v1", 1))
