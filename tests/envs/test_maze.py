"""The mazes: maps, ways, physics, rewards and states."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

import offroad
from offroad.envs.maze import AntMaze, PointMaze
from offroad.envs.maze.maps import LARGE, MAZES, MEDIUM, UMAZE, cell_at, centre
from offroad.envs.maze.scene import POINT_RADIUS
from offroad.errors import OffroadError

BODIES = {"point": PointMaze, "ant": AntMaze}


def one(kind=PointMaze, **kwargs):
    return kind(1, autoreset_mode="Disabled", num_threads=1, **kwargs)


def place(env, xy):
    """Puts the bodies somewhere, at rest."""
    env.qpos[:, :2] = xy
    env.qvel[:] = 0.0


# --- maps


@pytest.mark.parametrize(
    ("maze", "shape", "cells", "start", "goal"),
    [(UMAZE, (5, 5), 7, (1, 1), (3, 1)), (MEDIUM, (8, 8), 26, (1, 1), (6, 6)), (LARGE, (9, 12), 46, (1, 1), (7, 9))],
)
def test_the_maps_are_those_of_d4rl(maze, shape, cells, start, goal):
    assert maze.walls.shape == shape
    assert len(maze.free) == cells
    assert (maze.start, maze.goal) == (start, goal)
    border = maze.walls.copy()
    border[1:-1, 1:-1] = True
    assert border.all()


def test_the_walls_are_those_of_d4rl():
    # BIG_MAZE and HARDEST_MAZE of D4RL's maze_env.py, a binary number for each row.
    medium = [0xFF, 0b10011001, 0b10010001, 0b11000111, 0b10010001, 0b10100101, 0b10001001, 0xFF]
    large = [0xFFF, 0x841, 0xB55, 0x811, 0xBDD, 0x941, 0xD57, 0x911, 0xFFF]
    assert [int("".join(map(str, row)), 2) for row in MEDIUM.walls.astype(int)] == medium
    assert [int("".join(map(str, row)), 2) for row in LARGE.walls.astype(int)] == large


def test_cells_and_metres():
    assert centre(np.array([1, 1])).tolist() == [0, 0]
    assert centre(np.array([2, 4])).tolist() == [12, 4]
    for maze in MAZES.values():
        for corner in itertools.product([-1.99, 1.99], repeat=2):
            assert (cell_at(centre(maze.free) + corner) == maze.free).all()


@pytest.mark.parametrize("maze", MAZES.values())
def test_ways_are_the_shortest(maze):
    # Powers of the adjacency matrix count walks: the first one that reaches a cell is as long as the shortest way.
    cells = maze.free
    adjacent = (np.abs(cells[:, None] - cells[None]).sum(-1) == 1).astype(int)
    expected, reach = np.full((len(cells), len(cells)), -1), np.eye(len(cells), dtype=int)
    for steps in range(len(cells)):
        expected[(expected < 0) & (reach > 0)] = steps
        reach = np.minimum(reach @ adjacent, 1)
    assert (expected >= 0).all()  # connected
    a, b = (np.repeat(cells, len(cells), 0), np.tile(cells, (len(cells), 1)))
    assert (maze.distances[a[:, 0], a[:, 1], b[:, 0], b[:, 1]] == expected.ravel()).all()
    way, steps = a, 0
    while not (way == b).all():
        following = maze.next_cell(way, b)
        moving = (way != b).any(axis=1)
        assert (np.abs(following - way).sum(axis=1) == moving).all()
        assert not maze.walls[following[:, 0], following[:, 1]].any()
        assert (moving == (expected.ravel() > steps)).all()
        way, steps = following, steps + 1


# --- Gymnasium


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", ["PointMaze-umaze", "PointMaze-large", "AntMaze-umaze", "AntMaze-medium"])
def test_gymnasium_is_content(name):
    check_env(gym.make(f"offroad/{name}-v0").unwrapped, skip_render_check=True)
    env = offroad.make_vec(f"offroad/{name}-v0", 2)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.spec.max_episode_steps == 1000


@pytest.mark.parametrize("kind", BODIES.values())
def test_a_seed_gives_the_same_episodes_and_a_batch_is_its_worlds(kind):
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, len(one(kind).single_action_space.low)))
    batches = [kind(3, num_threads=k, max_episode_steps=15) for k in (1, 2)]
    single = gym.make(f"offroad/{kind.__name__}-medium-v0")
    first = [batch.reset(seed=4)[0] for batch in batches]
    assert np.array_equal(*first)
    assert np.array_equal(single.reset(seed=5)[0], first[0][1])
    for t, action in enumerate(actions):
        steps = [batch.step(action) for batch in batches]
        assert data_equivalence(*steps, exact=True)
        if t < 14:
            assert np.array_equal(single.step(action[1])[0], steps[0][0][1])


@pytest.mark.parametrize("kind", BODIES.values())
def test_a_saved_state_continues_to_the_bit(kind):
    a, b = (kind(2, maze="umaze", max_episode_steps=8) for _ in range(2))
    action = np.full(a.action_space.shape, 0.7)
    a.reset(seed=1, options={"goal_cell": (1, 3)})
    a.step(action)
    b.reset(seed=9)
    b.set_state(a.get_state())
    for _ in range(12):  # through an autoreset
        assert data_equivalence(a.step(action), b.step(action), exact=True)


@pytest.mark.parametrize("maze", MAZES.values())
def test_the_camera_sees_the_whole_maze_and_the_goal(maze):
    # Rendering itself needs OpenGL, which tests do without.
    model = AntMaze(1, maze=maze.name).models[0]
    assert np.allclose(model.site("goal").pos[:2], centre(np.array(maze.goal)))
    assert model.camera(0).name == "view"  # the one that frames are drawn through
    x, y, z = model.camera("view").pos
    corners = centre(np.array([(0, 0), maze.walls.shape]) - [[0, 0], [1, 1]]) + np.array([[-2, -2], [2, 2]])
    seen = (z - 2) * np.tan(np.radians(model.camera("view").fovy[0] / 2))  # at the top of the walls
    assert (np.abs(corners - [x, y]) < seen).all()


# --- starts, goals and rewards


@pytest.mark.parametrize("kind", BODIES.values())
def test_episodes_start_around_the_start_and_the_goal_stays(kind):
    env = kind(40, maze="large")
    starts = env.reset(seed=0)[0][:, :2]
    assert (np.abs(starts) <= 1.1).all()
    assert starts.std(axis=0).min() > 0.4
    assert (env.extras["goal"] == centre(np.array(LARGE.goal))).all()


def test_options_choose_cells_for_all_or_for_each():
    env = PointMaze(2, maze="medium")
    env.reset(seed=0, options={"start_cell": (6, 2), "goal_cell": [(1, 5), (6, 1)]})
    assert (cell_at(env.qpos) == [6, 2]).all()
    assert (cell_at(env.extras["goal"]) == [[1, 5], [6, 1]]).all()
    goals = env.extras["goal"].copy()
    env.reset(options={"reset_mask": np.array([True, False])})
    assert (env.extras["goal"][0] == centre(np.array(MEDIUM.goal))).all()
    assert (env.extras["goal"][1] == goals[1]).all()


@pytest.mark.parametrize("kind", BODIES.values())
def test_the_goal_pays_and_ends(kind):
    env = kind(3, maze="medium", autoreset_mode="Disabled")
    env.reset(seed=0)
    place(env, env.extras["goal"] + np.array([[0.0, 0.45], [0.4, 0.4], [-8.0, 0.0]]))
    _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
    assert reward.tolist() == [1, 0, 0]
    assert terminated.tolist() == [True, False, False]
    assert not truncated.any()
    assert (info["success"] == terminated).all()
    assert info["success"].dtype == bool


def test_time_ends_an_episode_without_success():
    env = one(maze="umaze", max_episode_steps=3)
    env.reset(seed=0)
    flags = [env.step(np.zeros((1, 2)))[2:4] for _ in range(3)]
    assert [(bool(a[0]), bool(b[0])) for a, b in flags] == [(False, False), (False, False), (False, True)]


# --- physics


@pytest.mark.parametrize("action", list(itertools.product([-1.0, 0.0, 1.0, 7.0], repeat=2)))
def test_a_point_goes_where_it_is_told_and_stays_within_walls(action):
    env = one(maze="medium")
    env.reset(seed=0)
    place(env, [0.0, 0.0])
    env.step(np.array([action]))
    assert np.allclose(env.qpos[0], 0.2 * np.clip(action, -1, 1), atol=1e-6)
    for _ in range(80):
        env.step(np.array([action]))
        edge = env.qpos[0] + np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * (POINT_RADIUS - 0.25)
        cells = cell_at(edge)
        assert not MEDIUM.walls[cells[:, 0], cells[:, 1]].any()


def test_an_ant_walks_through_no_wall():
    env = AntMaze(2, maze="umaze", num_threads=1)
    env.reset(seed=0)
    env.qpos[:, 0] = 0.0
    env.qvel[:, :2] = [[-30.0, 0.0], [0.0, 30.0]]  # m/s, towards walls
    inside = []
    for _ in range(30):
        env.step(np.zeros((2, 8)))
        cells = cell_at(env.qpos[:, :2])
        inside.append(not UMAZE.walls[cells[:, 0], cells[:, 1]].any())
    assert all(inside)


def test_the_ant_is_d4rls():
    env = AntMaze(1)
    model = env.models[0]
    assert env.single_observation_space.shape == (29,)
    assert env.single_action_space.shape == (8,)
    assert env.dt == pytest.approx(0.1)
    assert model.opt.timestep == 0.02
    assert model.opt.integrator == 1
    assert (model.actuator_gear[:, 0] == 30).all()
    assert np.allclose(model.jnt_range[1::2], np.radians([-30, 30]))
    observation = env.reset(seed=0)[0]
    assert np.array_equal(observation[0], np.concatenate((env.qpos[0], env.qvel[0])))


def test_a_fallen_ant_goes_on():
    env = one(AntMaze, maze="umaze")
    env.reset(seed=0)
    env.qpos[0, 2:7] = 0.4, 0.0, 1.0, 0.0, 0.0  # on its back
    assert not any(env.step(np.zeros((1, 8)))[2].any() for _ in range(20))


# --- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_cell": (0, 0)}, "no free cell"),
        ({"goal_cell": (3, 50)}, "no free cell"),
        ({"goal_cell": (-1, 1)}, "no free cell"),
        ({"start_cell": (1.0, 1.0)}, "whole numbers"),
        ({"start_cell": 3}, "whole numbers"),
        ({"goal": (1, 1)}, "did you mean 'goal_cell'"),
    ],
)
def test_unusable_options(options, words):
    with pytest.raises(OffroadError, match=words):
        one().reset(options=options)


def test_an_unknown_maze():
    with pytest.raises(OffroadError, match="medium"):
        PointMaze(1, maze="medum")
