"""Demonstrations of `offroad/Stack-v0` as starts of its episodes."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import stack, stack_episodes

from offroad.errors import OffroadError
from offroad.tasks import CurriculumVectorEnv, DemonstrationResets, Demonstrations, Stage, SuccessGated
from offroad.train import checkpoint

STEPS = 6


@pytest.fixture(scope="module")
def demonstrations():
    """Random episodes of one block in world 0 and of two in the others."""
    one = {"blocks": 1, "reset_mask": np.arange(4) == 0}
    transitions, states = stack_episodes(stack(4), STEPS, [one])
    return Demonstrations.of_rollout(transitions, states=states)


def wrapped(num_envs, curriculum):
    return CurriculumVectorEnv(stack(num_envs, max_episode_steps=2), curriculum, deterministic_envs=0)


def step(env):
    return env.step(np.zeros(env.action_space.shape, np.float32))


def shown_rows(observation, demonstrations):
    """For every world the row of the demonstrations that it shows to the bit, or -1."""
    known = demonstrations.transitions.observation
    same = [np.all(x[:, None] == known[name], axis=tuple(range(2, x.ndim + 1))) for name, x in observation.items()]
    equal = np.all(same, axis=0)
    assert (equal.sum(1) <= 1).all()
    return np.where(equal.any(1), equal.argmax(1), -1)


def test_episodes_start_from_demonstrated_states_to_the_bit(demonstrations):
    env = wrapped(48, DemonstrationResets(None, demonstrations, 1))
    rows = shown_rows(env.reset(seed=0)[0], demonstrations)
    assert (rows >= 0).all()
    assert len(set(rows // STEPS)) == 4  # every episode,
    assert len(set(rows % STEPS)) == STEPS  # from its beginning to its end


def test_a_share_of_episodes_starts_from_demonstrations_and_only_the_others_count(demonstrations):
    inner = SuccessGated([Stage("one block", {"blocks": 1})])
    env = wrapped(40, DemonstrationResets(inner, demonstrations, 0.25))
    observation, _ = env.reset(seed=100)
    others = 0
    for _ in range(4):
        shown = shown_rows(observation, demonstrations) >= 0
        assert 2 <= shown.sum() <= 20
        assert (observation["mask"][~shown].sum(1) == 1).all()
        others += (~shown).sum()
        step(env)
        observation, _, _, truncated, _ = step(env)
        assert truncated.all()
        assert inner.episodes == others
    assert env.metrics() == inner.metrics()
    assert "curriculum/success" in env.metrics()


def test_it_continues_from_a_saved_state_to_the_bit(demonstrations, tmp_path):
    def make():
        stages = [Stage("one", {"blocks": 1}), Stage("two", {"blocks": 2})]
        return wrapped(6, DemonstrationResets(SuccessGated(stages, window=2), demonstrations, 0.5))

    def follow(env):
        return [(step(env)[:4], env.curriculum.get_state()) for _ in range(6)]

    env, other = make(), make()
    env.reset(seed=1)
    follow(env)
    step(env)
    checkpoint.save(tmp_path / "state", {"env": env.get_state()})
    other.reset(seed=2)
    other.set_state(checkpoint.load(tmp_path / "state").value("env"))
    found, expected = follow(other), follow(env)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_without_a_curriculum_the_others_are_plain(demonstrations):
    never = DemonstrationResets(None, demonstrations, 0)
    options = never.sample(np.random.default_rng(0))
    assert options == {}
    never.record(options, True, True)
    assert never.metrics() == never.get_state() == {}
    never.set_state({})


def test_mistakes_are_told(demonstrations):
    with pytest.raises(OffroadError, match=r"is 1.5, expected 0 to 1"):
        DemonstrationResets(None, demonstrations, 1.5)
    with pytest.raises(OffroadError, match="hold no states of the simulator; record them with states"):
        DemonstrationResets(None, dataclasses.replace(demonstrations, states=None), 0.5)
