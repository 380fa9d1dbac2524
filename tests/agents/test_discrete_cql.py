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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_of_a_random_mdp_are_bounded_from_below(seed):
    """With a table for a network and few, noisy data: without the gap values are too high, with it none is."""
    rng, states, actions, n = np.random.default_rng(seed), 8, 4, 120
    chance, mean = rng.dirichlet(np.full(states, 0.3), (states, actions)), rng.uniform(-1, 1, (states, actions))
    seen, action = rng.integers(0, states, n), rng.integers(0, actions, n)
    following = np.array([rng.choice(states, p=chance[s, a]) for s, a in zip(seen, action)])
    reward = (mean[seen, action] + rng.standard_normal(n)).astype(np.float32)
    data = jax.tree.map(jnp.asarray, Transition(seen, action, reward, following, np.zeros(n, bool), np.zeros(n, bool)))

    def excess(weight):
        config = DiscreteCQLConfig(
            hidden=(), weight=weight, discount=0.8, learning_rate=0.02, polyak=0.05, double=False
        )
        agent = DiscreteCQL.create(Spaces(gym_spaces.Discrete(states), gym_spaces.Discrete(actions)), config, KEY)
        step = lambda agent, _: (agent.update(data, KEY)[0], None)  # noqa: E731
        agent, _ = jax.jit(lambda agent: jax.lax.scan(step, agent, None, 2000))(agent)
        table = np.asarray(agent.network(jnp.arange(states)))
        best, rows = table.argmax(-1), np.arange(states)
        truth = np.linalg.solve(np.eye(states) - 0.8 * chance[rows, best], mean[rows, best])
        return table.max(-1) - truth

    assert excess(0.0).mean() > 0.2
    assert excess(2.0).max() < 0
