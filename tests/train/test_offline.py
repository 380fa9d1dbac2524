"""Training from data alone, with an agent that counts its updates."""

import sys

import numpy as np
import pytest
from tiny import Proportional, steps_env

from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.train import offline


def filled(size=20):
    replay, x, off = Replay(size), np.zeros((size, 1, 2), np.float32), np.zeros((size, 1), bool)
    replay.add(Transition(x, x[..., :1], x[..., 0], x, off, off))
    return replay


@pytest.mark.parametrize(("piece", "reports"), [(1 << 28, [100, 200, 230]), (3 * 4 * 26, [*range(3, 230, 3), 230])])
def test_every_update_is_made_once(monkeypatch, piece, reports):
    monkeypatch.setattr(sys.modules["offroad.train.offline"], "PIECE_BYTES", piece)
    agent = Proportional.create(Spaces.of(steps_env({})), change=1.0)
    replay, said = filled(), []
    learnt = offline(agent, replay, 230, progress=False, callback=said.append)
    assert learnt.gain == agent.gain + 230
    assert [line["update"] for line in said] == reports
    assert all(line["loss"] == 0 for line in said)
    assert len(replay) == 20


def test_an_empty_replay_is_told():
    with pytest.raises(OffroadError, match="the replay is empty"):
        offline(Proportional.create(Spaces.of(steps_env({}))), Replay(3), 10)
