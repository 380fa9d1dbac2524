"""Every format there and back, foreign files as their makers lay them out, and files that are broken."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.data import files
from offroad.data.dataset import Dataset
from offroad.data.readers import load
from offroad.data.spaces import Spaces
from offroad.data.writers import save, save_minari
from offroad.errors import OffroadError

SPACES = Spaces(
    gym_spaces.Dict(goal=gym_spaces.Box(-9, 9, (2,)), robot=gym_spaces.Box(-9, 9, (3,))), gym_spaces.Box(-1, 1, (2,))
)


def some(seed=0, **changes):
    """Three episodes of 4, 1 and 3 steps with dict observations, all numbers random."""
    random = np.random.default_rng(seed)

    def observations(n):
        return {"goal": random.normal(size=(n, 2)), "robot": random.normal(size=(n, 3)).astype(np.float32)}

    columns = {
        "observations": observations(8),
        "actions": random.uniform(-1, 1, (8, 2)),
        "rewards": random.normal(size=8),
        "terminated": np.isin(np.arange(8), [3]),
        "truncated": np.isin(np.arange(8), [4, 7]),
        "final_observations": observations(3),
        "propensities": random.uniform(0.1, 1, 8),
        "info": {"user": np.arange(8)},
    }
    return Dataset(**{**columns, **changes})


def discrete():
    return some(actions=np.array([0, 2, 1, 1, 0, 2, 2, 0]), observations=np.eye(8, 3), final_observations=None)


def assert_same(a, b):
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        assert array.dtype == b.arrays()[name].dtype, name
        np.testing.assert_array_equal(array, b.arrays()[name], err_msg=name)


@pytest.mark.parametrize("suffix", ["", ".npz", ".hdf5", ".h5", ".csv", ".parquet"])
@pytest.mark.parametrize("make", [some, discrete])
def test_there_and_back(suffix, make, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"data{suffix}"
    save(make(), path)
    found = load(path)
    assert_same(found, make())
    assert not found.notes


def plain(path, data):
    """An archive or an HDF5 file without compression, as others write them; one array the other way round."""
    if path.suffix == ".npz":
        np.savez(path, **{k: np.asfortranarray(x) for k, x in data.arrays().items()})
        return
    with h5py.File(path, "w") as file:
        for name, array in data.arrays().items():
            file[name] = array


def is_mapped(array):
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


@pytest.mark.parametrize(("suffix", "write"), [("", lambda path, x: save(x, path)), (".npz", plain), (".hdf5", plain)])
def test_large_arrays_that_are_not_compressed_are_mapped_and_equal(suffix, write, tmp_path, monkeypatch):
    path = tmp_path / f"data{suffix}"
    write(path, some())
    assert not is_mapped(load(path).observations["robot"])
    monkeypatch.setattr(files, "MAP_ABOVE", 0)
    mapped = load(path)
    assert is_mapped(mapped.observations["robot"])
    assert_same(mapped, some())
    ours, theirs = (x.sample(np.random.default_rng(1), 50) for x in (some(), mapped))
    np.testing.assert_array_equal(ours.next_observation["goal"], theirs.next_observation["goal"])


def test_what_cannot_be_mapped_is_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAP_ABOVE", 0)
    for name in ("data.npz", "data.hdf5"):
        save(some(), tmp_path / name)  # compressed
        assert_same(load(tmp_path / name), some())
    np.savez(tmp_path / "objects.npz", observations=np.array([{}, None]), actions=np.ones(2), rewards=np.ones(2))
    with pytest.raises(OffroadError, match="Object arrays cannot be loaded"):
        load(tmp_path / "objects.npz")


def test_a_folder_is_not_overwritten(tmp_path):
    save(some(), tmp_path / "data")
    with pytest.raises(OffroadError, match="exists already"):
        save(some(), tmp_path / "data")


def test_minari_there_and_back(tmp_path, monkeypatch):
    data = some(propensities=None, info={})
    save_minari(data, tmp_path / "room" / "test-v0", SPACES)
    assert_same(load(tmp_path / "room" / "test-v0"), data)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert_same(load("room/test-v0"), data)
    with pytest.raises(OffroadError, match="Minari stores final observations"):
        save_minari(replace(data, final_observations=None), tmp_path / "x", SPACES)
    with h5py.File(tmp_path / "room" / "test-v0" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2"]
    with pytest.raises(OffroadError, match=r"holds 2 episodes, its metadata\.json tells of 3"):
        load("room/test-v0")
    with pytest.raises(OffroadError, match="leave out columns and ends"):
        load("room/test-v0", rewards="clicks")
    (tmp_path / "room" / "test-v0" / "data" / "metadata.json").write_text("[]")
    with pytest.raises(OffroadError, match="cannot be read"):
        load("room/test-v0")


def test_a_minari_set_without_steps(tmp_path):
    columns = {"observations": np.ones((1, 2)), "actions": np.ones((0, 1)), "rewards": np.ones(0)}
    flags = {"terminations": np.zeros(0, bool), "truncations": np.zeros(0, bool)}
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        for name, array in {**columns, **flags}.items():
            file[f"episode_0/{name}"] = array
    (tmp_path / "metadata.json").write_text(json.dumps({"total_episodes": 1}))
    with pytest.raises(OffroadError, match="is empty"):
        load(tmp_path)


def test_minari_flags_inside_an_episode_and_infos_in_groups(tmp_path):
    """A terminal row amid an episode ends it: what came next is its final observation."""
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        columns = {
            "observations": np.arange(4.0)[:, None],
            "actions": np.zeros(3, int),
            "rewards": np.arange(3.0),
            "terminations": np.array([False, True, False]),
            "truncations": np.zeros(3, bool),
            "infos/qpos": np.arange(4),
        }
        for name, array in columns.items():
            group.create_dataset(name, data=array)
    (tmp_path / "metadata.json").write_text(json.dumps({"total_episodes": 1, "data_format": "hdf5"}))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.lengths, [2, 1])
    np.testing.assert_array_equal(data.final_observations[:, 0], [2, 3])
    np.testing.assert_array_equal(data.observations[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(data.truncated, [False, False, True])
    np.testing.assert_array_equal(data.info["qpos"], [0, 1, 2])


def d4rl(path, **more):
    """A file as D4RL's: eight rows, a terminal at 3, a timeout at 5, and the recording stops inside an episode."""
    columns = {
        "observations": np.arange(16, dtype=np.float32).reshape(8, 2),
        "actions": np.zeros((8, 1), np.float32),
        "rewards": np.arange(8, dtype=np.float32),
        "terminals": np.isin(np.arange(8), [3]),
        "timeouts": np.isin(np.arange(8), [5]),
        "infos/qpos": np.arange(8.0),
        "metadata/algorithm": np.bytes_("SAC"),
        **more,
    }
    with h5py.File(path, "w") as file:
        for name, array in columns.items():
            if array is not None:
                file.create_dataset(name, data=array)
    return path


def test_a_file_of_d4rl(tmp_path):
    data = load(d4rl(tmp_path / "a.hdf5"))
    np.testing.assert_array_equal(data.lengths, [4, 2, 2])
    np.testing.assert_array_equal(data.terminated[data.ends], [True, False, False])
    np.testing.assert_array_equal(data.rows, [0, 1, 2, 3, 4, 6])
    assert list(data.info) == ["qpos"]
    assert data.notes == ("1 row is taken as truncated: the recording stops there",)
    assert not load(tmp_path / "a.hdf5", info=None).info


def test_next_observations_tell_what_came_last_and_where_an_end_is_missing(tmp_path):
    after = np.arange(16, dtype=np.float32).reshape(8, 2) + 2
    after[[1, 3, 5]] = 50, 51
    data = load(d4rl(tmp_path / "a.hdf5", next_observations=after, timeouts=None))
    np.testing.assert_array_equal(data.ends, [1, 3, 5, 7])
    np.testing.assert_array_equal(data.terminated[data.ends], [False, True, False, False])
    np.testing.assert_array_equal(data.final_observations, after[[1, 3, 5, 7]])
    np.testing.assert_array_equal(data.transitions(np.arange(8)).next_observation, after)
    assert any("2 rows are taken as truncated: the next row is not what came next" in note for note in data.notes)


def test_terminals_that_were_time_limits_are_read_as_such(tmp_path):
    data = load(d4rl(tmp_path / "a.hdf5", timeouts=None), terminated=None, truncated="terminals")
    assert not data.terminated.any()
    np.testing.assert_array_equal(data.ends, [3, 7])


LOG = "who,age,country,item,click,p\nann,20,1,3,0,0.5\nann,20.5,2,1,1,0.25\nbob,31,1,2,,0.25\n"


def test_a_log_with_names_of_its_own(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    columns = {"observations": ("age", "country"), "actions": "item", "rewards": "click", "propensities": "p"}
    data = load(tmp_path / "log.csv", ends="terminated", episode="who", **columns, info=("country",))
    np.testing.assert_array_equal(data.observations, [[20, 1], [20.5, 2], [31, 1]])
    np.testing.assert_array_equal(data.actions, [3, 1, 2])
    assert data.actions.dtype.kind == "i"
    np.testing.assert_array_equal(data.rewards, [0, 1, np.nan])
    np.testing.assert_array_equal(data.terminated, [False, True, True])
    np.testing.assert_array_equal(data.propensities, [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(data.info["country"], [1, 2, 1])
    with pytest.raises(OffroadError, match="tells where episodes end but not how"):
        load(tmp_path / "log.csv", episode="who", **columns)
    with pytest.raises(OffroadError, match="does not tell where episodes end"):
        load(tmp_path / "log.csv", **columns)
    with pytest.raises(OffroadError, match="unknown column 'clik'; did you mean 'click'"):
        load(tmp_path / "log.csv", **{**columns, "rewards": "clik"})
    with pytest.raises(OffroadError, match=r"'observations' of .* is of type .*expected numbers"):
        load(tmp_path / "log.csv", ends="terminated", **{**columns, "observations": ("who", "age")})


def test_lengths_split_demonstrations(tmp_path):
    np.savez(tmp_path / "a.npz", obs=np.zeros((5, 2)), action=np.zeros(5, int), reward=np.ones((5, 1)), length=[2, 3])
    data = load(tmp_path / "a.npz", ends="truncated")
    np.testing.assert_array_equal(data.ends, [1, 4])
    np.savez(tmp_path / "b.npz", obs=np.zeros((5, 2)), action=np.zeros(5, int), reward=np.ones(5), length=[2, 2])
    with pytest.raises(OffroadError, match="add up to 4 steps, but there are 5 rewards"):
        load(tmp_path / "b.npz", ends="truncated")
    whole = {"obs": np.zeros((5, 2)), "action": np.zeros(5, int), "reward": np.ones(5)}
    np.savez(tmp_path / "c.npz", **whole, length=[2.0, 3.0])
    np.testing.assert_array_equal(load(tmp_path / "c.npz", ends="truncated").ends, [1, 4])
    np.savez(tmp_path / "d.npz", **whole, length=[2.5, 2.5])
    with pytest.raises(OffroadError, match="expected whole numbers of steps"):
        load(tmp_path / "d.npz", ends="truncated")


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".csv", ".parquet", ".npy"])
def test_files_that_were_cut_short(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / ("data" if suffix == ".npy" else f"data{suffix}")
    save(some(), path)
    file = path / "observations" / "robot.npy" if suffix == ".npy" else path
    whole = file.read_bytes()
    for share in (0, 0.3, 0.9):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(OffroadError, match=r"cut short|is empty"):
            load(path)


@pytest.mark.parametrize("wrong", [2.0, np.nan])
def test_flags_that_are_no_flags(wrong, tmp_path):
    two, none = np.zeros((3, 2)), np.zeros(3)
    ends = np.array([0.0, wrong, 1.0])
    np.savez(tmp_path / "a.npz", observations=two, actions=two, rewards=none, terminated=ends, truncated=none)
    with pytest.raises(OffroadError, match=f"'terminated' contains {wrong}; expected flags"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("obs_1,obs_0,action,reward,done", None),
        ("obs_0,obs_2,action,reward,done", "of the columns obs_0, obs_2 there is no obs_1"),
        ("obs_0,obs_0,action,reward,done", "names 'obs_0' twice"),
    ],
)
def test_no_numbered_column_is_lost(header, message, tmp_path):
    (tmp_path / "a.csv").write_text(f"{header}\n1.5,2.5,0,0,0\n3.5,4.5,1,1,1\n")
    if message is None:
        np.testing.assert_array_equal(load(tmp_path / "a.csv").observations, [[2.5, 1.5], [4.5, 3.5]])
        return
    with pytest.raises(OffroadError, match=message):
        load(tmp_path / "a.csv")


def test_numpy_headers_that_never_end(tmp_path):
    save(some(), tmp_path / "data")
    file = tmp_path / "data" / "rewards.npy"
    file.write_bytes(file.read_bytes().replace(b"}", b" ", 1))
    with pytest.raises(OffroadError, match="cannot be read"):
        load(tmp_path / "data")


def test_files_that_ask_for_more_memory_than_there_is(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("observations", shape=(10**13, 3), dtype="f4", chunks=(1000, 3))
    with pytest.raises(OffroadError, match="does not fit into memory"):
        load(tmp_path / "a.hdf5")


def test_a_quote_that_nobody_closes(tmp_path):
    head = "observation_0,action_0,reward,terminated\n"
    (tmp_path / "a.csv").write_text(head + '0,"' + 200_000 * "0" + ",0,1\n")
    with pytest.raises(OffroadError, match="cannot be read"):
        load(tmp_path / "a.csv")


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(OffroadError, match="does not exist"):
        load(tmp_path / "none.npz")
    (tmp_path / "a.pkl").touch()
    with pytest.raises(OffroadError, match=r"the suffix '\.pkl'; expected one of \.npz"):
        load(tmp_path / "a.pkl")
    with pytest.raises(OffroadError, match=r"holds neither dataset\.json"):
        load(tmp_path)
    np.savez(tmp_path / "objects.npz", observations=np.array([{}, None]), rewards=np.ones(2))
    with pytest.raises(OffroadError, match="cannot be read"):
        load(tmp_path / "objects.npz")
    np.savez(tmp_path / "less.npz", observations=np.ones(2), rewards=np.ones(2))
    with pytest.raises(OffroadError, match=r"has no column of actions; name it: actions=\.\.\., one of observa"):
        load(tmp_path / "less.npz")
    (tmp_path / "empty.csv").write_text("observation_0,action_0,reward,terminated\n")
    with pytest.raises(OffroadError, match="is empty"):
        load(tmp_path / "empty.csv")
    with pytest.raises(OffroadError, match="unknown column 'reward'; did you mean 'rewards'"):
        load(tmp_path / "empty.csv", reward="x")
    (tmp_path / "noise.npz").write_bytes(bytes(range(200, 250)))
    with pytest.raises(OffroadError, match="not a zip file"):  # and no advice to unpickle it
        load(tmp_path / "noise.npz")
    h5py.File(tmp_path / "nothing.hdf5", "w").close()
    with pytest.raises(OffroadError, match="has no column of observations; it holds no arrays at all"):
        load(tmp_path / "nothing.hdf5")
    short = {"obs": np.ones((3, 2)), "action": np.ones((3, 1)), "reward": np.ones(3), "done": np.ones(3)}
    np.savez(tmp_path / "next.npz", **short, next_obs=np.ones((3, 1)))
    with pytest.raises(OffroadError, match=r"have shapes .*\(3, 2\).*, next observations .*\(3, 1\)"):
        load(tmp_path / "next.npz")
    np.savez(tmp_path / "odd.npz", obs=np.ones((3, 2)), action=np.ones((4, 1)), reward=np.ones(3), done=np.ones(3))
    with pytest.raises(OffroadError, match=r"'actions' of .* has shape \(4, 1\), but there are 3 rewards"):
        load(tmp_path / "odd.npz")
