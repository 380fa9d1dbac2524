"""Batches of `offroad/Stack-v0`, with room for three blocks, of which only one or two are there."""

import json

import jax
import numpy as np
import pytest
from tiny import stack, stack_episodes

from offroad.data.replay import Replay
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.tasks import CompactReplay, DemonstrationReplay, Demonstrations, GoalTask, HindsightReplay
from offroad.train import checkpoint

CUT = {"objects": 2, "goals": 2, "mask": 1}  # the axes from the one of the slots on


@pytest.fixture(scope="module")
def env():
    return stack(4, blocks=3)


@pytest.fixture(scope="module")
def episodes(env):
    """By the number of blocks, transitions `[8, 4]`."""
    return {blocks: stack_episodes(env, 8, [{"blocks": blocks}], seed=blocks)[0] for blocks in (1, 2)}


def hindsight(env, *added):
    replay = HindsightReplay(1000, GoalTask.of(env), moved_share=0.5, moved_distance=1e-4)
    for transitions in added:
        replay.add(transitions, np.ones(transitions.reward.shape, bool))
    return replay


def assert_cut(found, whole, slots):
    """That `found` is `whole` without the slots from `slots` on, in which nothing is."""
    for name in ("observation", "next_observation"):
        one, other = getattr(found, name), getattr(whole, name)
        assert one.keys() == other.keys()
        for entry, x in other.items():
            if entry in CUT:
                before = (slice(None),) * (x.ndim - CUT[entry])
                assert (other["mask"][..., slots:] == 0).all()
                x = x[(*before, slice(slots))]
            np.testing.assert_array_equal(one[entry], x)
            assert one[entry].dtype == x.dtype
    for name in ("action", "reward", "terminated", "truncated", "demonstrated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize("shape", [200, (3, 100)])
def test_samples_are_those_of_the_replay_inside_cut_to_the_slots_in_use(env, episodes, shape):
    whole, replay = hindsight(env, episodes[1]), CompactReplay(hindsight(env))
    replay.add(episodes[1], np.ones((8, 4), bool))
    for blocks in (1, 2):
        assert len(replay) == len(whole) == 32 * blocks
        drawn = replay.sample(np.random.default_rng(0), shape)
        assert_cut(drawn, whole.sample(np.random.default_rng(0), shape), blocks)
        np.testing.assert_array_equal(drawn.reward, env.compute_reward(drawn.next_observation))
        assert drawn.observation["objects"].shape[-2] == replay.slots == blocks
        for each in (replay, whole):
            each.add(episodes[2], np.ones((8, 4), bool))
    # It never shrinks: programs stay compiled.
    replay.replay = hindsight(env, episodes[1])
    assert replay.sample(np.random.default_rng(0), 10).observation["mask"].shape == (10, 2)


def test_no_object_is_ever_cut_away(env, episodes):
    one = jax.tree.map(lambda x: x[:1, :1].copy(), episodes[1])
    one.next_observation["mask"][...] = [0, 1, 0]  # an object that appears, behind an empty slot
    replay = CompactReplay(Replay(10))
    replay.add(one)
    assert replay.sample(np.random.default_rng(0), 5).observation["objects"].shape == (5, 2, 16)
    one.observation["mask"][...] = one.next_observation["mask"][...] = 0
    replay = CompactReplay(Replay(10))
    replay.add(one)
    assert replay.sample(np.random.default_rng(0), 5).observation["objects"].shape == (5, 1, 16)


def test_a_restored_replay_goes_on_to_the_bit(env, episodes, tmp_path):
    replay, restored = CompactReplay(hindsight(env, episodes[1], episodes[2])), CompactReplay(hindsight(env))
    replay.sample(np.random.default_rng(0), 100)
    checkpoint.save(tmp_path / "step_1", {"replay": replay.get_state()})
    restored.set_state(checkpoint.load(tmp_path / "step_1").value("replay"))
    assert len(restored) == len(replay) == 64
    assert restored.slots == 2
    for each in (replay, restored):
        each.add(episodes[1], np.ones((8, 4), bool))
    one, other = (each.sample(np.random.default_rng(1), (2, 30)) for each in (replay, restored))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_mixed_with_demonstrations_of_more_objects(env, episodes, tmp_path):
    def mixed():
        shown, apart = Demonstrations.of_rollout(episodes[2]), hindsight(env)
        shown.fill(apart)
        return DemonstrationReplay(hindsight(env), apart, 0.25)

    whole, replay = mixed(), CompactReplay(mixed())
    for each in (whole, replay):
        each.add(episodes[1], np.ones((8, 4), bool))
    drawn = replay.sample(np.random.default_rng(0), (5, 16))
    assert_cut(drawn, whole.sample(np.random.default_rng(0), (5, 16)), 2)
    assert drawn.demonstrated.sum(axis=1).tolist() == [4] * 5
    np.testing.assert_array_equal(drawn.observation["mask"].sum(-1), np.where(drawn.demonstrated, 2, 1))
    restored = CompactReplay(mixed())
    checkpoint.save(tmp_path / "step_1", {"replay": replay.get_state()})
    restored.set_state(checkpoint.load(tmp_path / "step_1").value("replay"))
    one, other = (each.sample(np.random.default_rng(1), (5, 16)) for each in (replay, restored))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_its_description_tells_all_settings(env, episodes):
    apart = hindsight(env, episodes[1])
    found = CompactReplay(DemonstrationReplay(HindsightReplay(500, GoalTask.of(env), share=0.5), apart)).describe()
    assert json.loads(json.dumps(found)) == found
    settings = {"strategy": "future", "per_entity": True, "share": 0.8, "moved_share": 0.5, "moved_distance": 1e-4}
    inner = {"kind": "HindsightReplay", "capacity": 1000, **settings}
    assert found["kind"] == "CompactReplay"
    assert found["replay"]["demonstrations"] == inner
    assert found["replay"]["share"] == 0.125
    changed = {"capacity": 500, "share": 0.5, "moved_share": 0.0, "moved_distance": 0.03}
    assert found["replay"]["replay"] == {**inner, **changed}
    assert Replay(7).describe() == {"kind": "Replay", "capacity": 7}


def test_mistakes_are_told(env, episodes):
    flat = np.zeros((2, 3, 5), np.float32)
    off = np.zeros((2, 3), bool)
    for observation, message in ((flat, "with no entries"), ({"objects": flat}, r"with the entries \['objects'\]")):
        with pytest.raises(OffroadError, match=f"{message}, expected a Dict with 'objects' .* and 'mask'"):
            CompactReplay(Replay(9)).add(Transition(observation, flat, flat[..., 0], observation, off, off))
    some = hindsight(env, episodes[1])
    for wrong in ((CompactReplay(some), some), (some, CompactReplay(some))):
        with pytest.raises(OffroadError, match=r"do not mix; use CompactReplay\(DemonstrationReplay"):
            DemonstrationReplay(*wrong)
