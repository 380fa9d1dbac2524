import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from offroad.errors import OffroadError
from offroad.nets.critic import Critic
from offroad.nets.encoder import Flat, Pixels
from offroad.nets.relational import Slots

ACTION = spaces.Box(-3, 5, (2,))
VECTOR = spaces.Box(-1, 1, (4, 3))
PARTS = spaces.Dict(a=spaces.Box(-1, 1, (3,)), camera=spaces.Box(0, 255, (12, 12, 3), np.uint8), z=spaces.Discrete(4))
KEY = jax.random.key(0)


@pytest.mark.parametrize("space", [VECTOR, PARTS, spaces.Discrete(5)])
def test_the_value_of_every_kind_of_observation_depends_on_it_and_on_the_action(space):
    critic = Critic(space, ACTION, Flat(Pixels((4,), (3,), (2,), 8)), (16,), KEY)
    space.seed(0)
    observation = jax.tree.map(lambda *x: np.stack(x), *(space.sample() for _ in range(10)))
    action = jax.random.uniform(KEY, (10, 2), minval=-1)
    values = critic(observation, action)
    assert values.shape == (10,)
    assert np.all(np.abs(critic(observation, -action) - values) > 1e-6)
    assert np.std(critic(observation, jnp.zeros((10, 2)))) > 1e-3
    stacked = jax.tree.map(lambda x: x.reshape(5, 2, *x.shape[1:]), (observation, action))
    np.testing.assert_allclose(critic(*stacked), values.reshape(5, 2), atol=1e-5)


def test_flat_encoders_put_the_action_beside_the_observation():
    critic = Critic(VECTOR, ACTION, Flat(), (16,), KEY)
    assert critic.head.layers[0].in_features == 14
    observation, action = jax.random.normal(KEY, (5, 4, 3)), jax.random.normal(KEY, (5, 2))
    expected = critic.head(jnp.concatenate([action, observation.reshape(5, 12)], -1))[:, 0]
    np.testing.assert_allclose(critic(observation, action), expected, atol=1e-6)


def test_an_observation_may_not_be_called_action():
    with pytest.raises(OffroadError, match="named 'action'"):
        Critic(spaces.Dict(action=VECTOR), ACTION, Flat(), (16,), KEY)


@pytest.mark.parametrize("space", [VECTOR, PARTS, spaces.Discrete(5)])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_values_of_several_actions_are_those_of_one_after_the_other(space, layer_norm):
    critic = Critic(space, ACTION, Flat(Pixels((4,), (3,), (2,), 8)), (16, 8), KEY, layer_norm)
    space.seed(0)
    observation = jax.tree.map(lambda *x: np.stack(x), *(space.sample() for _ in range(6)))
    actions = jax.random.uniform(KEY, (3, 6, 2), minval=-1)
    expected = np.stack([critic(observation, action) for action in actions])
    np.testing.assert_allclose(critic.values(observation, actions), expected, atol=1e-5)


def test_values_of_several_actions_of_entities():
    space = spaces.Dict(objects=spaces.Box(-1, 1, (3, 5)), robot=spaces.Box(-1, 1, (2,)))
    critic = Critic(space, ACTION, Slots(), (8,), KEY)
    space.seed(0)
    observation = jax.tree.map(lambda *x: np.stack(x), *(space.sample() for _ in range(4)))
    actions = jax.random.uniform(KEY, (3, 4, 2), minval=-1)
    expected = np.stack([critic(observation, action) for action in actions])
    np.testing.assert_allclose(critic.values(observation, actions), expected, atol=1e-5)
