"""The ant's walker: the symmetry that its frame rests on."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offroad
from offroad.envs.maze import recipes
from offroad.envs.maze.walker import WEIGHTS, AntDirection, Walker, egocentric, to_motors


def turned(qpos, qvel, angle, legs):
    """The same ant elsewhere, its world turned by `angle` and its legs renumbered by `legs` quarter turns."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    w, x, y, z = qpos[:, 3:7].T
    a, b = np.cos(angle / 2), np.sin(angle / 2)  # a turn of the world, from the left
    w, x, y, z = a * w - b * z, a * x - b * y, a * y + b * x, a * z + b * w
    a, b = np.cos(legs * np.pi / 4), -np.sin(legs * np.pi / 4)  # a turn back of the torso, from the right
    quaternion = np.stack((a * w - b * z, a * x + b * y, a * y - b * x, a * z + b * w), axis=1)
    signs = np.array([[1, 1], [1, -1], [1, -1], [1, 1]])  # of hips and ankles

    def renumber(joints):
        return (np.roll(joints.reshape(-1, 4, 2) * signs, legs, axis=1) * signs).reshape(-1, 8)

    c, s = np.cos(legs * np.pi / 2), np.sin(legs * np.pi / 2)
    spin = np.stack((c * qvel[:, 3] - s * qvel[:, 4], s * qvel[:, 3] + c * qvel[:, 4], qvel[:, 5]), axis=1)
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


# --- the trained walker


@pytest.mark.parametrize("maze", ["medium", "large"])
def test_the_walker_leads_ants_through_mazes(maze):
    name = f"antmaze-{maze}"  # from evaluation's start to its goal
    made = recipes.make(name, 4 * 700, num_threads=1)
    assert made.provenance["journeys"] >= 3
    assert made.provenance["arrivals"] >= 3


def test_the_walker_turns_with_the_world():
    env, walker = AntDirection(16, num_threads=1), Walker()
    env.reset(seed=0)
    env.step(np.random.default_rng(0).uniform(-1, 1, (16, 8)))
    places = env.qpos[:, :2] + [3.0, 4.0]
    actions = walker(np.hstack((env.qpos, env.qvel)), places)
    assert np.abs(actions).max() <= 1
    qpos, qvel, turn = turned(env.qpos, env.qvel, 1.1, legs=0)
    again = walker(np.hstack((qpos, qvel)), qpos[:, :2] + (places - env.qpos[:, :2]) @ turn.T)
    assert np.allclose(actions, again, atol=1e-3)


def test_an_ant_does_the_same_to_the_bit_whoever_walks_beside_it():
    """Products that BLAS spreads over threads differ in the last digits with the number of ants, or of threads."""
    observations = np.random.default_rng(0).standard_normal((64, 29))
    places, walker = np.full((64, 2), 3.0), Walker()
    together = walker(observations, places)
    for row in range(0, 64, 8):
        assert np.array_equal(together[row : row + 8], walker(observations[row : row + 8], places[row : row + 8]))


def test_the_weights_are_small_and_plain_arrays():
    assert WEIGHTS.stat().st_size < 2**20
    with np.load(WEIGHTS, allow_pickle=False) as file:
        assert all(np.isfinite(file[name]).all() for name in file.files)
