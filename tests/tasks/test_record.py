"""Recording by any demonstrator in any environment, beside stepping the same episodes by hand."""

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import stack

from offroad.envs.stack.expert import Expert
from offroad.errors import OffroadError
from offroad.tasks.record import PATIENCE, record


class Lights(gym.Env):
    """Shows `[copy, episode, step]`, in a Dict if `parts`; each episode has its length, and is solved if the last
    action is 1."""

    action_space = spaces.Discrete(2)

    def __init__(self, copy, parts):
        box = spaces.Box(0, 99, (3,), np.float32)
        self.observation_space = spaces.Dict(where=box, step=spaces.Discrete(99)) if parts else box
        self.copy, self.parts, self.episode = copy, parts, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.length = 2 + (self.copy + self.episode) % 3
        return self.show(), {}

    def step(self, action):
        self.t += 1
        ends = self.t == self.length
        terminated = ends and self.copy % 2 == 0
        return self.show(), float(action) / self.t, terminated, ends and not terminated, {"solved": bool(action == 1)}

    def show(self):
        where = np.array([self.copy, self.episode, self.t], np.float32)
        return {"where": where, "step": self.t} if self.parts else where


def lights(copies=3, parts=False, mode=AutoresetMode.SAME_STEP):
    return SyncVectorEnv([lambda i=i: Lights(i, parts) for i in range(copies)], autoreset_mode=mode)


def where(observation):
    return observation["where"] if isinstance(observation, dict) else observation


def sometimes(observation):
    """Solves an episode or not, whatever its number and its copy: 1 in every second step."""
    return (where(observation).sum(-1) % 2 == 0).astype(np.int64)


def by_hand(copy, parts, episodes):
    """The successful ones of a copy's first episodes, as lists of steps."""
    env, found = Lights(copy, parts), []
    for _ in range(episodes):
        steps, (observation, _), done = [], env.reset(), False
        while not done:
            action = sometimes(observation)
            following, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            steps.append((observation, action, reward, following, terminated, truncated))
            observation = following
        if info["solved"]:
            found.append(steps)
    return found


@pytest.mark.parametrize("parts", [False, True])
def test_successful_episodes_are_kept_as_stepping_by_hand_gives_them(parts):
    shown, ended = record(lights(parts=parts), sometimes, 8, success="solved")
    data = shown.transitions
    numbers = where(data.observation)
    assert len(shown.lengths) == 8
    assert shown.states is None
    expected = {}
    for copy in range(3):
        for steps in by_hand(copy, parts, 20):
            expected[copy, int(where(steps[0][0])[1])] = steps
    seen, row = set(), 0
    for length in shown.lengths:
        name = int(numbers[row, 0]), int(numbers[row, 1])
        seen.add(name)
        steps = expected[name]  # an episode that failed is none of these
        assert length == len(steps)
        for step in steps:
            fields = "observation", "action", "reward", "next_observation", "terminated", "truncated"
            found = [jax.tree.map(lambda x: x[row], getattr(data, field)) for field in fields]  # noqa: B023
            jax.tree.map(np.testing.assert_allclose, found, list(step))
            row += 1
    assert len(seen) == 8
    assert row == len(numbers)
    latest = max(episode for _, episode in seen)
    assert any(name not in seen and name not in expected for name in np.ndindex(3, latest)), "some failed and were left"
    assert ended > 8


def test_recorded_states_restart_the_episode():
    env = stack(3, blocks=1, autoreset_mode=AutoresetMode.SAME_STEP)
    shown, ended = record(env, Expert().act, 2, seed=1)
    assert len(shown.lengths) == 2 <= ended
    assert env.compute_success(
        jax.tree.map(lambda x: x[shown.lengths.cumsum() - 1], shown.transitions.next_observation)
    ).all()
    assert shown.states is not None
    again, start = stack(1, blocks=1), 0
    for length, states in zip(shown.lengths, shown.states):
        for step in (0, length // 2):
            row = start + step
            observation, _ = again.reset(options={"state": jax.tree.map(lambda x: x[step], states)})  # noqa: B023
            following, reward, *_ = again.step(shown.transitions.action[row : row + 1])
            for name in observation:
                np.testing.assert_allclose(observation[name][0], shown.transitions.observation[name][row], atol=1e-5)
            found, wanted = following["objects"][0, :, :3], shown.transitions.next_observation["objects"][row, :, :3]
            np.testing.assert_allclose(found, wanted, atol=2e-3)
            assert reward[0] == shown.transitions.reward[row]
        start += length


def test_a_demonstrator_that_never_succeeds_is_an_error():
    with pytest.raises(OffroadError, match=f"failed in all of {PATIENCE}"):
        record(lights(50), lambda observation: np.zeros(50, np.int64), 1, success="solved")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_kinds_of_autoreset_are_an_error(mode):
    with pytest.raises(OffroadError, match=r"autoreset_mode=AutoresetMode\.SAME_STEP"):
        record(lights(mode=mode), sometimes, 1, success="solved")
