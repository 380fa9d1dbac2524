import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces

from offroad.agents.emaq import EMaQ, EMaQConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

KEY = jax.random.key(0)
SPACES = Spaces(gym_spaces.Box(-1, 1, (3,)), gym_spaces.Box(-2, 4, (2,)))
CONFIG = EMaQConfig(hidden=(8,), samples=6, components=3, pessimism=0.75, discount=0.9)


def values(critics, observation, actions):
    """`[critic, sample, row]`, one sample at a time."""
    members = [jax.tree.map(lambda x, i=i: x[i], critics) for i in (0, 1)]
    return np.stack([[critic(observation, action) for action in actions] for critic in members])


def test_the_losses_and_the_best_of_the_proposals():
    rng = np.random.default_rng(0)
    seen, following = jnp.asarray(rng.standard_normal((2, 8, 3)), jnp.float32)
    action, reward = jnp.asarray(rng.uniform(-2, 4, (8, 2)), jnp.float32), jnp.asarray(rng.normal(size=8), jnp.float32)
    ended = jnp.arange(8) % 3 == 0
    agent, unit = EMaQ.create(SPACES, CONFIG, KEY), (action - 1) / 3
    _, metrics = jax.jit(EMaQ.update)(agent, Transition(seen, action, reward, following, ended, ~ended), KEY)

    proposals = agent.behaviour.propose(following, *agent._noises(KEY, 8))
    assert proposals.shape == (6, 8, 2)
    worth = values(agent.target_critics, following, proposals)
    worth = (0.75 * worth.min(0) + 0.25 * worth.max(0)).max(0)
    target = reward + 0.9 * np.where(ended, 0, worth)
    error = values(agent.critics, seen, unit[None])[:, 0] - target
    np.testing.assert_allclose(metrics["critic_loss"], (error**2).mean(1).sum(), rtol=1e-4)

    logits, normals = agent.behaviour(seen)
    mean, std = np.asarray(normals.mean), np.exp(np.asarray(normals.log_std))
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    parts = np.exp(-0.5 * ((unit[:, None] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    density = (share * parts.prod(-1)).sum(-1)
    np.testing.assert_allclose(metrics["behaviour_loss"], -np.log(density).mean(), rtol=1e-4)

    chosen = (agent.act(seen, KEY)[0] - 1) / 3
    proposals = agent.behaviour.propose(seen, *agent._noises(KEY, 8))
    worth = values(agent.critics, seen, proposals)
    best = (0.75 * worth.min(0) + 0.25 * worth.max(0)).argmax(0)
    np.testing.assert_allclose(chosen, np.asarray(proposals)[best, np.arange(8)], atol=1e-5)


def test_proposals_are_distributed_as_the_mixture():
    behaviour = EMaQ.create(SPACES, CONFIG, KEY).behaviour
    seen, rng = jnp.zeros((1, 3)), np.random.default_rng(0)
    logits, normals = behaviour(seen)
    drawn = behaviour.propose(seen, jnp.asarray(rng.gumbel(size=(20000, 1, 3)), jnp.float32), jnp.zeros((20000, 1, 2)))
    share = np.asarray(jax.nn.softmax(logits))[0]
    found = [np.mean(np.all(np.isclose(drawn[:, 0], mean, atol=1e-6), -1)) for mean in normals.mean[0]]
    np.testing.assert_allclose(found, share, atol=0.015)
