from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from worlds import KEY, VECTOR, pay, random_steps, update

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.rewards import E3B, Counts, CountsConfig, E3BConfig, Fitting, Reachability, ReachabilityConfig, Scaling
from offroad.rewards.e3b import elliptical
from offroad.rewards.reachability import training_pairs

RAW = Scaling(normalise=False)
CELLS = Spaces(spaces.Discrete(5, start=2), spaces.Discrete(2), 2)
SMALL = {"hidden": (16,), "size": 4, "scaling": RAW}


def e3b(**options):
    return E3B.create(VECTOR, E3BConfig(**SMALL, **options), KEY)


def reachability(**options):
    options = {"capacity": 8, "batches": 2, "window": 3, "fit_updates": 1, **SMALL, **options}
    return Reachability.create(VECTOR, ReachabilityConfig(**options), KEY)


def frozen(**options):
    reward = reachability(**options)
    return replace(reward, fitted=jnp.int32(reward.config.fit_updates))


def counts(**options):
    return Counts.create(CELLS, CountsConfig(scaling=RAW, **options), KEY)


def visits(*worlds, done=()):
    """Walks through cells: `worlds` are the cells of each world, the first one where it starts."""
    cells = np.array(worlds).T + 2
    shape = cells[1:].shape
    end = np.zeros(shape, bool)
    for t, world in done:
        end[t, world] = True
    none = np.zeros(shape, bool)
    return Transition(cells[:-1], none.astype(int), np.zeros(shape, np.float32), cells[1:], end, none), ~none


def test_the_inverse_matrix_of_e3b_is_the_inverse_of_the_matrix():
    reward, (steps, mask) = e3b(ridge=0.3), random_steps(ends=0.15)
    bonus, paid = pay(reward, steps, mask)
    before, after = np.asarray(reward.features(steps.observation)), np.asarray(reward.features(steps.next_observation))
    done = steps.terminated | steps.truncated
    for world in range(2):
        matrix, fresh = 0.3 * np.eye(4), True
        for t in range(12):
            if not mask[t, world]:
                continue
            if fresh:
                matrix += np.outer(before[t, world], before[t, world])
            phi = after[t, world]
            np.testing.assert_allclose(bonus[t, world], phi @ np.linalg.inv(matrix) @ phi, rtol=1e-3)
            matrix += np.outer(phi, phi)
            fresh = done[t, world]
            matrix = 0.3 * np.eye(4) if fresh else matrix
        root = np.asarray(paid.memory.content[world])
        np.testing.assert_allclose(root @ root.T, np.linalg.inv(matrix), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_e3b_stays_exact_with_large_features(scale):
    """Those of an inverse model grow; in single precision C^-1 itself would then get negative eigenvalues."""
    rng = np.random.default_rng(0)
    few = rng.normal(size=(3, 16))  # places, seen again and again
    matrix, root = 0.1 * np.eye(16), jnp.eye(16)[None] / np.sqrt(0.1)
    for _ in range(200):
        phi = (scale * (few[rng.integers(3)] + 0.05 * rng.normal(size=16))).astype(np.float32)
        bonus, root = elliptical(root, jnp.asarray(phi)[None])
        exact = phi.astype(float)
        np.testing.assert_allclose(bonus[0], exact @ np.linalg.solve(matrix, exact), rtol=0.01)
        matrix += np.outer(exact, exact)


@pytest.mark.parametrize("make", [e3b, frozen, lambda: frozen(kind="comparator"), lambda: counts(episodic=True)])
def test_a_rollout_in_two_parts_is_paid_like_a_whole_one(make):
    """Memories cross the border between rollouts and are empty after the end of an episode."""
    reward = make()
    steps, mask = random_steps(reward.spaces)
    whole, after = pay(reward, steps, mask)
    parts = []
    for part in (slice(0, 5), slice(5, 12)):
        bonus, reward = pay(reward, *jax.tree.map(lambda x: x[part], (steps, mask)))  # noqa: B023
        parts.append(bonus)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4)
    # The worlds do not know each other, and a new episode knows nothing of the one before.
    last = int(np.flatnonzero((steps.terminated | steps.truncated)[:, 0] & mask[:, 0])[-1])
    tail = jax.tree.map(lambda x: x[last + 1 :, :1], (steps, mask))
    np.testing.assert_allclose(pay(make().begin(1), *tail)[0][:, 0], whole[last + 1 :, 0], rtol=1e-4)
    assert after.episodic


def test_a_fake_step_between_episodes_leaves_no_trace():
    """NEXT_STEP autoreset: the step from the last observation to the first one of the next episode is none."""
    reward, (steps, mask) = frozen(), random_steps(ends=0.0)
    mask = np.ones_like(mask)
    steps.terminated[4] = True
    mask[5] = False
    without = jax.tree.map(lambda x: np.delete(x, 5, axis=0), (steps, mask))
    bonus, _ = pay(reward, steps, mask)
    assert np.all(np.asarray(bonus)[5] == 0)
    np.testing.assert_array_equal(np.delete(np.asarray(bonus), 5, axis=0), pay(reward, *without)[0])


def test_a_place_pays_once_in_an_episode():
    reward, (steps, _) = frozen(threshold=0.9), random_steps(time=4, ends=0.0)
    here, there = (np.broadcast_to(np.float32(x), (2, 3)) for x in ([1, -1, 2], [-2, 1, 0.5]))
    steps = replace(
        steps,
        observation=np.stack([here, there, here, there]),
        next_observation=np.stack([there, here, there, here]),
        terminated=np.array([[0, 0], [0, 1], [0, 0], [0, 0]], bool),
    )
    bonus, paid = pay(reward, steps, np.ones((4, 2), bool))
    np.testing.assert_array_equal(bonus, [[1, 1], [0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(paid.memory.content.count, [2, 2])


def test_a_full_memory_makes_room():
    reward, (steps, mask) = frozen(threshold=1.1, capacity=3), random_steps(ends=0.0)
    _, paid = pay(reward, steps, np.ones_like(mask))
    np.testing.assert_array_equal(paid.memory.content.count, [3, 3])
    lengths = np.linalg.norm(paid.memory.content.slots, axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-4)


@pytest.mark.parametrize("kind", ["contrastive", "comparator"])
def test_reachability_learns_what_is_near_and_freezes(kind):
    """A walk along a line: neighbours in time are neighbours on the line."""
    time = 64
    where = np.linspace(-2, 2, time + 1, dtype=np.float32)
    path = np.stack([where, -where], 1)[..., None] * np.float32([1, 0, 0])
    none = np.zeros((time, 2), bool)
    steps = Transition(path[:-1], none.astype(int), np.zeros((time, 2), np.float32), path[1:], none, none)
    fitting = Fitting(minibatch=64, learning_rate=1e-2)
    reward = reachability(kind=kind, fitting=fitting, gap=2, window=4)
    assert np.all(pay(reward, steps, ~none)[0] == 0)  # not before it is frozen
    learnt, loss = reward.fit(steps, ~none, KEY, batches=100)
    assert loss < 0.9 * reward.fit(steps, ~none, KEY, batches=1)[1]
    again, metrics = update(learnt, steps, ~none)
    assert metrics["frozen"] == 1
    for a, b in zip(jax.tree.leaves(learnt), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)
    bonus = np.asarray(pay(learnt, steps, ~none)[0])
    assert bonus.max() > 0
    if kind == "contrastive":
        assert set(np.unique(bonus)) == {0.0, 1.0}
        z = np.asarray(learnt.embed(path[:, 0]))
        assert (z[0] * z[1]).sum() > 0.9 > (z[0] * z[-1]).sum()


def test_strangers_are_drawn_over_all_of_an_episode_that_is_far():
    config = ReachabilityConfig(kind="comparator", window=3, gap=2, fitting=Fitting(minibatch=20_000))
    episode = np.repeat([0, 1], [30, 10])[:, None] * [1, 0]  # world 0 has two episodes, world 1 a single one
    mask = np.ones((40, 2), bool)
    mask[7, 0] = False
    now = jnp.asarray(mask), jnp.asarray(episode)
    world, first, second, valid, far = map(np.asarray, training_pairs(config, *now, KEY))
    assert (episode[first, world] == episode[second, world])[valid].all()
    assert mask[first, world][valid].all()
    assert mask[second, world][valid].all()
    apart, alone = second - first, valid & (world == 1)
    assert set(apart[valid & ~far]) == {1, 2, 3}
    assert set(apart[alone & far]) == set(range(7, 40))
    # All pairs of steps that are far from each other are equally likely: of distance d there are 40 - d.
    share = np.bincount(apart[alone & far], minlength=40)[7:] / (alone & far).sum()
    np.testing.assert_allclose(share, np.arange(33, 0, -1) / (33 * 34 / 2), atol=0.01)
    assert 0.48 < far.mean() < 0.52
    contrastive = training_pairs(replace(config, kind="contrastive"), *now, KEY)
    assert not np.any(contrastive[4])


def test_near_and_far_count_alike():
    """A comparator that says 0.5 of every pair has the loss log 2, and no pull, however few pairs are far."""
    reward, (steps, _) = reachability(kind="comparator", gap=3, window=3), random_steps(ends=0.0)
    last = jax.tree.map(jnp.zeros_like, reward.model.comparator.layers[-1])
    model = eqx.tree_at(lambda m: m.comparator.layers[-1], reward.model, last)
    everywhere, episode = jnp.ones((12, 2), bool), jnp.zeros((12, 2), int)
    loss, pull = jax.value_and_grad(reward._loss)(model, steps, everywhere, episode, KEY)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    np.testing.assert_allclose(pull.comparator.layers[-1].bias, 0, atol=1e-6)


def test_updates_teach_reachability_until_it_is_frozen():
    reward, (steps, mask) = reachability(fit_updates=2), random_steps()
    seen = []
    for _ in range(3):
        before = np.asarray(reward.model.features.head.layers[0].weight)
        reward, _ = update(reward, steps, mask)
        seen.append(not np.array_equal(before, reward.model.features.head.layers[0].weight))
    assert seen == [True, True, False]


def test_counts_are_exact():
    reward = counts()
    steps, mask = visits([0, 1, 1, 4], [0, 1, 2, 2])
    bonus, paid = pay(reward, steps, mask)
    np.testing.assert_array_equal(bonus, 1)  # what was known before
    learnt, metrics = update(paid, steps, mask)
    np.testing.assert_array_equal(learnt.table, [0, 3, 2, 0, 1])
    assert metrics["cells_seen"] == 3
    bonus, _ = pay(learnt, steps, mask)
    np.testing.assert_allclose(bonus, 1 / np.sqrt(1 + np.array([[3, 3], [3, 2], [1, 2]])), rtol=1e-6)
    unseen, _ = update(reward, steps, ~mask)
    np.testing.assert_array_equal(unseen.table, 0)


def test_counts_within_an_episode_are_exact_to_the_step():
    steps, mask = visits([0, 1, 0, 1, 1], [0, 1, 1, 1, 1], done=[(1, 1)])
    bonus, _ = pay(counts(episodic=True), steps, mask)
    # World 1 ends after its second step; its next episode begins in cell 1, which is then known.
    expected = np.array([[0, 0], [1, 1], [1, 1], [2, 2]])
    np.testing.assert_allclose(bonus, 1 / np.sqrt(1 + expected), rtol=1e-6)


def test_boxes_are_counted_in_a_grid():
    config = CountsConfig(bins=4, columns=(0, 2), low=(-1.0, 0.0), high=(1.0, 2.0))
    reward = Counts.create(VECTOR, config, KEY)
    points = np.float32([[-1, 9, 0], [-0.51, 0, 0.49], [0.99, 0, 1.99], [7, 0, -3]])
    np.testing.assert_array_equal(reward.cell(points), [0, 0, 15, 3])
    with pytest.raises(OffroadError, match="more than 10000000; use fewer bins"):
        Counts.create(VECTOR, CountsConfig(bins=1000), KEY)
    with pytest.raises(OffroadError, match="finite bounds"):
        Counts.create(Spaces(spaces.Box(-np.inf, np.inf, (2,)), VECTOR.action, 1), CountsConfig(), KEY)
