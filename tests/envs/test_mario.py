"""Mario without a ROM: its errors. With one (OFFROAD_MARIO_ROM=PATH), the game."""

import hashlib
import os
import sys

import numpy as np
import pytest

import offroad
from offroad.envs.mario import ACTIONS, mario
from offroad.errors import OffroadError

ROM = os.environ.get("OFFROAD_MARIO_ROM")


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "game.nes"
    path.write_bytes(b"NES\x1a" + bytes(100))
    return path


def test_a_rom_has_to_be_there(tmp_path):
    with pytest.raises(OffroadError, match="a ROM of Super Mario Bros that you own"):
        offroad.make_vec("offroad/Mario-v0")
    with pytest.raises(OffroadError, match=r"there is no ROM at .*none\.nes"):
        offroad.make_vec("offroad/Mario-v0", rom=tmp_path / "none.nes")


def test_another_rom_is_told_by_its_digest(wrong):
    found = hashlib.sha256(wrong.read_bytes()).hexdigest()
    with pytest.raises(OffroadError, match=rf"{found}.*{mario.DIGEST}"):
        offroad.make_vec("offroad/Mario-v0", rom=wrong)


def test_missing_extra_is_named(monkeypatch, wrong):
    monkeypatch.setattr(mario, "DIGEST", hashlib.sha256(wrong.read_bytes()).hexdigest())
    monkeypatch.setitem(sys.modules, "env_supermariobrosnes_turbo_emu", None)
    with pytest.raises(OffroadError, match=r"pip install 'offroad\[mario\]'"):
        offroad.make_vec("offroad/Mario-v0", rom=wrong)


def test_unknown_level_is_named(wrong):
    with pytest.raises(OffroadError, match="unknown level '1-4'"):
        offroad.make_vec("offroad/Mario-v0", rom=wrong, levels="1-4")


def test_actions_are_the_papers():
    assert len(set(map(frozenset, ACTIONS))) == 14
    assert {frozenset(action) for action in ACTIONS if len(action) == 3} == {
        frozenset(("LEFT", "A", "B")),
        frozenset(("RIGHT", "A", "B")),
    }


@pytest.mark.skipif(ROM is None, reason="needs your own ROM: OFFROAD_MARIO_ROM=PATH")
def test_running_right_gets_somewhere():
    right = ACTIONS.index(("RIGHT",))
    env = offroad.make_vec("offroad/Mario-v0", 2, rom=ROM)
    try:
        seen, info = env.reset(seed=0)
        assert seen.shape == (2, 42, 42, 4)
        assert info["distance"].tolist() == [0, 0]
        for _ in range(10):
            seen, *_, info = env.step(np.array([right, 0]))
        assert info["distance"][0] > 20
        assert info["distance"][1] == 0
    finally:
        env.close()
