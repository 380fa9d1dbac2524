from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.data.replay import JaxReplay, Replay
from offroad.data.transitions import Transition
from offroad.errors import OffroadError


def transitions(numbers) -> Transition:
    """`[N]` transitions that carry their number in every leaf; observations are dicts with an image."""
    n = np.asarray(numbers)
    image = np.broadcast_to(n.astype(np.uint8)[:, None, None], (len(n), 2, 2))
    state = np.stack([n, 10 * n], axis=-1).astype(np.float32)
    return Transition(
        observation={"image": image, "state": state},
        action=n.astype(np.int64),
        reward=n.astype(np.float32),
        next_observation={"image": image + 1, "state": state + 1},
        terminated=n % 3 == 0,
        truncated=n % 5 == 0,
    )


def rollout(numbers, copies=1) -> Transition:
    """The same as `[T, N]` transitions."""
    return jax.tree.map(lambda x: x.reshape(-1, copies, *x.shape[1:]), transitions(numbers))


def one_copy(transitions) -> Transition:
    return jax.tree.map(lambda x: x[:, None], transitions)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_full_ring_holds_exactly_the_newest():
    replay = Replay(10)
    for start in range(0, 24, 4):
        replay.add(rollout(np.arange(start, start + 4)))
        assert len(replay) == min(start + 4, 10)
    drawn = replay.sample(np.random.default_rng(0), 1000)
    assert set(drawn.action.tolist()) == set(range(14, 24))


def test_more_than_the_capacity_at_once_leaves_the_last_ones():
    replay = Replay(5)
    replay.add(rollout(np.arange(3)))
    replay.add(rollout(np.arange(3, 20)))
    assert set(replay.sample(np.random.default_rng(0), 500).action.tolist()) == set(range(15, 20))


def test_samples_keep_the_leaves_of_a_transition_together_with_shape_and_dtype():
    replay = Replay(50)
    replay.add(rollout(np.arange(30)))
    drawn = replay.sample(np.random.default_rng(0), (3, 7))
    assert drawn.observation["image"].shape == (3, 7, 2, 2)
    assert drawn.observation["image"].dtype == np.uint8
    assert_same(jax.tree.map(lambda x: x.reshape(21, *x.shape[2:]), drawn), transitions(drawn.action.reshape(21)))


def test_sampling_is_uniform_and_decided_by_the_generator():
    replay = Replay(8)
    replay.add(rollout(np.arange(11)))
    counts = np.bincount(replay.sample(np.random.default_rng(1), 80_000).action, minlength=11)[3:]
    assert np.abs(counts / 10_000 - 1).max() < 0.05  # five standard deviations
    assert_same(replay.sample(np.random.default_rng(2), 9), replay.sample(np.random.default_rng(2), 9))


def test_masked_transitions_are_left_out():
    replay = Replay(10)
    replay.add(rollout(np.arange(6), 2), mask=np.array([[True, False], [True, False], [False, True]]))
    assert len(replay) == 3
    assert set(replay.sample(np.random.default_rng(0), 100).action.tolist()) == {0, 2, 5}
    replay.add(rollout(np.arange(6), 2), mask=np.zeros((3, 2), bool))
    assert len(replay) == 3


@pytest.mark.parametrize("added", [0, 4, 10, 13])
def test_a_restored_replay_goes_on_bitwise(added):
    replay, restored = Replay(10), Replay(10)
    if added:
        replay.add(rollout(np.arange(added)))
    restored.add(rollout(np.arange(100, 107)))
    restored.set_state(replay.get_state())
    for r in (replay, restored):
        r.add(rollout(np.arange(50, 53)))
    assert len(replay) == len(restored) == min(added + 3, 10)
    assert_same(replay.sample(np.random.default_rng(0), 64), restored.sample(np.random.default_rng(0), 64))


def test_which_transitions_are_demonstrated_is_kept_and_restored():
    numbers = np.arange(12)
    shown = replace(rollout(numbers, 3), demonstrated=(numbers % 4 == 0).reshape(4, 3))
    replay, restored = Replay(10), Replay(10)
    replay.add(shown)
    restored.set_state(replay.get_state())
    drawn = restored.sample(np.random.default_rng(0), 100)
    np.testing.assert_array_equal(drawn.demonstrated, drawn.action % 4 == 0)
    replay = Replay(10)
    replay.add(rollout(numbers))
    assert replay.sample(np.random.default_rng(0), 5).demonstrated is None


def test_the_state_holds_the_filled_part_only():
    replay = Replay(1000)
    replay.add(rollout(np.arange(4)))
    assert {x.shape[0] for x in jax.tree.leaves(replay.get_state()["ring"])} == {4}


def test_what_a_user_can_get_wrong():
    with pytest.raises(OffroadError, match="empty"):
        Replay(3).sample(np.random.default_rng(0), 2)
    with pytest.raises(OffroadError, match="at least 1"):
        Replay(0)
    replay = Replay(8)
    replay.add(rollout(np.arange(8)))
    with pytest.raises(OffroadError, match="capacity 5"):
        Replay(5).set_state(replay.get_state())


def test_a_capacity_that_grew_after_the_ring_had_wrapped_is_refused():
    replay = Replay(8)
    replay.add(rollout(np.arange(9)))
    with pytest.raises(OffroadError, match="capacity 20"):
        Replay(20).set_state(replay.get_state())


def test_both_replays_hold_the_same():
    host, device = Replay(10), JaxReplay.create(10, jax.tree.map(lambda x: x[0], on_device(np.arange(1))))
    add = jax.jit(JaxReplay.add)
    for start in range(0, 35, 5):
        device = add(device, on_device(np.arange(start, start + 5)))
        host.add(one_copy(on_device(np.arange(start, start + 5))))
        assert int(device.size) == len(host)
        assert_same(first(device.ring, len(host)), Transition(**host.get_state()["ring"]))
    assert int(device.added) < 20  # does not grow without end
    big = add(device, on_device(np.arange(40, 57)))
    host.add(one_copy(on_device(np.arange(40, 57))))
    assert_same(jax.tree.map(np.asarray, big.ring), Transition(**host.get_state()["ring"]))


def test_the_compiled_replay_samples_uniformly_from_what_it_holds():
    replay = JaxReplay.create(8, jax.tree.map(lambda x: x[0], on_device(np.arange(1))))
    replay = replay.add(on_device(np.arange(2, 6)))
    drawn = jax.jit(JaxReplay.sample, static_argnums=2)(replay, jax.random.key(0), 40_000)
    counts = np.bincount(drawn.action, minlength=6)
    assert counts[:2].sum() == 0
    assert np.abs(counts[2:] / 10_000 - 1).max() < 0.05
    assert_same(jax.tree.map(np.asarray, drawn), jax.tree.map(np.asarray, on_device(drawn.action)))


def first(ring: Transition, n: int) -> Transition:
    return jax.tree.map(lambda x: np.asarray(x[:n]), ring)


def on_device(numbers) -> Transition:
    return jax.tree.map(jnp.asarray, transitions(numbers))
