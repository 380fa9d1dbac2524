import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Discrete(4, start=2))
update = jax.jit(DiscreteCQL.update)


@pytest.mark.parametrize("double", [True, False])
def test_the_loss_is_the_papers(double):
    rng = np.random.default_rng(0)
    seen, following = rng.standard_normal((2, 8, 3)).astype(np.float32)
    reward, ended = rng.standard_normal(8).astype(np.float32), np.arange(8) % 3 == 0
    data = Transition(seen, rng.integers(2, 6, 8), reward, following, ended, ~ended)
    config = DiscreteCQLConfig(hidden=(8,), weight=0.7, discount=0.9, double=double)
    agent = DiscreteCQL.create(SPACES, config, KEY)
    agent = dataclasses.replace(agent, target_network=DiscreteCQL.create(SPACES, config, jax.random.key(1)).network)
    online, frozen = np.asarray(agent.network(following)), np.asarray(agent.target_network(jnp.asarray(following)))
    assert (online.argmax(-1) != frozen.argmax(-1)).any()
    chosen = (online if double else frozen).argmax(-1)
    target = reward + 0.9 * np.where(ended, 0, frozen[np.arange(8), chosen])
    values = np.asarray(agent.network(seen))
    value = values[np.arange(8), data.action - 2]
    gap = np.log(np.exp(values).sum(-1)) - value
    _, metrics = update(agent, data, KEY)
    np.testing.assert_allclose(metrics["gap"], gap.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 0.7 * gap.mean() + 0.5 * np.mean((value - target) ** 2), rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_table_of_values_solves_the_papers_equation(weight):
    """Q = target - alpha (pi / behaviour - 1) with pi the softmax of Q: under pi states are worth less than the target.

    On a random MDP, with a table for a network. Without the gap the values are just their targets.
    """
    rng, states, actions, n = np.random.default_rng(0), 6, 3, 400
    chance, mean = rng.dirichlet(np.full(states, 0.3), (states, actions)), rng.uniform(-1, 1, (states, actions))
    seen, action = rng.integers(0, states, n), rng.choice(actions, n, p=[0.6, 0.3, 0.1])
    following = np.array([rng.choice(states, p=chance[s, a]) for s, a in zip(seen, action)])
    reward = (mean[seen, action] + rng.standard_normal(n)).astype(np.float32)
    never = np.zeros(n, bool)
    data = jax.tree.map(jnp.asarray, Transition(seen, action, reward, following, never, never))
    config = DiscreteCQLConfig(hidden=(), weight=weight, discount=0.8, learning_rate=0.02, polyak=0.05)
    agent = DiscreteCQL.create(Spaces(gym_spaces.Discrete(states), gym_spaces.Discrete(actions)), config, KEY)
    step = lambda agent, _: (agent.update(data, KEY)[0], None)  # noqa: E731
    agent, _ = jax.jit(lambda agent: jax.lax.scan(step, agent, None, 1500))(agent)

    table = np.asarray(agent.network(jnp.arange(states)))
    backup, counts, total = reward + 0.8 * table.max(-1)[following], np.zeros(table.shape), np.zeros(table.shape)
    np.add.at(counts, (seen, action), 1)
    np.add.at(total, (seen, action), backup)
    assert counts.min() > 0
    target, behaviour = total / counts, counts / counts.sum(-1, keepdims=True)
    policy = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    np.testing.assert_allclose(table, target - weight * (policy / behaviour - 1), atol=0.02)
    if weight:
        assert ((policy * (table - target)).sum(-1) < -0.005).all()
