import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offroad.errors import OffroadError
from offroad.train import checkpoint


class Memory(NamedTuple):
    carry: np.ndarray
    none: None


def agent(seed: int = 0, width: int = 8):
    key = jax.random.key(seed)
    network = eqx.nn.MLP(3, 2, width, 2, key=key)
    optimiser = optax.adam(1e-3).init(eqx.filter(network, eqx.is_array))
    return {
        "network": network,
        "optimiser": optimiser,
        "keys": jax.random.split(key, 3),
        "bfloat16": jax.random.normal(key, (2, 3), jnp.bfloat16),
        "scalar": jnp.asarray(1.5),
        "flags": np.array([True, False]),
        "memory": Memory(np.arange(6, dtype=np.uint8).reshape(2, 3), None),
        "plain": [3, 2.5, "text", True, None],
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if isinstance(x, np.ndarray | jax.Array):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x == y or x is y


def test_any_pytree_comes_back_bitwise_into_a_template_of_other_numbers(tmp_path):
    saved_agent = agent(seed=1)
    checkpoint.save(tmp_path / "step_1", {"agent": saved_agent, "other": 3})
    template = agent(seed=2)
    template["plain"] = [0, 0.0, "", False, None]
    restored = checkpoint.load(tmp_path / "step_1").restore("agent", like=template)
    assert_same(restored, saved_agent)


def test_a_template_of_shapes_is_enough(tmp_path):
    network = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    checkpoint.save(tmp_path / "step_1", {"network": network})
    shapes = eqx.filter_eval_shape(lambda: network)
    assert_same(checkpoint.load(tmp_path / "step_1").restore("network", like=shapes), network)


def test_nested_values_come_back_without_a_template(tmp_path):
    state = {
        "generator": np.random.default_rng(7).bit_generator.state,
        "huge": -(10**40),
        "floats": [0.1, float("inf"), -float("inf"), -0.0, 5e-324],
        "tuple": (1, ("a", None), {}),
        "empty": [],
        "words": np.array(["ab", "c"]),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "strided": np.arange(20)[::3],
        "nothing": np.zeros((0, 3), np.float32),
        "scalar": np.float32(0.1),
        "array": np.array(2, np.int16),
        "dict": {"float": "not special", "array": 0, "odd key ['\"]/\n": False},
    }
    checkpoint.save(tmp_path / "a", {"env": state, "nan": float("nan"), "array": np.arange(3)})
    saved = checkpoint.load(tmp_path / "a")
    found = saved.value("env")
    np.testing.assert_equal(found, state)
    assert_same(found, state)
    assert np.isnan(saved.value("nan"))
    assert saved.names == ["env", "nan", "array"]
    generator = np.random.default_rng(0)
    generator.bit_generator.state = found["generator"]
    assert generator.random() == np.random.default_rng(7).random()


def test_the_files_are_plain_arrays_and_strict_json(tmp_path):
    checkpoint.save(tmp_path / "a", {"x": {"weights": np.arange(5.0), "limit": float("inf")}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["arrays.npz", "state.json"]
    with np.load(tmp_path / "a" / "arrays.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["0"], np.arange(5.0))
    json.loads((tmp_path / "a" / "state.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("name", "leaf", "message"),
    [
        ("bfloat16", jnp.zeros((2, 3)), r"agent\['bfloat16'\] found bfloat16\[2, 3\], expected float32\[2, 3\]"),
        ("scalar", jnp.zeros(1), r"agent\['scalar'\] found float32\[\], expected float32\[1\]"),
        ("keys", jax.random.key(0), r"agent\['keys'\] found key<fry>\[3\], expected key<fry>\[\]"),
        ("plain", [3, 2, "text", True, None], r"agent\['plain'\]\[1\] found float, expected int"),
        ("plain", [3, 2.5, "text", 1, None], r"agent\['plain'\]\[3\] found bool, expected int"),
        ("plain", [3, 2.5, "text", True, 0.0], r"agent\['plain'\]\[4\] found None, expected float"),
        ("plain", [3, 2.5, "text", True], r"agent\['plain'\]\[4\] found a leaf, expected nothing"),
        ("extra", 1, r"agent\['extra'\] found nothing, expected a leaf"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_by_the_path_of_the_leaf(tmp_path, name, leaf, message):
    checkpoint.save(tmp_path / "a", {"agent": agent()})
    saved = checkpoint.load(tmp_path / "a")
    with pytest.raises(OffroadError, match=message):
        saved.restore("agent", like=agent() | {name: leaf})


def test_a_network_of_another_width_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a", {"agent": agent(width=8)})
    with pytest.raises(OffroadError, match=r"agent\['\w+'\].*\.layers\[0\].*weight found float32\[8, 3\], expected"):
        checkpoint.load(tmp_path / "a").restore("agent", like=agent(width=9))


def test_misuse_is_named(tmp_path):
    with pytest.raises(OffroadError, match=r"cannot save env\['sim'\]: a object"):
        checkpoint.save(tmp_path / "a", {"env": {"sim": object()}})
    with pytest.raises(OffroadError, match=r"cannot save env: its key 3 is a int"):
        checkpoint.save(tmp_path / "a", {"env": {3: 4}})
    with pytest.raises(OffroadError, match=r"cannot save env: an array of dtype object"):
        checkpoint.save(tmp_path / "a", {"env": np.array([None])})
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(tmp_path / "a", {"agent": agent()})
    saved = checkpoint.load(tmp_path / "a")
    with pytest.raises(OffroadError, match="holds no 'env', only agent"):
        saved.value("env")
    with pytest.raises(OffroadError, match=r"agent\['network'\].* is a MLP, which is read with restore"):
        saved.value("agent")
    with pytest.raises(OffroadError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "b")


def test_saving_again_replaces(tmp_path):
    for i in range(3):
        checkpoint.save(tmp_path / "a", {"i": i})
    assert checkpoint.load(tmp_path / "a").value("i") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    checkpoint.save(tmp_path / "step_3", {"i": 3})
    (tmp_path / "step_3").rename(tmp_path / ".step_3.old")
    assert checkpoint.load(tmp_path / "step_3").value("i") == 3
    (tmp_path / "step_3").rename(tmp_path / ".step_3.old")
    assert checkpoint.latest(tmp_path) == tmp_path / "step_3"
    checkpoint.prune(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_3"]


def test_latest_is_by_number_and_prune_keeps_the_newest_two(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint.save(tmp_path / f"step_{step}", {"step": step})
    (tmp_path / "step_notes").mkdir()
    (tmp_path / ".step_700.part").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step_100"
    checkpoint.prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_100", "step_20", "step_notes"]


@pytest.mark.parametrize("file", ["arrays.npz", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_a_damaged_checkpoint_is_named_with_the_one_to_fall_back_to(tmp_path, file, damage):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / f"step_{step}", {"x": np.full(1000, step), "y": 0.25})
    for step in (2, 3):
        path = tmp_path / f"step_{step}" / file
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.unlink()
        if damage != "gone":
            path.write_bytes({"cut": content[:-5], "flip": content, "empty": b""}[damage])
    with pytest.raises(OffroadError) as error:
        checkpoint.latest(tmp_path)
    assert str(tmp_path / "step_3" / file) in str(error.value)
    assert f"delete '{tmp_path / 'step_3'}' to continue from '{tmp_path / 'step_1'}'" in str(error.value)


def test_every_flipped_bit_of_the_json_is_noticed(tmp_path):
    checkpoint.save(tmp_path / "step_1", {"x": 0.25, "s": "abc", "n": 7})
    path = tmp_path / "step_1" / "state.json"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(OffroadError):
            checkpoint.load(tmp_path / "step_1")


def test_another_format_is_not_called_damaged(tmp_path):
    checkpoint.save(tmp_path / "step_1", {"x": 1})
    path = tmp_path / "step_1" / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(OffroadError, match="of format 99, expected 1"):
        checkpoint.load(tmp_path / "step_1")


def test_large_arrays_are_written_without_a_copy(tmp_path):
    big = {"host": np.zeros(50_000_000, np.uint8), "device": jnp.zeros(10_000_000, jnp.uint8)}
    tracemalloc.start()
    checkpoint.save(tmp_path / "a", big)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
    assert (tmp_path / "a" / "arrays.npz").stat().st_size > 60_000_000


def test_a_file_size_limit_is_one_clear_error_and_harms_nothing(tmp_path):
    checkpoint.save(tmp_path / "step_1", {"x": np.arange(1000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OffroadError, match=r"cannot save the checkpoint .*step_2': File too large; earlier"):
            checkpoint.save(tmp_path / "step_2", {"x": np.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "step_1").value("x"), np.arange(1000))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_one_clear_error_and_harms_nothing(small_disk):
    checkpoint.save(small_disk / "step_1", {"x": np.arange(1000)})
    for _ in range(3):  # the space of a failed attempt comes back
        with pytest.raises(OffroadError, match="No space left on device"):
            checkpoint.save(small_disk / "step_2", {"x": np.zeros(1_000_000)})
    assert [p.name for p in small_disk.iterdir()] == ["step_1"]
    checkpoint.save(small_disk / "step_2", {"x": np.zeros(100_000)})
    assert checkpoint.latest(small_disk) == small_disk / "step_2"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from offroad.train import checkpoint
folder = Path(sys.argv[1])
step = 0
print("ready", flush=True)
while True:
    step += 1
    tree = {"step": step, "x": np.full(300_000, step), "replaced": {"y": np.full(10, step)}}
    checkpoint.save(folder / f"step_{step}", tree)
    checkpoint.save(folder / "always", tree)
    checkpoint.prune(folder)
"""


def test_a_process_that_is_killed_at_any_moment_leaves_whole_checkpoints(tmp_path):
    moments = np.random.default_rng(0).uniform(0.02, 0.3, 6)
    survivors = []
    for i, moment in enumerate(moments):
        folder = tmp_path / str(i)
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while not (folder / "always").exists():
                time.sleep(0.005)
            time.sleep(moment)
            process.kill()
        saved = checkpoint.load_latest(folder)
        assert saved is not None
        always = checkpoint.load(folder / "always")
        for found in (saved, always):
            step = found.value("step")
            np.testing.assert_array_equal(found.value("x"), np.full(300_000, step))
            np.testing.assert_array_equal(found.value("replaced")["y"], np.full(10, step))
        assert saved.folder.name == f"step_{saved.value('step')}"
        assert saved.value("step") - always.value("step") in (0, 1)
        survivors.append(saved.value("step"))
        checkpoint.prune(folder)
        assert not list(folder.glob(".step_*"))
    assert max(survivors) > 1
