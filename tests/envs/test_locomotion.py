"""The locomotion tasks against Gymnasium's own, step by step, and the swing-up against its definition."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offroad.envs import LOCOMOTION
from offroad.envs.locomotion import CartPoleSwingUp, make_single, make_vector
from offroad.errors import OffroadError

STANDARD = ["HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5"]


def put(env, task, world, reference):
    """Gives Gymnasium's environment the state of one of our worlds."""
    reference.set_state(env.qpos[world], env.qvel[world])
    reference.data.qacc_warmstart[:] = 0
    if task == "Ant-v5":  # Gymnasium measures speed from the torso's pose at the last stage of RK4, not from qpos
        reference.data.body(1).xpos[:2] = env.extras["torso"][world]


@pytest.mark.parametrize("task", STANDARD)
def test_every_step_equals_gymnasiums(task):
    env = make_vector(task, 8)
    reference = gym.make(task).unwrapped
    reference.reset(seed=0)
    env.reset(seed=0)
    random = np.random.default_rng(0)
    env.qpos[4:] += random.uniform(-0.4, 0.4, env.qpos[4:].shape)  # unusual poses as well: falling, upside down
    env.qvel[4:] += random.uniform(-4, 4, env.qvel[4:].shape)
    resetting = np.zeros(8, bool)
    contacts, terminations = set(), set()
    for _ in range(100):
        action = random.uniform(-1.2, 1.2, env.action_space.shape)
        expected = []
        for world in np.flatnonzero(~resetting):
            put(env, task, world, reference)
            expected.append((world, reference.step(action[world])))
            contacts.add(reference.data.ncon > 0)
        observation, reward, terminated, _, info = env.step(action)
        for world, (their_observation, their_reward, their_terminated, _, their_info) in expected:
            np.testing.assert_allclose(observation[world], their_observation, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(reward[world], their_reward, rtol=1e-10, atol=1e-10)
            assert terminated[world] == their_terminated
            ours = {name: info[name][world] for name in info if not name.startswith("_")}
            assert ours.keys() == their_info.keys()
            for name, value in their_info.items():
                np.testing.assert_allclose(ours[name], value, rtol=1e-10, atol=1e-10, err_msg=name)
        resetting = terminated
        terminations |= set(terminated.tolist())
    assert contacts == {True, False}
    assert terminations == ({False} if task == "HalfCheetah-v5" else {True, False})


@pytest.mark.parametrize("task", STANDARD)
def test_an_episode_equals_gymnasiums(task):
    ours, theirs = gym.make(f"offroad/{task}"), gym.make(task)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["render_fps"] == theirs.unwrapped.metadata["render_fps"]
    (observation, info), (expected, expected_info) = ours.reset(seed=11), theirs.reset(seed=11)
    assert np.array_equal(observation, expected)
    assert info == expected_info
    random = np.random.default_rng(1)
    for _ in range(60):  # the warm start of the contact solver differs, which chaos amplifies in time
        action = random.uniform(-1, 1, ours.action_space.shape)
        step, expected = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(step[0], expected[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(step[1], expected[1], rtol=1e-6, atol=1e-6)
        assert step[2:4] == expected[2:4]
        if step[2]:
            break


@pytest.mark.parametrize("task", LOCOMOTION)
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*:UserWarning")
def test_both_entry_points(task):
    single = gym.make(f"offroad/{task}")
    check_env(single.unwrapped, skip_render_check=True)
    batch = gym.make_vec(f"offroad/{task}", num_envs=2, vectorization_mode="vector_entry_point")
    assert batch.max_episode_steps == single.spec.max_episode_steps == LOCOMOTION[task]
    observation, _ = batch.reset(seed=4)
    assert np.array_equal(observation[1], single.reset(seed=5)[0])
    assert observation in batch.observation_space


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(OffroadError, match="did you mean 'Hopper-v5'"):
        make_single("Hoper-v5")


def test_swing_up_rewards_an_upright_pole_in_the_middle():
    env = CartPoleSwingUp(3)
    env.reset(seed=0)
    env.qpos[:] = [[0, 0], [0, np.pi], [0.5, 0]]
    env.qvel[:] = 0
    observation, reward, terminated, _, info = env.step(np.zeros((3, 1)))
    np.testing.assert_allclose(reward, [1, 0, 1 - 0.1 * 0.25], atol=1e-3)
    np.testing.assert_allclose(
        reward, info["reward_upright"] + info["reward_position"] + info["reward_ctrl"], rtol=1e-12
    )
    np.testing.assert_allclose(observation[:, 1], [1, -1, 1], atol=1e-3)
    assert not terminated.any()


def test_swing_up_can_be_solved_but_not_in_one_go():
    env = CartPoleSwingUp(4, max_episode_steps=500)
    pushed, _ = env.reset(seed=0)
    for _ in range(15):
        pushed, *_ = env.step(np.ones((4, 1)))
        assert (pushed[:, 1] < 0).all()

    observation, _ = env.reset(seed=1)
    total = 0.0
    for _ in range(500):  # pump energy into the pole, then balance it by linear feedback
        x, cosine, sine, speed, spin = observation.T
        lacking = 14.8 * (1 - cosine) - 0.32 * spin**2
        pump = -0.18 * spin * cosine * lacking - 1.51 * x - 0.07 * speed
        balance = 13.66 * np.arctan2(sine, cosine) + 3.11 * spin + 0.86 * x + 0.96 * speed
        action = np.clip(np.where(cosine > 0.8, balance, pump), -1, 1)
        observation, reward, *_ = env.step(action[:, None])
        total += reward
    assert (observation[:, 1] > 0.99).all()
    assert (total > 300).all()
