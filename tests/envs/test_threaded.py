"""Threaded worlds behave as Gymnasium's own vector environments do, whatever the autoreset mode."""

import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from offroad.envs.threaded import SingleWorldEnv, ThreadedVectorEnv
from offroad.errors import OffroadError

IMAGE, ACTIONS = gym.spaces.Box(0, 255, (2, 2, 1), np.uint8), gym.spaces.Discrete(3)


class Counter:
    """Shows a start that is drawn, plus what the actions added up to; ends at 5 more, or after 4 steps."""

    alive = 0

    def __init__(self, fails=False):
        if fails:
            raise OffroadError("no engine")
        Counter.alive += 1

    def reset(self, random, options):
        self.start, self.total, self.steps = int(random.integers(100)), 0, 0
        return self._image(), self._info()

    def step(self, action):
        self.total, self.steps = self.total + int(action), self.steps + 1
        ended = self.total >= 5
        return self._image(), float(action), ended, not ended and self.steps == 4, self._info()

    def frame(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        Counter.alive -= 1

    def _image(self):
        return np.full((2, 2, 1), self.start + self.total, np.uint8)

    def _info(self):
        return {"total": self.total, "odd": self.total % 2 == 1, "worker": threading.get_ident() > 0}


def ours(mode, num_envs=3, threads=2):
    return ThreadedVectorEnv([Counter] * num_envs, IMAGE, ACTIONS, autoreset_mode=mode, num_threads=threads)


def single():
    return SingleWorldEnv(ours(AutoresetMode.DISABLED, 1))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_same_as_gymnasium(mode):
    env, reference = ours(mode), SyncVectorEnv([single] * 3, autoreset_mode=mode)
    random = np.random.default_rng(0)
    found, expected = [env.reset(seed=7)], [reference.reset(seed=7)]
    ends = 0
    for _ in range(30):
        action = random.integers(0, 3, 3)
        found.append(env.step(action))
        expected.append(reference.step(action))
        done = found[-1][2] | found[-1][3]
        ends += done.sum()
        if mode is AutoresetMode.DISABLED and done.any():
            found.append(env.reset(options={"reset_mask": done}))
            expected.append(reference.reset(options={"reset_mask": done}))
    env.close()
    reference.close()
    assert ends > 10
    for (observation, *rest, info), (seen, *others, told) in zip(found, expected):
        np.testing.assert_array_equal(observation, seen)
        for a, b in zip(rest, others):
            np.testing.assert_array_equal(a, b)
        assert sorted(info) == sorted(told)
        for name in ("total", "odd"):
            mask = told[f"_{name}"]
            np.testing.assert_array_equal(info[f"_{name}"], mask)
            np.testing.assert_array_equal(info[name][mask], told[name][mask])
        if "final_obs" in told:
            mask = told["_final_obs"]
            np.testing.assert_array_equal(np.stack(info["final_obs"][mask]), np.stack(told["final_obs"][mask]))
            np.testing.assert_array_equal(info["final_info"]["total"][mask], told["final_info"]["total"][mask])


def test_worlds_are_closed_even_if_one_cannot_be_made():
    before = Counter.alive
    with pytest.raises(OffroadError, match="no engine"):
        ThreadedVectorEnv([Counter, lambda: Counter(fails=True), Counter], IMAGE, ACTIONS)
    assert Counter.alive == before
    env = ours(AutoresetMode.SAME_STEP)
    assert Counter.alive == before + 3
    env.close()
    env.close()
    assert Counter.alive == before


def test_misuse_has_clear_errors():
    env = ours(AutoresetMode.DISABLED)
    with pytest.raises(OffroadError, match="before reset"):
        env.step(np.zeros(3, int))
    env.reset(seed=0)
    with pytest.raises(OffroadError, match=r"one of Discrete\(3\)"):
        env.step(np.full(3, 3))
    with pytest.raises(OffroadError, match="2 seeds for 3 worlds"):
        env.reset(seed=[0, 1])
    with pytest.raises(OffroadError, match="expected booleans"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})
    env.close()
