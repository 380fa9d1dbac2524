"""What all agents that learn from data alone have in common."""

import json

import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from mixed_data import CHOICE, PUSH, mean_return, mixed

from offroad.agents import AGENTS
from offroad.data import config as configs
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train import offline

KEY = jax.random.key(0)
SMALL = {"hidden": (32, 32), "batch": 64}
FAST = {"learning_rate": 3e-3, "discount": 0.9}
RATES = {"policy_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "discount": 0.9}
SETTINGS = {
    "bear": RATES | {"behaviour_learning_rate": 3e-3, "behaviour_kl": 0.1, "multiplier_learning_rate": 0.03},
    "iql": FAST | {"expectile": 0.9, "inverse_temperature": 10.0},
    "td3_bc": FAST | {"alpha": 10.0},
    "rebrac": RATES | {"policy_penalty": 0.1},
    "cql": RATES | {"samples": 4, "conservative_states": 16, "weight": 1.0, "initial_temperature": 0.1},
    "discrete_cql": FAST | {"weight": 0.2},
    "emaq": FAST | {"components": 4, "samples": 10},
}


def learnt(name, updates, **config):
    kind, config_of = AGENTS[name]
    spaces = CHOICE if name == "discrete_cql" or config.pop("choice", False) else PUSH
    agent = kind.create(spaces, config_of(**SMALL, **config), KEY)
    return offline(agent, mixed(spaces), updates, progress=False).agent


@pytest.mark.parametrize("choice", [False, True])
def test_cloning_pilots_who_disagree_fails(choice):
    assert mean_return(learnt("bc", 300, learning_rate=3e-3, choice=choice)) < -15


@pytest.mark.parametrize("name", SETTINGS)
def test_learns_from_pilots_who_disagree(name):
    """Actions at their bounds are among the data; a metric that is not finite would stop the training."""
    assert mean_return(learnt(name, 600, **SETTINGS[name])) > -5


@pytest.mark.parametrize("name", SETTINGS)
def test_configurations_survive_json(name):
    config = AGENTS[name][1](**SMALL, **SETTINGS[name])
    assert configs.from_json(type(config), json.loads(json.dumps(configs.to_json(config)))) == config


@pytest.mark.parametrize("name", SETTINGS)
def test_the_wrong_kind_of_action_is_refused(name):
    kind, config_of = AGENTS[name]
    with pytest.raises(OffroadError, match=f"{name} needs"):
        kind.create(PUSH if name == "discrete_cql" else CHOICE, config_of(), KEY)


@pytest.mark.parametrize(
    ("name", "setting"), [("cql", "samples"), ("cql", "backup_samples"), ("emaq", "samples"), ("bear", "samples")]
)
def test_no_samples_are_too_few(name, setting):
    kind, config_of = AGENTS[name]
    with pytest.raises(OffroadError, match=f"{setting} is 0, expected at least 1"):
        kind.create(PUSH, config_of(**{setting: 0}), KEY)


@pytest.mark.parametrize("name", SETTINGS)
def test_actions_are_in_the_environments_units_and_vary_only_with_a_key(name):
    kind, config_of = AGENTS[name]
    box = gym_spaces.Discrete(4, start=3) if name == "discrete_cql" else gym_spaces.Box(-2, 4, (2,))
    agent = kind.create(Spaces(gym_spaces.Box(-1, 1, (3,)), box), config_of(hidden=(8,)), KEY)
    still, memory = agent.act(np.zeros((500, 3), np.float32))
    assert memory == ()
    np.testing.assert_array_equal(still, still[:1].repeat(500, 0))
    drawn = np.asarray(agent.act(np.zeros((500, 3), np.float32), KEY)[0])
    assert np.ptp(drawn, axis=0).min() > 0
    low, high = (3, 6) if name == "discrete_cql" else (-2, 4)
    assert ((drawn >= low) & (drawn <= high)).all()
