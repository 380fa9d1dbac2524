"""Agents come back from run folders as they were saved."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from gymnasium import spaces

from offroad.agents import SAC, SACConfig, stacked
from offroad.data import config as configuration
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.restore import load_agent
from offroad.train.run import Run

SPACES = Spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), 4)
CONFIG = replace(SACConfig(), hidden=(8,))


def sac(seed):
    return SAC.create(SPACES, CONFIG, jax.random.key(seed))


def save(path, seed, tree, name="sac"):
    described = {"agent": name, "agent_config": configuration.to_json(CONFIG), "spaces": SPACES.to_json(), "seed": seed}
    with Run.create(path, described) as run:
        if tree:
            run.save(10, tree)
    return path


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(jax.tree.leaves(jax.tree.map(jnp.array_equal, one, other)))


def test_an_agent_comes_back(tmp_path):
    run = save(tmp_path / "run", 3, {"agent": sac(3)})
    assert same(load_agent(run), sac(3))
    assert not same(load_agent(run), sac(4))


def test_one_of_several_seeds(tmp_path):
    run = save(tmp_path / "run", [3, 5], {"agent": stacked([sac(3), sac(5)]), "keys": {}})
    assert same(load_agent(run), sac(3))
    assert same(load_agent(run, 1), sac(5))
    with pytest.raises(OffroadError, match="has 2 seeds, so there is no seed_index 2"):
        load_agent(run, 2)


def test_a_compiled_run_of_one_seed(tmp_path):
    assert same(load_agent(save(tmp_path / "run", 3, {"agent": stacked([sac(3)]), "keys": {}})), sac(3))


def test_a_run_without_checkpoint(tmp_path):
    with pytest.raises(OffroadError, match="has no checkpoint yet"):
        load_agent(save(tmp_path / "run", 3, None))


def test_an_agent_around_code_needs_a_template(tmp_path):
    run = save(tmp_path / "run", 3, {"agent": sac(3)}, name="residualpolicy")
    with pytest.raises(OffroadError, match="like=agent"):
        load_agent(run)
    assert same(load_agent(run, like=sac(0)), sac(3))
