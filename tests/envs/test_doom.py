"""The Doom maze: its map files, its geometry, and that an engine does with them what is said."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import offroad
from offroad.envs.doom import GROUPS, SETS, Coverage, textures, wad
from offroad.errors import OffroadError

vizdoom = pytest.importorskip("vizdoom")

from offroad.envs.doom import maze  # noqa: E402

PATH_TO_VEST = (11, 16, 17, 18, 22, 23, 24, 25, 26)  # spots on the way from spot 10


@pytest.fixture(scope="module")
def lumps():
    return maze._shipped()


@pytest.fixture(scope="module")
def level():
    return maze._level(False)


def make(num_envs=1, **options):
    return offroad.make_vec("offroad/DoomMaze-v0", num_envs, **options)


# Files.


def test_lumps_survive_writing(lumps):
    assert wad.read(wad.write(lumps)) == lumps
    with pytest.raises(OffroadError, match="no WAD file"):
        wad.read(b"PK\x03\x04 something else")


def test_mirroring_twice_changes_nothing(lumps):
    text = dict(lumps)["TEXTMAP"].decode()
    once, twice = wad.mirrored(text), wad.mirrored(wad.mirrored(text))
    assert once != text
    # All fields, but for the sign of a zero.
    unsigned = [{k: v.replace("-0.000", "0.000") if v == "-0.000" else v for k, v in b.items()} for b in flat(twice)]
    assert unsigned == flat(text)


def flat(text):
    return [fields for kind in wad.blocks(text).values() for fields in kind]


def test_only_the_start_changes_in_the_script(lumps):
    before = dict(lumps)["BEHAVIOR"]
    after = wad.with_start(before, 15)
    assert len(after) == len(before)
    assert 0 < sum(a != b for a, b in zip(before, after)) <= 3
    with pytest.raises(OffroadError, match="my_way_home"):
        wad.with_start(b"ACS\0 another script", 15)


def test_texture_sets_are_still_disjoint_and_exist():
    folder = Path(vizdoom.__file__).parent
    freedoom = wad.read((folder / "freedoom2.wad").read_bytes())
    names = [name for name, _ in freedoom]
    flats = set(names[names.index("F_START") : names.index("F_END")])
    table = dict(freedoom)["TEXTURE1"]
    offsets = np.frombuffer(table, "<i4", int.from_bytes(table[:4], "little"), 4)
    walls = {table[at : at + 8].split(b"\0")[0].decode() for at in offsets}
    used = {kind: set() for kind in GROUPS}
    for kind, sets in GROUPS.items():
        for name in sets:
            middle, flat = (part.split() for part in SETS[name].split(" / "))
            assert set(middle) <= walls
            assert set(flat) <= flats
            assert not used[kind] & {*middle, *flat}
            used[kind] |= {*middle, *flat}
    families = [{name.rstrip("0123456789") for name in names} for names in used.values()]
    assert not families[0] & families[1]
    assert textures.chosen(("train", "train-3", "original")) == (*GROUPS["train"], "original")
    assert textures.digest("train") != textures.digest("held-out")


# Geometry.


def test_sectors_and_cells(level):
    spots = np.array(list(level.spots.values()))
    assert len(spots) == 17
    assert level.num_sectors == 18
    assert len(level.walls) == 76
    assert (level.sector(spots) >= 0).all()
    assert level.sector(np.array([[0.0, 0.0], [2000.0, -100.0]])).tolist() == [-1, -1]
    assert len(set(level.sector(np.array([level.goal, [1039.0, -350.0]])))) == 1
    # Cells are numbered from the south-west corner.
    corner = level.low + np.array([[1.0, 1.0], [65.0, 1.0], [1.0, 65.0]])
    assert level.cell(corner).tolist() == [0, 1, level.shape[1]]


def test_mirrored_level_has_the_same_sectors(level):
    random = np.random.default_rng(0)
    left, right, bottom, top = level.extent
    position = random.uniform([left, bottom], [right, top], (200, 2))
    other = maze._level(True)
    np.testing.assert_array_equal(other.sector(position * [1, -1]), level.sector(position))
    assert {spot: (x, -y) for spot, (x, y) in level.spots.items()} == other.spots


def test_coverage_counts_cells_on_the_way(level):
    coverage = Coverage(level, 2)
    start, both = np.array([[200.0, -176.0], [200.0, -176.0]]), np.ones(2, bool)
    coverage.begin(both, start)
    assert coverage.metrics() == {}
    # 100 units to the east from x = 200: cells [192, 256) and [256, 320). The other stays where it is.
    assert coverage.move(both, start + np.array([[100.0, 0.0], [0.0, 0.0]])).tolist() == [1, 0]
    assert coverage.move(both, start).tolist() == [0, 0]
    only = np.array([True, False])
    assert coverage.move(only, start + 60.0).tolist() == [
        2,
        0,
    ]  # north-east: [256, 320) x [-128, -64) and its neighbour
    coverage.begin(only, start)
    assert coverage.episodes == [(4, 1)]
    assert coverage.metrics()["coverage/cells_together"] == 4
    assert coverage.cells.sum(1).tolist() == [1, 1]
    assert coverage.occupancy.sum() == pytest.approx(2 + 2 + 2 + 1 + 1)


# The engine.


@pytest.fixture(scope="module")
def dense():
    env = make(2, start="dense", textures=("train", "held-out"), noise=0.4, angle=123.4)
    yield env
    env.close()


def test_starts_are_where_they_should_be(dense, level):
    seen = set()
    for seed in range(12):
        _, info = dense.reset(seed=seed)
        for x, y, angle in zip(info["x"], info["y"], info["angle"]):
            distance = {spot: np.hypot(x - sx, y - sy) for spot, (sx, sy) in level.spots.items()}
            seen.add(min(distance, key=distance.get))
            assert min(distance.values()) < 0.01
            assert angle == pytest.approx(123.4, abs=0.01)
    assert len(seen) > 5


def test_noise_covers_its_share_and_the_rest_stands_still(dense):
    observation, _ = dense.reset(seed=3)
    assert not observation[..., :3].any()
    frames = [observation[..., -1]]
    for _ in range(4):
        observation, *_ = dense.step(np.zeros(2, int))
        frames.append(observation[..., -1])
    changes = np.array([now != before for now, before in zip(frames[1:], frames)])  # [4, N, 42, 42]
    # White noise repeats a value once in 256 times. No texture is animated.
    assert changes[..., 25:].mean() == pytest.approx(255 / 256, abs=0.01)
    assert not changes[..., :25].any()


def test_no_texture_set_is_animated():
    env = make(1, textures=("original", *SETS), timeout=40)
    try:
        looks = set()
        for seed in range(30):
            env.reset(seed=seed)
            frames = [env.step([0])[0][0, ..., -1] for _ in range(8)]
            assert all((frame == frames[0]).all() for frame in frames)
            looks.add(frames[0].tobytes())
        assert len(looks) == 30
    finally:
        env.close()


def episode(env, seed, actions):
    observation, info = env.reset(seed=seed)
    found = [observation]
    for action in actions:
        observation, _, _, _, info = env.step(action)
        found.append(observation)
    return np.stack(found), np.stack([info["x"], info["y"], info["angle"]], -1)


def test_same_seed_same_episode_whoever_plays_it():
    options = {"actions": "macro", "textures": "train", "noise": 0.2, "start": "dense"}
    actions = np.random.default_rng(0).integers(0, 5, (30, 3))
    three, one = make(3, **options, num_threads=3), make(1, **options)
    try:
        seen, place = episode(three, 5, actions)
        again, _ = episode(three, 5, actions)
        other, _ = episode(three, 99, actions)
        alone, placed = episode(one, 6, actions[:, 1:2])
    finally:
        three.close()
        one.close()
    np.testing.assert_array_equal(seen, again)
    np.testing.assert_array_equal(seen[:, 1:2], alone)
    np.testing.assert_array_equal(place[1], placed[0])
    assert (seen != other).mean() > 0.1


def test_mirrored_map_turns_left_into_right():
    actions = np.random.default_rng(1).integers(0, 5, 40)
    swapped = np.array([0, 2, 1, 4, 3])[actions]
    plain, mirror = make(1, actions="macro", angle=40), make(1, actions="macro", angle=-40, mirror=True)
    try:
        seen, place = episode(plain, 0, actions[:, None])
        seen_other, placed = episode(mirror, 0, swapped[:, None])
    finally:
        plain.close()
        mirror.close()
    assert abs(placed[0, 0] - 240) > 50  # went somewhere
    np.testing.assert_allclose(placed[0] * [1, -1, 1], place[0] * [1, 1, -1] + [0, 0, 360], atol=0.5)
    # Textures keep their direction, so the pictures are only alike.
    assert np.corrcoef(seen[5:, ..., ::-1, :].ravel(), seen_other[5:].ravel())[0, 1] > 0.5


def test_walking_to_the_vest_pays_one_and_ends(level):
    env = make(1, angle=0, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        _, info = env.reset(seed=0)
        ways = [np.array(level.spots[spot]) for spot in PATH_TO_VEST] + [level.goal]
        rewards, terminated, steps = [], np.zeros(1, bool), 0
        while not terminated[0] and steps < 300:
            place = np.array([info["x"][0], info["y"][0]])
            while len(ways) > 1 and np.hypot(*(ways[0] - place)) < 40:
                ways.pop(0)
            ahead = np.degrees(np.arctan2(*(ways[0] - place)[::-1]))
            off = (ahead - info["angle"][0] + 180) % 360 - 180
            _, reward, terminated, truncated, info = env.step([1 if abs(off) < 15 else 2 if off > 0 else 3])
            rewards.append(reward[0])
            steps += 1
        assert terminated[0]
        assert not truncated[0]
        assert sum(rewards) == rewards[-1] == 1
        assert np.hypot(*(np.array([info["final_info"]["x"][0], info["final_info"]["y"][0]]) - level.goal)) < 64
        assert info["tics"][0] == 0
        assert env.metrics()["coverage/sectors"] >= 8
    finally:
        env.close()


def test_time_limit_modes_and_cells():
    actions = np.random.default_rng(2).integers(0, 5, (14, 2))
    actions[:, 0] = 0
    options = {"actions": "macro", "timeout": 44, "reward": "cells"}
    runs = {}
    for mode in AutoresetMode:
        env = make(2, autoreset_mode=mode, **options)
        try:
            observation, info = env.reset(seed=1)
            rows = []
            for action in actions:
                observation, reward, terminated, truncated, info = env.step(action)
                done = terminated | truncated
                resetting = "_tics" in info and (info["tics"] == 0)[0] and mode is AutoresetMode.NEXT_STEP
                last = np.stack(info["final_obs"]) if done[0] and "final_obs" in info else observation
                tics = info.get("final_info", info)["tics"]
                if not resetting:
                    rows.append((last, reward, truncated, tics, env.unwrapped.coverage.cells.sum(1)))
                if done.any() and mode is AutoresetMode.DISABLED:
                    with pytest.raises(OffroadError, match="autoreset is disabled"):
                        env.step(action)
                    observation, info = env.reset(options={"reset_mask": done})
            runs[mode] = rows
        finally:
            env.close()
    same, disabled = runs[AutoresetMode.SAME_STEP], runs[AutoresetMode.DISABLED]
    assert [row[3][0] for row in same[:6]] == [8, 16, 24, 32, 40, 44]
    assert [bool(row[2][0]) for row in same[:6]] == [False] * 5 + [True]
    for a, b in zip(same, disabled):
        for x, y in zip(a[:4], b[:4]):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(same[:6], runs[AutoresetMode.NEXT_STEP][:6]):
        np.testing.assert_array_equal(a[0], b[0])
    # What the cells paid is what coverage counted, but for the cell of the start.
    np.testing.assert_array_equal(sum(row[1] for row in disabled[:6]), disabled[5][4] - 1)
    assert sum(row[1] for row in disabled).max() > 0


def test_single_environment_passes_gymnasiums_checks():
    env = gym.make("offroad/DoomMaze-v0", render_mode="rgb_array", start=26)
    try:
        check_env(env.unwrapped, skip_render_check=True)
        env.reset(seed=0)
        assert env.render().shape == (120, 160, 3)
    finally:
        env.close()


def engines():
    """Engines that this process has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    return sum("vizdoom" in Path(f"/proc/{child}/cmdline").read_text() for child in children)


def test_no_engine_survives(monkeypatch):
    before = engines()
    env = make(2)
    folder = env.unwrapped._folder
    assert engines() == before + 2
    env.close()
    assert engines() == before
    assert not folder.exists()
    ready = maze.DoomWorld.reset

    def failing(self, random, options):
        self.game.close()  # as if the engine had died
        return ready(self, random, options)

    env = make(1)
    monkeypatch.setattr(maze.DoomWorld, "reset", failing)
    with pytest.raises(OffroadError, match="make the environment again"):
        env.reset()
    env.close()
    assert engines() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"textures": "train-9"}, "unknown texture set 'train-9'; did you mean 'train-"),
        ({"textures": ()}, "no textures are given; known sets: original"),
        ({"start": "sparce"}, "unknown start 'sparce'; did you mean 'sparse'"),
        ({"start": 9}, "unknown start '9'"),
        ({"actions": "makro"}, "did you mean 'macro'"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"timeout": 0}, "timeout is 0; expected at least 1 tic"),
        ({"reward": "cell"}, "did you mean 'cells'"),
        ({"num_envs": 0}, "at least 1"),
    ],
)
def test_bad_options_have_clear_errors(options, message):
    with pytest.raises(OffroadError, match=message):
        maze.make_vector(**options)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    maze._shipped.cache_clear()
    with pytest.raises(OffroadError, match=r"pip install 'offroad\[doom\]'"):
        maze.make_vector()
