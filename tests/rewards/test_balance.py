from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxtyping import Array, PyTree
from worlds import KEY, VECTOR, random_steps

from offroad.agents import PPOConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from offroad.errors import OffroadError
from offroad.rewards import EIPO, EIPOConfig, IntrinsicReward, Scaling, TwoValuePPO, TwoValuePPOConfig
from offroad.rewards.balance import next_alpha
from offroad.rewards.intrinsic import BonusScale
from offroad.rewards.two_rewards import Valued

PPO = PPOConfig(rollout=64, minibatch=128, epochs=8, hidden=(8,), learning_rate=1e-2, discount=0.0)


@dataclass(frozen=True)
class PayForConfig:
    scaling: Scaling


class PayFor(IntrinsicReward):
    """5 for one of the actions: a reward as a user may write one."""

    action: Array
    memory: PyTree[Array]
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: PayForConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces, config, key):
        return cls(jnp.int32(config), (), BonusScale.create(spaces.num_envs), spaces, PayForConfig(Scaling(False)))

    def initial_memory(self, num_envs):
        return ()

    def bonus(self, steps, mask, key):
        return 5.0 * (steps.action == self.action), ()

    def update(self, steps, mask, key):
        return self, {}


def eipo(pay_for=1, **options):
    return EIPO.create(VECTOR, EIPOConfig(PPO, **options), KEY, reward=PayFor.create(VECTOR, pay_for, KEY))


def two_values(**options):
    reward = PayFor.create(VECTOR, 1, KEY)
    return TwoValuePPO.create(VECTOR, TwoValuePPOConfig(PPO, **options), KEY, reward=reward)


def rollout(agent, seed=0):
    """The agent's own actions between random observations; the task pays action 0."""
    steps, mask = random_steps(time=64, seed=seed)
    flat = steps.observation.reshape(-1, 3)
    action = np.asarray(agent.act(flat, jax.random.key(seed))[0]).reshape(mask.shape)
    return Rollout(replace(steps, action=action, reward=(action == 0).astype(np.float32)), (), mask)


update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def trained(agent, updates):
    for i in range(updates):
        agent, metrics = update(agent, rollout(agent, i), jax.random.key(i))
    return agent, metrics


def frequencies(agent, actor):
    """Mean probabilities of the three actions."""
    network, observation = agent.learner.network, random_steps()[0].observation
    policy = network.actors[actor](network.encoder(agent.learner.normalise(observation, PPO)))
    return np.asarray(jax.nn.softmax(policy.logits)).mean((0, 1))


def test_the_return_of_the_bonus_does_not_end_with_the_episode():
    rng = np.random.default_rng(0)
    value, following, reward = (jnp.asarray(rng.normal(size=(6, 2)), jnp.float32) for _ in range(3))
    ended = jnp.asarray(rng.random((6, 2)) < 0.5)
    rollout = Valued((value,), (following,), ended, ended & False, ended | True)
    found = np.asarray(rollout.endless_advantage(reward, 0, 0.9, 1.0))
    total = np.asarray(following[-1])  # with lambda 1: the discounted sum, bootstrapped once at the very end
    for t in reversed(range(6)):
        total = reward[t] + 0.9 * total
        np.testing.assert_allclose(found[t], total - value[t], rtol=1e-4, atol=1e-5)
    task = np.asarray(rollout.advantage(reward, 0, 0.9, 1.0))
    np.testing.assert_allclose(task[np.asarray(ended)], (reward - value)[np.asarray(ended)], rtol=1e-5)


@pytest.mark.parametrize("gae", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fake", [2, 4])
def test_the_fake_step_between_episodes_takes_no_time(gae, fake):
    """NEXT_STEP autoreset says the same as SAME_STEP: what follows an end is the first observation thereafter.

    The fake step shows the final observation and leads to the first one, here with the values 70 and 3 or 5.
    """
    value, reward = jnp.array([[1.0], [2.0], [3.0], [4.0]]), jnp.array([[0.1], [0.2], [0.3], [0.4]])
    following, no = jnp.array([[2.0], [3.0], [4.0], [5.0]]), jnp.zeros((4, 1), bool)
    end = no.at[fake - 1].set(True)
    expected = Valued((value,), (following,), end, no, ~no).endless_advantage(reward, 0, 0.5, gae)

    def widened(x, between):
        return jnp.concatenate([x[:fake], jnp.full((1, 1), between, x.dtype), x[fake:]])

    after = widened(following.at[fake - 1].set(70.0), following[fake - 1, 0])
    rollout = Valued((widened(value, 70.0),), (after,), widened(end, False), widened(no, False), widened(~no, False))
    found = rollout.endless_advantage(widened(reward, 9.0), 0, 0.5, gae)
    np.testing.assert_allclose(found, widened(expected, 0.0), rtol=1e-6)
    delta = 0.1 * fake + 0.5 * (fake + 1) - fake  # of the episode's last step, worked out by hand
    if gae == 0:
        np.testing.assert_allclose(found[fake - 1], delta, rtol=1e-5)


def test_alpha_goes_down_the_lagrangian_and_stays_positive():
    half = jnp.float32(0.5)
    assert next_alpha(half, jnp.float32(0.04), 0.1) < 0.5 < next_alpha(half, jnp.float32(-0.04), 0.1)
    assert next_alpha(jnp.float32(0.001), jnp.float32(0.05), 0.1) == 0


def test_alpha_rises_where_exploring_harms_the_task_and_falls_where_it_serves_it():
    alphas = [trained(eipo(pay_for), 5)[0].alpha for pay_for in (0, 1)]  # three max stages
    assert alphas[0] < 0.4
    assert alphas[1] > 0.6


def test_eipo_delivers_the_policy_of_the_task():
    """The explorer is bribed to do something else; what is delivered is not."""
    agent, metrics = trained(eipo(1), 12)
    task, mixed = frequencies(agent, 0), frequencies(agent, 1)
    assert task.argmax() == 0
    assert task[0] > mixed[0]
    assert mixed[1] > task[1]
    assert np.all(np.asarray(agent.act(random_steps()[0].observation[0])[0]) == 0)
    assert agent.max_stage  # twelve stages, alternating
    assert all(np.isfinite(value) for value in metrics.values())


def test_eipo_explores_with_the_policy_of_the_stage():
    agent = eipo()
    bias = jnp.array([0.0, 0.0, 50.0])
    explorer = eqx.tree_at(lambda a: a.learner.network.actors[1].head.layers[-1].bias, agent, bias)
    observation = random_steps()[0].observation[:, 0]
    acts = [replace(explorer, max_stage=jnp.array(stage)).act(observation, KEY)[0] for stage in (True, False)]
    assert np.any(np.asarray(acts[0]) != 2)
    assert np.all(np.asarray(acts[1]) == 2)


@pytest.mark.parametrize(("extrinsic", "intrinsic", "wins"), [(1.0, 0.0, 0), (0.0, 1.0, 1)])
def test_two_values_follow_the_weights(extrinsic, intrinsic, wins):
    agent, metrics = trained(two_values(extrinsic=extrinsic, intrinsic=intrinsic), 10)
    assert frequencies(agent, 0).argmax() == wins
    assert metrics["intrinsic/share"] == intrinsic


def test_without_its_weight_the_task_changes_nothing():
    agent = two_values(extrinsic=0.0)
    batch = rollout(agent)
    scaled = replace(batch, transitions=replace(batch.transitions, reward=1000 * batch.transitions.reward))
    one, other = (update(agent, x, KEY)[0] for x in (batch, scaled))
    assert tiny.same(one.learner.network, other.learner.network)


@pytest.mark.parametrize("make", [eipo, two_values])
def test_warm_up_leaves_the_policies_alone(make):
    agent = make(warm_up=1)
    first, second = trained(agent, 1)[0], trained(agent, 2)[0]
    assert tiny.same(first.learner.network, agent.learner.network)
    assert not tiny.same(second.learner.network, agent.learner.network)
    assert first.learner.reward.scale.weight == 0 < second.learner.reward.scale.weight


@pytest.mark.parametrize("make", [eipo, two_values])
def test_new_episodes_know_nothing_of_the_old_ones(make):
    agent = make()
    sums = lambda learner: (learner.return_norm.discounted, learner.reward.scale.discounted)  # noqa: E731
    old = eqx.tree_at(lambda a: sums(a.learner), agent, (jnp.ones(2), jnp.ones(2)))
    assert not tiny.same(old, agent)
    assert tiny.same(old.begin_episodes(), agent)


def test_memory_is_refused():
    with pytest.raises(OffroadError, match="recurrent is 8"):
        EIPO.create(VECTOR, EIPOConfig(replace(PPO, recurrent=8)), KEY, reward=PayFor.create(VECTOR, 0, KEY))
