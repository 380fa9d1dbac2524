import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from offroad.data.spaces import Spaces, from_json, to_json
from offroad.errors import OffroadError

SPACES = [
    spaces.Box(-np.inf, np.inf, (3,), np.float32),
    spaces.Box(np.array([-1.0, -np.inf, 0.25]), np.array([1.0, 2.0, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(0.0, 1.0, (0,), np.float32),
    spaces.Discrete(5, start=-2),
    spaces.MultiBinary(4),
    spaces.Dict({"b": spaces.Box(-1, np.inf, (2, 2)), "a": spaces.Dict({"c": spaces.Discrete(2)})}),
]


def strictly(text: str):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_strict_json(space):
    restored = from_json(strictly(json.dumps(to_json(space))))
    assert restored == space
    assert restored.dtype == space.dtype


def test_an_image_space_is_small():
    assert len(json.dumps(to_json(spaces.Box(0, 255, (84, 84, 3), np.uint8)))) < 200


def test_spaces_of_environments_are_hashable_and_equal_by_content():
    single, vector = gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", num_envs=3)
    one, three = Spaces.of(single), Spaces.of(vector)
    assert (one.num_envs, three.num_envs) == (1, 3)
    assert one != three
    again = Spaces.from_json(strictly(json.dumps(three.to_json())))
    assert again == three
    assert hash(again) == hash(three)
    assert (again.observation, again.action) == (one.observation, one.action)


def test_a_space_that_no_network_reads_is_named():
    with pytest.raises(OffroadError, match=r"observation space\['words'\] is a Text"):
        to_json(spaces.Dict({"words": spaces.Text(5)}), "observation space")
    with pytest.raises(OffroadError, match="kind 'graph'"):
        from_json({"kind": "graph"})
