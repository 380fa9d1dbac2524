"""Ranks: exact cases, and that any agent can be measured."""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.agents import AGENTS, BC, BCConfig
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.overparameterize import collapse, expand
from offroad.nets.spectrum import effective_rank, gram_rank, singular_values, spectrum, srank, stable_rank

KEY = jax.random.key(0)
BOX = gym.spaces.Box(-1, 1, (6,))


def test_exact_ranks():
    assert effective_rank(np.ones(8)) == pytest.approx(np.log(8))
    assert effective_rank(np.array([5.0, 0.0, 0.0])) == 0
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert stable_rank(np.ones(8)) == pytest.approx(8)
    assert stable_rank(np.array([2.0, 1.0])) == pytest.approx(1.25)
    assert srank(np.ones(8)) == 8
    assert srank(np.array([90.0, 9.5, 0.5])) == 2  # the two make up 99.5 %
    assert srank(np.array([0.5, 9.5, 90.0]), delta=0.2) == 1
    assert np.isnan(effective_rank(np.zeros(3)))


def test_ranks_do_not_depend_on_scale_rotation_or_order():
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 8))
    q, _ = np.linalg.qr(random.normal(size=(8, 8)))
    for rank in (effective_rank, stable_rank, srank):
        assert rank(singular_values(3 * x @ q)) == pytest.approx(rank(singular_values(x.T)), rel=1e-9)
    lengths = random.uniform(0.1, 10, (20, 1))
    assert gram_rank(lengths * x[random.permutation(20)] @ q) == pytest.approx(gram_rank(x), abs=1)
    assert gram_rank(lengths * x) == pytest.approx(gram_rank(x), rel=1e-9)


def test_singular_values_agree_with_the_decomposition():
    x = np.random.default_rng(0).normal(size=(3, 12, 5))
    found, expected = np.sort(singular_values(x), -1), np.sort(np.linalg.svd(x, compute_uv=False), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_has_a_spectrum(name):
    kind, config = AGENTS[name]
    actions = gym.spaces.Discrete(3) if name in ("dqn", "discrete_cql") else gym.spaces.Box(-1, 1, (2,))
    agent = kind.create(Spaces(BOX, actions, 4), config(hidden=(12, 10)), KEY)
    found = spectrum(agent, np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    assert all(np.isfinite(value) for value in found.values())
    assert not any("target" in path or "optimiser" in path for path in found)
    heads = [path for path in found if path.endswith("/srank")]
    assert heads
    assert all(1 <= found[path] <= 10 for path in heads)


def test_features_are_what_the_last_layer_sees():
    agent = BC.create(Spaces(BOX, gym.spaces.Box(-1, 1, (2,)), 4), BCConfig(hidden=(12, 10)), KEY)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    layers, found = agent.policy.head.layers, spectrum(agent, x)
    features = x
    for layer in layers[:-1]:
        features = jax.nn.relu(features @ layer.weight.T + layer.bias)
    assert found["policy.head/effective_rank"] == pytest.approx(float(gram_rank(features)), rel=1e-5)
    assert found["policy.head/srank"] == srank(np.linalg.svd(features, compute_uv=False))
    weight = effective_rank(np.linalg.svd(layers[1].weight, compute_uv=False))
    assert found["policy.head.layers[1]/effective_rank"] == pytest.approx(float(weight), rel=1e-4)


def test_expansion_lowers_the_rank_of_weights_and_collapsing_changes_no_rank():
    agent = BC.create(Spaces(BOX, gym.spaces.Box(-1, 1, (2,)), 4), BCConfig(hidden=(32, 32)), KEY)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    grown = expand(agent, 4, key=KEY)
    plain, deep, collapsed = spectrum(agent, x), spectrum(grown, x), spectrum(collapse(grown), x)
    name = "policy.head.layers[1]/effective_rank"
    assert deep[name] < plain[name] - 0.3
    assert deep == pytest.approx(collapsed, rel=1e-4)


def test_networks_alone_and_gates():
    found = spectrum(eqx.nn.GRUCell(4, 6, key=KEY), jnp.zeros((2, 4)))
    assert sorted(found) == [
        "weight_hh/effective_rank", "weight_hh/stable_rank", "weight_ih/effective_rank", "weight_ih/stable_rank"
    ]  # fmt: skip
    with pytest.raises(OffroadError, match="no layer"):
        spectrum(eqx.nn.LayerNorm(3), jnp.zeros((2, 3)))
