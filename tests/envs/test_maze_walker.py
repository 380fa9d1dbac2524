"""The ant's walker: the symmetry that its frame rests on."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offroad
from offroad.envs.maze.walker import AntDirection, egocentric, to_motors


def turned(qpos, qvel, angle, legs):
    """The same ant elsewhere, its world turned by `angle` and its legs renumbered by `legs` quarter turns."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    about = angle - legs * np.pi / 2  # the torso turns with the world, but its numbering of legs turns back
    w, x, y, z = qpos[:, 3:7].T
    a, b = np.cos(angle / 2), np.sin(angle / 2)
    world = np.stack((a * w - b * z, a * x - b * y, a * y + b * x, a * z + b * w), axis=1)
    a, b = np.cos(-legs * np.pi / 4), np.sin(-legs * np.pi / 4)
    w, x, y, z = world.T
    quaternion = np.stack((a * w - b * z, a * x + b * y, a * y - b * x, a * z + b * w), axis=1)
    signs = np.array([1, -1, -1, 1])

    def renumber(joints):
        joints = joints.reshape(-1, 4, 2) * np.stack((np.ones(4), signs), axis=1)
        return (np.roll(joints, legs, axis=1) * np.stack((np.ones(4), signs), axis=1)).reshape(-1, 8)

    c, s = np.cos(legs * np.pi / 2), np.sin(legs * np.pi / 2)
    spin = np.stack((c * qvel[:, 3] - s * qvel[:, 4], s * qvel[:, 3] + c * qvel[:, 4], qvel[:, 5]), axis=1)
    assert np.isfinite(about)
    return (
        np.concatenate((qpos[:, :2] @ turn.T + [3.0, -2.0], qpos[:, 2:3], quaternion, renumber(qpos[:, 7:])), axis=1),
        np.concatenate((qvel[:, :2] @ turn.T, qvel[:, 2:3], spin, renumber(qvel[:, 6:])), axis=1),
        turn,
    )


@pytest.mark.parametrize("legs", [0, 1, 2, 3])
def test_physics_has_the_symmetry_of_the_frame(legs):
    envs = [AntDirection(6, num_threads=1) for _ in range(2)]
    for env in envs:
        env.reset(seed=3)
    a, b = envs
    random = np.random.default_rng(0)
    for _ in range(5):
        a.step(random.uniform(-1, 1, (6, 8)))
    qpos, qvel, turn = turned(a.qpos, a.qvel, 0.7, legs)
    b.qpos[:], b.qvel[:] = qpos, qvel
    b.extras["direction"][:] = a.extras["direction"] @ turn.T
    assert np.allclose(a._observe(), b._observe())
    for _ in range(3):
        action = random.uniform(-1, 1, (6, 8))
        before = [a.qpos[:, :2].copy(), b.qpos[:, :2].copy()]
        first, second = a.step(action), b.step(action)
        assert np.allclose(first[0], second[0], atol=1e-4)
        assert np.allclose(first[1], second[1], atol=1e-4)
        assert np.allclose((a.qpos[:, :2] - before[0]) @ turn.T, b.qpos[:, :2] - before[1], atol=1e-5)


def test_the_first_leg_is_on_the_left_of_the_direction():
    qpos = np.tile(AntDirection(1).models[0].qpos0, (360, 1))
    angles = np.radians(np.arange(360) + 0.5)
    direction = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    features, turns = egocentric(qpos, np.zeros((360, 14)), direction)
    assert np.allclose(features[:, 0], 0.75)
    assert np.allclose(features[:, 1:4], [0, 0, 1])
    ahead = np.arctan2(features[:, 5], features[:, 4])
    assert (np.abs(ahead) <= np.pi / 4 + 1e-9).all()
    assert set(turns.tolist()) == {0, 1, 2, 3}


def test_motors_get_the_torques_of_their_legs():
    action = np.arange(1.0, 9.0)[None]  # hips 1 to 4, knees 5 to 8
    assert to_motors(action, np.array([0]))[0].tolist() == [4, 8, 1, 5, 2, -6, 3, -7]
    assert to_motors(action, np.array([1]))[0].tolist() == [3, 7, 4, 8, 1, -5, 2, -6]


@pytest.mark.filterwarnings("ignore:.*")
def test_gymnasium_is_content():
    check_env(gym.make("offroad/AntDirection-v0").unwrapped, skip_render_check=True)
    assert offroad.make_vec("offroad/AntDirection-v0", 2).spec.max_episode_steps == 500


def test_the_reward_is_the_speed_along_the_direction_which_changes():
    env = AntDirection(2, num_threads=1)
    env.reset(seed=0)
    directions = []
    for _ in range(201):
        before, direction = env.qpos[:, :2].copy(), env.extras["direction"].copy()
        directions.append(direction[0])
        reward = env.step(np.zeros((2, 8)))[1]
        assert np.allclose(reward, ((env.qpos[:, :2] - before) * direction).sum(1) / 0.1)
    assert len(np.unique(np.round(directions, 6), axis=0)) == 3
    assert np.allclose(directions[99], directions[0])
    assert not np.allclose(directions[100], directions[99])
    assert np.allclose(np.linalg.norm(directions, axis=1), 1)


def test_an_ant_on_its_back_ends_its_episode():
    env = AntDirection(2, num_threads=1)
    env.reset(seed=0)
    env.qpos[0, 2:7] = 0.6, 0.0, 1.0, 0.0, 0.0
    assert env.step(np.zeros((2, 8)))[2].tolist() == [True, False]
