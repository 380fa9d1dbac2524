"""CQL's theorem 3.2 on random MDPs, with the agent's own loss.

A table for the critic (bins of a one-dimensional action, one-hot) and a fixed policy whose actions are pushed down make
the loss that of the theorem. Its alpha must outweigh the sampling error of the data; here that error is known exactly.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from jax.scipy.stats import norm

from offroad.agents.cql import CQL, CQLConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.encoder import Encoder, Flat

STATES, BINS, ROWS, MDPS, GAMMA = 5, 3, 100, 5, 0.8
SPACES = Spaces(gym_spaces.Discrete(STATES), gym_spaces.Box(-1, 1, (1,)))


class Cells(Encoder):
    """State and action -> one-hot of the state and the action's bin."""

    size: int = eqx.field(static=True, default=STATES * BINS)

    def __call__(self, observation):
        place = jnp.clip(jnp.floor((observation["action"][..., 0] + 1) / 2 * BINS), 0, BINS - 1)
        return jax.nn.one_hot(observation["observation"] * BINS + place.astype(int), self.size)


class Table(Flat):
    """A critic on it without hidden layers has a number for every state and bin; all else is flat."""

    def build(self, space, key):
        return Cells() if isinstance(space, gym_spaces.Dict) else super().build(space, key)


CONFIG = CQLConfig(
    hidden=(), critics=1, batch=ROWS, weight=1.0, query="policy", samples=4, discount=GAMMA, polyak=0.05,
    critic_learning_rate=0.03, policy_learning_rate=0.0, encoder=Table(),
)  # fmt: skip


class Case:
    """A random MDP, data of it, a policy, and what follows from them exactly."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.mean, self.log_std = rng.uniform(-1, 1, STATES), np.log(rng.uniform(0.3, 0.8, STATES))
        edges = np.r_[-np.inf, np.arctanh(np.linspace(-1, 1, BINS + 1)[1:-1]), np.inf]
        self.policy = np.diff(norm.cdf((edges - self.mean[:, None]) / np.exp(self.log_std)[:, None]), axis=1)
        chance = rng.dirichlet(np.full(STATES, 0.5), (STATES, BINS))
        reward = rng.uniform(-1, 1, (STATES, BINS))
        behaviour = rng.dirichlet(np.full(BINS, 2.0), STATES)

        # Every state and bin is in the data at least once.
        state, place = (x.ravel() for x in np.indices((STATES, BINS)))
        more = rng.integers(STATES, size=ROWS - len(state))
        place = np.append(place, [rng.choice(BINS, p=behaviour[s]) for s in more])
        state = np.append(state, more)
        after = np.array([rng.choice(STATES, p=chance[s, a]) for s, a in zip(state, place)])
        paid = reward[state, place] + rng.standard_normal(ROWS)
        action = -1 + 2 * (place + rng.uniform(0.1, 0.9, ROWS)) / BINS
        never = np.zeros(ROWS, bool)
        self.data = Transition(state, np.float32(action[:, None]), np.float32(paid), after, never, never)

        counts, seen, earned = np.zeros((STATES, BINS)), np.zeros(chance.shape), np.zeros((STATES, BINS))
        np.add.at(counts, (state, place), 1)
        np.add.at(seen, (state, place, after), 1)
        np.add.at(earned, (state, place), paid)
        self.seen, self.earned = seen / counts[..., None], earned / counts
        self.value = self.evaluated(chance, reward)
        self.excess = (self.policy**2 * counts.sum(1, keepdims=True) / counts).sum(1) - 1  # D_CQL, at least 0
        error = self.expected(self.earned - reward + GAMMA * (self.seen - chance) @ self.value)
        self.alpha = max((error / self.excess).max(), 0)

    def expected(self, table):
        return (self.policy * table).sum(1)

    def evaluated(self, chance, reward):
        moves = np.einsum("sa,sat->st", self.policy, chance)
        return np.linalg.solve(np.eye(STATES) - GAMMA * moves, self.expected(reward))

    def learnt_value(self, alpha):
        """The theorem's fixed point: the data's MDP with alpha * D_CQL less reward."""
        return self.evaluated(self.seen, self.earned - alpha * self.excess[:, None])


def misled(case):
    """Whether the data make some state look better than it is, as a third do. Large alphas would take long to learn."""
    return (case.learnt_value(0) - case.value).max() > 0.3 and 0 < case.alpha < 1


CASES = [case for case in map(Case, range(40)) if misled(case)][:MDPS]
ALPHAS = np.array([[0, 1.2 * case.alpha] for case in CASES])


@pytest.fixture(scope="module")
def values():
    """`[MDP, alpha, state]`: the policy's values by the critic that CQL learns; the mean over its last updates."""

    def learn(data, mean, log_std, alpha, key):
        agent = CQL.create(SPACES, CONFIG, key)
        layer = agent.actor.head.layers[0]
        table = (jnp.stack([mean, log_std]).astype(jnp.float32), jnp.zeros(2))
        agent = eqx.tree_at(lambda a: (a.actor.head.layers[0].weight, a.actor.head.layers[0].bias), agent, table)
        assert layer.weight.shape == table[0].shape
        agent = replace(agent, log_multiplier=jnp.log(alpha).astype(jnp.float32))  # times a weight of 1

        def step(agent, key):
            agent, _ = agent.update(data, key)
            head = agent.critics.head.layers[0]
            return agent, head.weight.reshape(STATES, BINS) + head.bias[0]

        _, tables = jax.lax.scan(step, agent, jax.random.split(key, 2500))
        return jnp.mean(tables[1500:], axis=0)

    data = jax.tree.map(lambda *x: jnp.stack(x), *(case.data for case in CASES))
    mean, log_std = (jnp.stack([getattr(case, name) for case in CASES]) for name in ("mean", "log_std"))
    both = jax.vmap(learn, in_axes=(None, None, None, 0, None))
    tables = jax.jit(jax.vmap(both, in_axes=(0, 0, 0, 0, None)))(
        data, mean, log_std, jnp.asarray(ALPHAS), jax.random.key(0)
    )
    return np.stack([[case.expected(table) for table in pair] for case, pair in zip(CASES, np.asarray(tables))])


def test_the_loss_has_the_theorems_fixed_point(values):
    expected = np.stack([[case.learnt_value(a) for a in pair] for case, pair in zip(CASES, ALPHAS)])
    np.testing.assert_allclose(values, expected, atol=0.06)


def test_with_the_theorems_alpha_no_visited_state_is_overestimated(values):
    for case, (_, found) in zip(CASES, values):
        assert (found <= case.value + 0.02).all()


def test_without_it_states_are_overestimated(values):
    for case, (found, _) in zip(CASES, values):
        assert (found > case.value + 0.2).any()
