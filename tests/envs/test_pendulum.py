"""The pendulum's data set: Gymnasium's pendulum, whole episodes, the same for a seed."""

import gymnasium as gym
import numpy as np
import pytest

from offroad.data.readers import load
from offroad.data.spaces import Spaces
from offroad.envs import pendulum, recipes
from offroad.errors import OffroadError
from offroad.studies.offline.domains import DOMAINS


def test_rows_are_steps_of_gymnasiums_pendulum(tmp_path):
    told = []
    made = recipes.make("pendulum-mixed", 450, seed=3, progress=told.append)
    made.save(tmp_path / "set.npz")
    dataset = load(tmp_path / "set.npz")
    env = gym.make("Pendulum-v1", max_episode_steps=500)
    dataset.check(Spaces(env.observation_space, env.action_space))
    assert told == [450]
    assert dataset.notes == ()
    assert dataset.lengths.tolist() == [200, 200, 50]
    for episode in dataset.episodes():
        env.reset()
        rows = zip(episode.observation, episode.action, episode.reward, episode.next_observation, strict=True)
        for (cosine, sine, velocity), action, reward, after in rows:
            env.unwrapped.state = np.array([np.arctan2(sine, cosine), velocity])  # pyright: ignore[reportAttributeAccessIssue]
            observation, real, *_ = env.step(action)
            np.testing.assert_allclose(observation, after, atol=1e-4)
            assert reward == pytest.approx(real, abs=1e-4)
    env.close()


def test_other_seeds_are_other_episodes():
    one, same, other = (recipes.make("pendulum-mixed", 100, seed=seed).columns for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["observations"], other["observations"])


def test_the_scale_of_the_scores_is_from_random_torques_to_the_controller_without_noise():
    random = np.random.default_rng(0)

    def episodes(act):
        env = gym.make_vec("Pendulum-v1", 50, vectorization_mode="sync", max_episode_steps=None)
        observation, _ = env.reset(seed=0)
        returns = np.zeros(50)
        for _ in range(200):
            observation, reward, *_ = env.step(np.float32(act(observation)))
            returns += reward
        env.close()
        return observation, returns.mean()

    end, controlled = episodes(pendulum.swing_up)
    assert (end[:, 0] > 0.99).mean() >= 0.9
    assert controlled == pytest.approx(DOMAINS["pendulum"].best, abs=1)
    _, aimless = episodes(lambda observation: random.uniform(-2, 2, (50, 1)))
    assert aimless == pytest.approx(DOMAINS["pendulum"].worst, abs=100)


def test_no_rows():
    with pytest.raises(OffroadError, match="expected at least 1"):
        recipes.make("pendulum-mixed", 0)
