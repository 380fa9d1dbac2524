"""The study's own mathematics, and that a missing package has one clear error."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.errors import OffroadError
from offroad.studies.lowrank import linear, supervised
from offroad.studies.lowrank.supervised import ARMS, Setting, fit, networks, predict, squared_error

KEY = jax.random.key(0)


def test_initial_ranks_are_the_known_ones():
    # Measured before with other draws; the mean of 32 draws varies by 0.01 at depth 1 and 0.03 at depth 8.
    for activation, known in {
        "linear": (2.91, 2.62, 2.25, 1.80), "relu": (2.69, 2.03, 1.28, 0.71), "tanh": (2.97, 2.70, 2.32, 1.85),
    }.items():  # fmt: skip
        found = [linear.initial_rank(activation, depth, 64, KEY) for depth in (1, 2, 4, 8)]
        np.testing.assert_allclose(found, known, atol=0.07)
        assert np.all(np.diff(found) < 0)


def test_minimum_norm_leaves_the_share_of_directions_that_no_row_shows():
    problems = linear.Problems(list(range(200)), 32, 4, 20)
    w = linear.minimum_norm(problems.x, problems.y)
    assert problems.fit(w).max() < 1e-20
    assert problems.test(w).mean() == pytest.approx(12 / 32, abs=0.03)  # sd 0.1 over problems


def test_baselines_solve_what_they_say():
    p = linear.Problems([0, 1], 8, 2, 5)
    np.testing.assert_allclose(linear.ridge(p.x, p.y, 1e-9), linear.minimum_norm(p.x, p.y), atol=1e-5)
    strength = 0.5
    w = linear.nuclear_norm(p.x, p.y, strength, steps=3000)
    # Optimal: the gradient of the squared error is -strength times u v' on the span of w, and no larger elsewhere.
    for x, y, solution in zip(p.x, p.y, w):
        gradient = x.T @ (x @ solution - y)
        u, s, v = np.linalg.svd(solution)
        r = int((s > 1e-8).sum())
        np.testing.assert_allclose(u[:, :r].T @ gradient @ v[:r].T, -strength * np.eye(r), atol=1e-5)
        assert np.linalg.norm(gradient, 2) <= strength * (1 + 1e-5)


def test_strengths_are_chosen_with_every_row_held_out_once():
    problems, seen = linear.Problems([0, 1], 8, 2, 12), []

    def solve(x, y, strength):
        seen.append(x)
        return linear.ridge(x, y, strength)

    found = linear.tuned(solve, problems, (1e-3, 1e3))
    np.testing.assert_array_equal(found, linear.ridge(problems.x, problems.y, 1e-3))  # there is no noise
    left = [sum(bool((x == row).all(-1).any()) for x in seen[:5]) for row in problems.x[0]]
    assert left == [4] * 12


@pytest.mark.parametrize("depth", [1, 2])
def test_every_optimiser_fits(depth):
    p = linear.Problems([0, 1], 4, 1, 3)
    start = linear.factors("normal", 2, 4, depth, KEY)
    for chain in (
        linear.descend(start, p.x, p.y, "adam", 1e-2, 1500),
        linear.descend(start, p.x, p.y, "momentum", 1e-2, 1500),
        linear.quasi_newton(start, p.x, p.y, 200),
        linear.evolution(start, p.x, p.y, KEY, 600),
        linear.random_search(start, p.x, p.y, KEY, 3000),
    ):
        assert p.fit(linear.product(chain)).max() < 1e-3


def test_descent_of_one_matrix_ends_at_the_start_but_for_the_rows_span():
    p = linear.Problems([0], 8, 2, 5)
    start = linear.factors("normal", 1, 8, 1, KEY)
    w = np.asarray(linear.product(linear.descend(start, p.x, p.y, "momentum", 1e-2, 3000)))[0]
    first = np.asarray(start[0])[0]
    outside = np.eye(8) - np.linalg.pinv(p.x[0]) @ p.x[0]
    expected = linear.minimum_norm(p.x, p.y)[0] + outside @ first
    np.testing.assert_allclose(w, expected, atol=1e-3)


def test_runs_are_apart_and_predictions_are_the_networks():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 40, 3)).astype(np.float32), random.normal(size=(2, 40, 2)).astype(np.float32)
    for name in ("d=2", "dropout"):
        arm = ARMS[name]
        dropout = 0.1 if arm.dropouts else 0.0
        tried = [Setting(1e-2, dropout=dropout), Setting(1e-12, dropout=dropout)]
        nets = fit(arm, tried, (3, 8, 8, 2), [0, 1], x, y, 30, squared_error, 40)
        start = supervised.collapse(networks(arm, (3, 8, 8, 2), [0, 1]))
        kept = jax.tree.map(lambda leaf: leaf[1], nets)
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(start)):
            np.testing.assert_allclose(a, b, atol=1e-6)
        out = predict(nets, x)
        one = supervised.forward(jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 1]), nets), jnp.asarray(x[1]))
        np.testing.assert_allclose(out[0, 1], one, atol=1e-5)
        assert np.square(out[0] - y).mean() < np.square(out[1] - y).mean()


def test_rows_beyond_the_training_ones_have_no_influence():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1, 20, 3)).astype(np.float32), random.normal(size=(1, 20, 2)).astype(np.float32)
    spoilt = np.where(np.arange(20)[:, None] < 10, y, 99).astype(np.float32)
    a, b = (fit(ARMS["plain"], [Setting(1e-2)], (3, 4, 2), [0], x, t, 10, squared_error, 40) for t in (y, spoilt))
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(p, q)


def test_logs_are_changes_of_the_observation():
    x, change = supervised.log("cart-pole", 600, 0)
    assert x.shape == (600, 6)
    following = x[1:, :5] - x[:-1, :5]
    same = np.abs(following - change[:-1]).max(1) < 1e-4
    assert same.sum() >= 590  # but where an episode ended


def test_images(monkeypatch):
    pytest.importorskip("sklearn")
    x, label = supervised.images("digits")
    assert x.shape == (1797, 64)
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(np.unique(label), np.arange(10))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OffroadError, match=r"offroad\[lowrank\]"):
        supervised.images("mnist")
