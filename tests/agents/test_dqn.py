import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from jax_envs import cartpole
from tiny import distance, eight

from offroad.agents.dqn import DQN, DQNConfig
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.evaluate import evaluate
from offroad.train.off_policy import off_policy

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Discrete(4, start=2))
update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def make(**config):
    return DQN.create(SPACES, DQNConfig(hidden=(16,), batch=8, **config), KEY)


def batch(**changes):
    values = {"action": jax.random.randint(jax.random.key(1), (8,), 2, 6), "reward": 3 * eight().reward}
    return eight(**values | changes)


@pytest.mark.parametrize("double", [True, False])
def test_the_loss_is_huber_on_the_papers_target(double):
    agent = make(double=double, discount=0.9, target_every=1000, learning_rate=1e-2)
    for _ in range(50):  # so that the network and its target differ
        agent, _ = update(agent, batch(), KEY)
    data = batch()
    online, frozen = (
        np.asarray(agent.network(data.next_observation)),
        np.asarray(agent.target_network(data.next_observation)),
    )
    assert np.any(online.argmax(-1) != frozen.argmax(-1))
    chosen = (online if double else frozen).argmax(-1)
    target = data.reward + 0.9 * np.where(data.terminated, 0, frozen[np.arange(8), chosen])
    error = np.abs(np.asarray(agent.network(data.observation))[np.arange(8), data.action - 2] - target)
    expected = np.mean(np.where(error < 1, 0.5 * error**2, error - 0.5))
    _, metrics = update(agent, data, KEY)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    _, other = update(agent, batch(truncated=~data.truncated), KEY)
    assert other["loss"] == metrics["loss"]


def test_the_target_is_copied_every_so_many_updates():
    start = agent = make(target_every=3)
    for count in range(1, 7):
        previous = agent
        agent, _ = update(agent, batch(), KEY)
        if count % 3:
            assert distance(agent.target_network, previous.target_network) == 0
        else:
            assert distance(agent.target_network, agent.network) == 0
    assert distance(agent.target_network, start.target_network) > 0


def test_epsilon_falls_linearly_with_updates_and_only_explores_with_a_key():
    agent = make(epsilon_updates=10, final_epsilon=0.2)
    observation = jnp.zeros((4000, 3))
    greedy, memory = agent.act(observation)
    assert memory == ()
    assert len(np.unique(greedy)) == 1
    found = []
    for _ in range(15):
        found.append(float(agent.epsilon))
        agent, _ = update(agent, batch(), KEY)
    np.testing.assert_allclose(found, np.maximum(1 - 0.08 * np.arange(15), 0.2), rtol=1e-5)
    first, _ = make().act(observation, KEY)
    np.testing.assert_allclose(np.bincount(first)[2:] / 4000, 0.25, atol=0.03)
    greedy, _ = agent.act(observation)
    explored, _ = agent.act(observation, KEY)
    np.testing.assert_allclose(np.mean(np.asarray(explored != greedy)), 0.2 * 3 / 4, atol=0.02)
    assert greedy[0] == 2 + jnp.argmax(agent.network(observation[0]))


def test_dueling_advantages_average_to_zero():
    network = make(dueling=True).network
    x = jax.random.normal(KEY, (5, 3))
    np.testing.assert_allclose(network(x).mean(-1), network.value(x)[:, 0], atol=1e-6)
    assert make().network.value is None
    agent, _ = update(make(dueling=True), batch(), KEY)
    assert distance(agent.network.value, network.value) > 0


def test_continuous_actions_are_refused():
    with pytest.raises(OffroadError, match="dqn needs a Discrete"):
        DQN.create(Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-1, 1, (2,))), DQNConfig(), KEY)


def test_learns_to_balance_a_pole():
    env = cartpole()
    config = DQNConfig(batch=128, learning_rate=5e-4, discount=0.97, target_every=100, epsilon_updates=1_000)
    agent = DQN.create(Spaces.of(env), config, KEY)
    result = off_policy(agent, env, 10_000, learning_starts=1_000, train_every=16, update_ratio=0.5, progress=False)
    assert evaluate(agent, cartpole(), 16).returns.mean() < 30  # as random actions
    assert evaluate(result.agent, cartpole(), 16).returns.mean() > 100
