import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from offroad.nets.normalise import ObservationNorm, ReturnNorm, RunningMoments

RNG = np.random.default_rng(0)
update = jax.jit(lambda moments, batch: moments.update(batch))


def close(a: RunningMoments, mean, var, count, rtol=1e-5):
    np.testing.assert_allclose(a.mean, mean, rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(a.var, var, rtol=rtol)
    assert a.count == count


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_all_data_in_any_order_and_batching(offset):
    data = (offset + RNG.normal(size=(60, 4)) * [0.1, 1, 3, 10]).astype(np.float32)
    exact = data.astype(np.float64)
    for order in (np.arange(60), RNG.permutation(60)):
        for cuts in ([], [20, 40], [30]):
            moments = RunningMoments.create((4,))
            for part in np.split(data[order], cuts):
                moments = update(moments, jnp.asarray(part))
            close(moments, exact.mean(0), exact.var(0), 60, rtol=1e-5 if offset == 0 else 2e-2)


def test_leading_axes_and_merging_do_not_matter():
    data = jnp.asarray(RNG.normal(size=(6, 5, 3)).astype(np.float32))
    once = RunningMoments.create((3,)).update(data)
    halves = [RunningMoments.create((3,)).update(part) for part in (data[:2], data[2:])]
    close(once, data.reshape(30, 3).mean(0), data.reshape(30, 3).var(0), 30)
    close(halves[0].merge(halves[1]), once.mean, once.var, 30)
    close(halves[1].merge(halves[0]), once.mean, once.var, 30)


def test_masked_samples_do_not_count_even_if_nan():
    data = RNG.normal(size=(10, 3)).astype(np.float32)
    mask = np.arange(10) % 3 != 0
    dirty = np.where(mask[:, None], data, np.nan)
    moments = RunningMoments.create((3,)).update(jnp.asarray(dirty), jnp.asarray(mask))
    close(moments, data[mask].mean(0), data[mask].var(0), mask.sum())
    unchanged = moments.update(jnp.asarray(dirty), jnp.zeros(10, bool))
    close(unchanged, moments.mean, moments.var, mask.sum())


def test_many_samples_keep_float32_accurate():
    moments = RunningMoments.create()
    batch = jnp.asarray(RNG.normal(100, 0.5, size=1000).astype(np.float32))
    moments = jax.lax.fori_loop(0, 5000, lambda _, m: m.update(batch), moments)
    close(moments, batch.mean(), np.float64(batch).var(), 5e6, rtol=1e-3)


def test_observations_are_normalised_where_they_are_floats():
    space = spaces.Dict(
        image=spaces.Box(0, 255, (4, 4, 3), np.uint8),
        kind=spaces.Discrete(5),
        state=spaces.Box(-np.inf, np.inf, (3,), np.float64),
    )
    batch = {
        "image": jnp.asarray(RNG.integers(0, 255, (7, 2, 4, 4, 3), np.uint8)),
        "kind": jnp.asarray(RNG.integers(0, 5, (7, 2))),
        "state": jnp.asarray(RNG.normal(3, 2, (7, 2, 3)).astype(np.float32)),
    }
    norm = jax.jit(lambda n, b: n.update(b))(ObservationNorm.create(space), batch)
    out = norm(batch)
    np.testing.assert_array_equal(out["image"], batch["image"])
    assert out["image"].dtype == jnp.uint8
    np.testing.assert_array_equal(out["kind"], batch["kind"])
    flat = out["state"].reshape(-1, 3)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(flat.std(0), 1, rtol=1e-5)
    far = norm(batch | {"state": jnp.full((1, 1, 3), 1e9)})["state"]
    np.testing.assert_array_equal(far, jnp.full((1, 1, 3), 10.0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(norm))


def test_a_fresh_observation_norm_only_clips():
    norm = ObservationNorm.create(spaces.Box(-20, 20, (2,)))
    np.testing.assert_allclose(norm(jnp.array([[0.5, -15.0]])), [[0.5, -10.0]])


def test_return_scale_equals_the_loop_over_environments():
    gamma, steps, envs = 0.9, 30, 3
    reward = RNG.normal(1, 2, (steps, envs)).astype(np.float32)
    done = RNG.random((steps, envs)) < 0.2
    mask = RNG.random((steps, envs)) < 0.9
    seen, running = [], np.zeros(envs)
    for t in range(steps):
        for i in range(envs):
            if mask[t, i]:
                running[i] = gamma * running[i] + reward[t, i]
                seen.append(running[i])
                running[i] *= not done[t, i]
    norm = ReturnNorm.create(envs)
    for part in (slice(0, 11), slice(11, None)):
        norm = norm.update(jnp.asarray(reward[part]), jnp.asarray(done[part]), gamma, jnp.asarray(mask[part]))
    np.testing.assert_allclose(norm.discounted, running, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.scale, 1 / np.std(seen), rtol=1e-4)


def test_a_reward_scale_of_any_size_is_removed():
    reward = jnp.asarray(RNG.normal(size=(50, 4)).astype(np.float32))
    done = jnp.zeros((50, 4), bool)
    scaled = [s * reward * ReturnNorm.create(4).update(s * reward, done, 0.99).scale for s in (1.0, 1000.0)]
    np.testing.assert_allclose(scaled[0], scaled[1], rtol=1e-4)
