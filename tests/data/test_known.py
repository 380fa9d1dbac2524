"""A published file is recognised to the byte, and the doctor says what is peculiar about it."""

import hashlib

import h5py
import numpy as np
import pytest

from offroad.data import known
from offroad.data.doctor import examine
from offroad.data.readers import load

STEPS, EPISODES = 20, 5
ENDS = "its terminal rows only mark where recordings stopped; load with truncated='terminals', terminated=None"


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """A file laid out like D4RL's kitchen, known by its checksum."""
    path, random, rows = tmp_path / "kitchen.hdf5", np.random.default_rng(0), STEPS * EPISODES
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate((random.normal(size=(rows, 30)), np.tile(np.arange(30), (rows, 1))), 1)
        file["actions"] = 0.5 * np.tanh(random.normal(size=(rows, 9)))
        file["rewards"] = random.integers(0, 3, rows).astype(float)
        file["terminals"] = np.arange(rows) % STEPS == STEPS - 1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(known.CHECKSUMS, digest, known._kitchen("partial"))
    return path


def test_a_file_is_recognised_to_the_byte(kitchen):
    assert known.recognise(kitchen).name == "D4RL's kitchen-partial-v0"
    kitchen.write_bytes(kitchen.read_bytes() + b"\0")
    assert known.recognise(kitchen) is None
    assert known.recognise(kitchen.parent) is None
    assert all(len(digest) == 64 and int(digest, 16) for digest in known.CHECKSUMS)


def test_the_doctor_tells_the_quirks_of_a_published_file(kitchen):
    found = examine(load(kitchen), file=kitchen)
    assert found.defects[0].startswith("this is D4RL's kitchen-partial-v0: rewards count the target subtasks")
    assert found.defects[1] == f"this is D4RL's kitchen-partial-v0: {ENDS}"


def test_what_the_doctor_proposes_mends_the_ends(kitchen):
    data = load(kitchen, truncated="terminals", terminated=None)
    assert data.truncated.sum() == EPISODES
    assert not data.terminated.any()
    found = examine(data, file=kitchen)
    assert found.defects[0].startswith("this is D4RL's")
    assert not any(line.endswith(ENDS) for line in found.defects)


def test_other_files_are_not_mentioned(kitchen, monkeypatch):
    monkeypatch.setattr(known, "CHECKSUMS", {})
    found, without = examine(load(kitchen), file=kitchen), examine(load(kitchen))
    assert found.to_json() == without.to_json()
    assert not any("this is" in line for line in found.defects)
