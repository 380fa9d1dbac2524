import sys

import jax_envs
import numpy as np
import pytest
from tiny import Proportional, cheetah, leaves, sac, same, steps_env, train_sac

from offroad import train
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError


def test_seeds_trained_side_by_side_are_the_seeds_trained_alone():
    env = jax_envs.point(4)
    both = train_sac(env, 128, seed=[3, 5])
    for row, seed in enumerate((3, 5)):
        alone = train_sac(env, 128, seed=seed)
        for a, b in zip(leaves(both.agent), leaves(alone.agent)):
            np.testing.assert_allclose(a[row], b, rtol=1e-3, atol=1e-5)
    assert np.shape(both.history[-1]["critic_loss"]) == (2,)


@pytest.mark.parametrize("make", [jax_envs.point, cheetah])
def test_learning_starts_after_random_actions(make):
    env = make(4)
    agent = sac(env)
    options = {"learning_starts": 64, "train_every": 8, "update_ratio": 0.125, "progress": False}
    replay = Replay(1000)
    result = train.off_policy(agent, env, 96, replay=replay, **options)
    learnt = ["critic_loss" in line for line in result.history]
    assert learnt == ([False, True, True] if make is cheetah else [False, False, True])
    count = result.agent.optimiser_states[1][0].count
    assert int(count) == 4 * sum(learnt)
    if make is cheetah:
        assert len(replay) == 96
        warm_up = replay._ring.action[:64]
        assert (np.abs(warm_up) <= 1).all()
        assert warm_up.std() == pytest.approx(3**-0.5, abs=0.05)  # uniform, unlike the policy's
    assert all((a == b).all() for a, b in zip(leaves(agent), leaves(sac(env))))  # not overwritten


def test_a_large_phase_of_updates_is_the_same_in_pieces(monkeypatch):
    whole = train_sac(cheetah(), 96, update_ratio=0.25)
    monkeypatch.setattr(sys.modules["offroad.train.off_policy"], "PIECE_BYTES", 3000)
    pieces = train_sac(cheetah(), 96, update_ratio=0.25)
    for a, b in zip(leaves(whole.agent), leaves(pieces.agent)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copies", [0, 2, 3])
def test_the_first_copies_explore_only_while_all_is_random(copies):
    env = steps_env(*[{"cut": 5}] * 3)
    env.deterministic_envs = copies
    env.metrics = lambda: {"curriculum/stage": 2}
    replay = Replay(60)
    options = {"learning_starts": 30, "train_every": 5, "update_ratio": 0.2, "progress": False}
    result = train.off_policy(Proportional.create(Spaces.of(env)), env, 60, replay=replay, **options)
    actions = replay._ring.action.reshape(4, 5, 3)
    planned = 2.0 * np.arange(5)[:, None]  # what is observed, plus what is remembered of the copy's own calls
    explores = np.abs(actions - planned) > 1e-6
    assert explores[:2].all()
    assert not explores[2:, :, :copies].any()
    assert explores[2:, :, copies:].all()
    assert [line["curriculum/stage"] for line in result.history] == [2, 2, 2, 2]


def test_unusable_settings_are_named():
    env = jax_envs.point(4)
    with pytest.raises(OffroadError, match=r"update_ratio 0.01 gives no gradient step in 8 steps of 4 environments"):
        train_sac(env, 100, update_ratio=0.01)
    replay = Replay(10)
    one = np.zeros((1, 1), np.float32)
    replay.add(Transition(one[..., None], one[..., None], one, one[..., None], one > 0, one > 0))
    with pytest.raises(OffroadError, match="start from an empty replay"):
        train_sac(env, 100, replay=replay)


def test_a_resumed_run_may_train_for_longer(tmp_path):
    env = jax_envs.point(4)
    train_sac(env, 96, out=tmp_path)
    longer = train_sac(env, 192, out=tmp_path, resume=True)
    assert same(longer.agent, train_sac(env, 192).agent)
    assert not same(longer.agent, train_sac(env, 192, seed=1).agent)
