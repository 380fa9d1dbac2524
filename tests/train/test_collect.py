import gymnasium as gym
import jax
import jax.numpy as jnp
import jax_envs
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import Proportional, Steps, cheetah, leaves, ppo, steps_env

from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.collect import HostCollector, is_compiled, random_actions, summarise
from offroad.train.collect_compiled import JaxCollector, summary

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
ENDS = {"end": 3}, {"cut": 4}, {"end": 2, "cut": 2}


def by_hand(end=None, cut=None, *, length, mode):
    """What `Steps` and `Proportional(gain=1)` do together, told without either."""
    rows, episodes, episode, t, memory, total, fake = [], [], 1, 0, 0, 0.0, False
    for _ in range(length):
        if fake:
            # Both the final observation and the step of the reset are seen by the policy, whose action is ignored.
            rows.append(((episode, t), t + memory, 0.0, (episode + 1, 0), False, False, False))
            episode, t, memory, total, fake = episode + 1, 0, 0, 0.0, False
            continue
        action = t + memory
        reward = min(action, 3.0)
        total += reward
        terminated, truncated = t + 1 == end, t + 1 == cut
        rows.append(((episode, t), action, reward, (episode, t + 1), terminated, truncated, True))
        t, memory = t + 1, memory + 1
        if terminated or truncated:
            episodes.append((total, t))
            memory = 0
            if mode == SAME:
                episode, t, total = episode + 1, 0, 0.0
            else:
                fake = True
    return rows, episodes


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", [SAME, NEXT])
def test_the_host_collector_does_what_a_loop_by_hand_does(mode, nested):
    env = steps_env(*({**end, "nested": nested} for end in ENDS), mode=mode)
    agent = Proportional.create(Spaces.of(env))
    collector = HostCollector(env)
    collector.reset(agent, 0)
    parts, episodes, starts = [], [], []
    for length in (5, 1, 6):
        rollout, ended = collector.collect(agent, None, length)
        parts.append(rollout)
        episodes += ended
        starts.append(rollout.memory)
    steps = jax.tree.map(lambda *x: np.concatenate(x), *(part.transitions for part in parts))
    mask = np.concatenate([part.mask for part in parts])
    where, following = steps.observation, steps.next_observation
    if nested:
        np.testing.assert_array_equal(where["again"], where["where"][..., 1])
        np.testing.assert_array_equal(following["again"], following["where"][..., 1])
        where, following = where["where"], following["where"]
    assert where.dtype == np.float32  # what JAX computes with
    for copy, end in enumerate(ENDS):
        rows, expected = by_hand(**end, length=12, mode=mode)
        columns = [np.array(column) for column in zip(*rows)]
        found = where, steps.action[..., 0], steps.reward, following, steps.terminated, steps.truncated, mask
        for one, other in zip(found, columns):
            np.testing.assert_array_equal(one[:, copy], other)
        assert [(e.total, e.length) for e in episodes if e.env == copy] == expected
    assert (steps.action > 3).any()  # stored as the policy chose them, though the environment got them clipped
    assert starts[0].tolist() == [0, 0, 0]
    assert starts[1].tolist() == ([2, 1, 1] if mode == SAME else [1, 0, 0])
    assert summarise(episodes)["episode/return"] == np.mean([e.total for e in episodes])
    assert summarise([]) == {"episode/count": 0}


def test_exploration_depends_on_the_key_and_the_number_of_the_step_alone():
    env = steps_env({"cut": 4}, {"cut": 4})
    agent = Proportional.create(Spaces.of(env))

    def actions(key, lengths):
        collector = HostCollector(env)
        collector.reset(agent, 0)
        return np.concatenate([collector.collect(agent, key, n)[0].transitions.action for n in lengths])

    key = jax.random.key(1)
    np.testing.assert_array_equal(actions(key, [3, 5]), actions(key, [8]))
    assert len(np.unique(actions(key, [8]) % 1)) == 16
    assert not np.array_equal(actions(jax.random.key(2), [8]), actions(key, [8]))


def test_a_collector_continues_from_its_saved_state_to_the_bit():
    agent = ppo(cheetah(2))
    one, other = HostCollector(cheetah(2)), HostCollector(cheetah(2))
    key = jax.random.key(0)
    one.reset(agent, 3)
    one.collect(agent, key, 7)
    assert other.set_state(agent, one.get_state(), seed=99)
    for a, b in zip(*(leaves(collector.collect(agent, key, 7)[0]) for collector in (one, other))):
        np.testing.assert_array_equal(a, b)


def test_an_environment_without_a_state_to_save_is_reset():
    env = steps_env({"cut": 4})
    agent, collector = Proportional.create(Spaces.of(env)), HostCollector(env)
    collector.reset(agent, 0)
    collector.collect(agent, None, 2)
    assert collector.get_state()["env"] is None
    assert not collector.set_state(agent, collector.get_state(), 1)
    assert collector.observation.tolist() == [[2, 0]]  # a new episode
    # A wrapper passes the attributes of what it wraps on, yet has a state of its own.
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(cheetah(2))
    collector = HostCollector(wrapped)
    collector.reset(ppo(cheetah(2)), 0)
    assert collector.get_state()["env"] is None
    assert is_compiled(jax_envs.point(2))
    assert not is_compiled(gym.wrappers.vector.RecordEpisodeStatistics(jax_envs.point(2)))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"fail_at": 6}, "environment 'SyncVectorEnv' raised RuntimeError in step 6: the motor burnt; fix the"),
        ({"nan_at": 7}, "environment 'SyncVectorEnv' returned nan as reward in copy 1 at step 7; fix the"),
        ({"nan_at": 7, "fail_at": 8}, "returned nan as reward in copy 1 at step 7"),
    ],
)
def test_a_failing_environment_is_named(broken, message):
    env = steps_env({"cut": 4}, {"cut": 4, **broken})
    agent, collector = Proportional.create(Spaces.of(env)), HostCollector(env)
    collector.reset(agent, 0)
    collector.collect(agent, None, 5)
    with pytest.raises(OffroadError, match=message):
        collector.collect(agent, None, 5)
    assert collector.get_state()["env"] is None


def test_an_environment_that_does_not_reset_itself_is_refused():
    env = SyncVectorEnv([Steps], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(OffroadError, match="DISABLED"):
        HostCollector(env)


def test_random_actions_fill_the_space():
    rng = np.random.default_rng(0)
    box = random_actions(steps_env(*[{}] * 1000), rng)
    assert box.dtype == np.float32
    assert -3 <= box.min() < -2.9 < 2.9 < box.max() <= 3
    cartpole = gym.make_vec("CartPole-v1", 100)
    assert set(random_actions(cartpole, rng).tolist()) == {0, 1}


# --- environments written in JAX


def test_the_compiled_collector_keeps_final_observations_and_counts_episodes():
    env = jax_envs.point(4)  # truncated after 20 steps
    agent, collector = ppo(env), JaxCollector(env)

    def collect(agent, key):
        state = collector.reset(agent, key)
        state, rollout, tally = collector.collect(agent, state, key, 45)
        return state, rollout, summary(tally)

    state, rollout, metrics = jax.jit(collect)(agent, jax.random.key(0))
    steps = jax.tree.map(np.asarray, rollout.transitions)
    clipped = np.clip(steps.action, -2, 2)
    np.testing.assert_allclose(steps.next_observation, steps.observation + 0.2 * clipped, atol=1e-6)
    assert (np.abs(steps.action) > 2).any()
    assert not steps.terminated.any()
    assert np.flatnonzero(steps.truncated[:, 0]).tolist() == [19, 39]
    goes_on = ~steps.truncated[:-1]
    np.testing.assert_array_equal(steps.observation[1:][goes_on], steps.next_observation[:-1][goes_on])
    assert (steps.observation[1:][~goes_on] != steps.next_observation[:-1][~goes_on]).all()
    assert metrics["episode/count"] == 8
    assert metrics["episode/length"] == 20
    np.testing.assert_allclose(metrics["episode/return"], steps.reward[:40].sum() / 8, rtol=1e-5)
    assert np.asarray(state.length).tolist() == [5] * 4
    assert metrics["nonfinite"] == 0


def test_an_episode_that_began_in_the_middle_does_not_count():
    env = jax_envs.point(16)
    agent, collector = ppo(env), JaxCollector(env)

    @jax.jit
    def collect(agent, key):
        state = collector.reset(agent, key, staggered=True)
        return state.length, collector.collect(agent, state, key, 40)

    age, (state, rollout, tally) = collect(agent, jax.random.key(0))
    assert len(set(age.tolist())) > 8
    assert np.asarray(rollout.transitions.truncated).sum(0).tolist() == [2] * 16
    first = np.where(age > 0, 20 - age, 0)  # where the first whole episode begins
    rewards = np.asarray(rollout.transitions.reward)
    totals = [rewards[start : start + 20, i].sum() for i, start in enumerate(first)]
    totals += [rewards[20:, i].sum() for i in np.flatnonzero(age == 0)]
    found = summary(tally)
    assert (found["episode/count"], found["episode/length"]) == (len(totals), 20)
    np.testing.assert_allclose(found["episode/return"], np.mean(totals), rtol=1e-5)
    assert state.whole.all()


def test_a_compiled_memory_restarts_with_the_episode():
    env = jax_envs.cartpole(4)

    class Blind(Proportional):
        def act(self, observation, key=None, memory=()):
            return jnp.zeros(memory.shape, jnp.int32), memory + 1  # always to the left: falls within some ten steps

    agent, collector = Blind.create(Spaces.of(env)), JaxCollector(env)
    state = collector.reset(agent, jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 2):
        state, rollout, tally = jax.jit(lambda s, k: collector.collect(agent, s, k, 25))(state, key)
        np.testing.assert_array_equal(state.memory, state.length)
        assert rollout.transitions.terminated.any()
        assert 7 < summary(tally)["episode/length"] < 12


def test_several_rollouts_are_summarised_by_their_episodes():
    tallies = {"count": jnp.array([0, 1, 3]), "return": jnp.array([0.0, 8.0, 4.0]), "length": jnp.array([0, 8, 4])}
    tallies |= {"nonfinite": jnp.zeros(3, int), "info": {"speed": jnp.array([1.0, 2.0, 3.0])}}
    found = summary(tallies)
    assert [float(found[k]) for k in ("episode/count", "episode/return", "env/speed")] == [4, 3, 2]
    assert np.isnan(summary(jax.tree.map(lambda x: x[:1], tallies))["episode/return"])
