"""Every achieved goal tells its copy, episode and time, so that what hindsight writes can be checked exactly."""

from dataclasses import replace

import gymnasium as gym
import jax
import jax_envs
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from tiny import same

from offroad import train
from offroad.agents import TD3, TD3Config
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.tasks import GoalTask, HindsightReplay
from offroad.train.collect import HostCollector

COPIES, ENTITIES = 3, 2
WISH = -1.0


def task(entities):
    """The reward is a number that tells the goals it was computed for."""
    weights = np.arange(1, 4) * (np.ones((entities, 1)) + 7 * np.arange(entities)[:, None] if entities else 1)
    axes = (-2, -1) if entities else -1
    return GoalTask(
        achieved=lambda observation: observation["reached"],
        relabel=lambda observation, goal: {**observation, "wish": goal},
        reward=lambda observation: np.sum(observation["wish"] * weights, axis=axes).astype(np.float32),
    )


def history(lengths, rows, mode, entities=0, moves=None):
    """What a collector sees of `COPIES` copies with episodes of these lengths: leaves `[rows, COPIES, ...]`.

    `reached` is `(copy, episode, time)`, with 100 per entity added to the copy; `wish` is -1. Copy `i` starts in the
    middle of `lengths`. Where `moves(copy, episode)` does not hold, the time is in the actions and `where` alone.
    """
    columns = []
    for copy in range(COPIES):
        column, episode, t, fake = [], 0, 0, False
        order = lengths[copy:] + lengths[:copy]
        while len(column) < rows:
            end = order[episode % len(order)]
            if fake:
                column.append((copy, episode, t, episode + 1, 0, False, False))
                episode, t, fake = episode + 1, 0, False
                continue
            done = t + 1 == end
            column.append((copy, episode, t, episode, t + 1, done, True))
            t += 1
            if done and mode == AutoresetMode.NEXT_STEP:
                fake = True
            elif done:
                episode, t = episode + 1, 0
        columns.append(column)
    copy, episode, t, next_episode, next_t, done, kept = np.array(columns).transpose(2, 1, 0)

    def observe(episode, t):
        shown = t if moves is None else np.where(moves(copy, episode), t, 0)
        reached = np.stack([copy, episode, shown], -1).astype(np.float32)
        if entities:
            reached = np.repeat(reached[:, :, None], entities, 2)
            reached[..., 0] += 100 * np.arange(entities)
        where = np.stack([copy, episode, t], -1).astype(np.int16)
        mask = np.ones((rows, COPIES, 2), np.int8)
        return {"where": where, "reached": reached, "wish": np.full_like(reached, WISH), "mask": mask}

    ended = done.astype(bool)
    first = observe(episode, t)
    following = observe(next_episode, next_t)
    reward = np.full((rows, COPIES), 0.5, np.float32)
    action = np.stack([copy, episode, t], -1).astype(np.float32)
    return Transition(first, action, reward, following, ended & (copy == 0), ended & (copy > 0)), kept.astype(bool)


def add(replay, steps, kept, size):
    for start in range(0, len(kept), size):
        part = slice(start, start + size)
        replay.add(jax.tree.map(lambda x: x[part], steps), kept[part])  # noqa: B023


def stored(steps, kept, rows):
    """What the newest `rows` rows hold: `(copy, episode) -> times of next observations`, in order."""
    held = {}
    for t, copy in np.argwhere(kept[-rows:]):
        where = steps.next_observation["where"][-rows:][t, copy]
        held.setdefault((int(where[0]), int(where[1])), []).append(int(where[2]))
    return held


LENGTHS = [4, 1, 7, 2, 5]


@pytest.mark.parametrize("entities", [0, ENTITIES])
@pytest.mark.parametrize("size", [1, 4, 13, 40])  # rows for each add: with 13 the ring wraps inside one, 40 exceeds it
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_every_goal_of_hindsight_was_achieved_in_the_same_episode_at_a_right_time(strategy, mode, size, entities):
    rows, capacity = 17, 17 * COPIES + 1  # one cell too many for whole rows
    steps, kept = history(LENGTHS, 45, mode, entities)
    replay = HindsightReplay(capacity, task(entities), strategy=strategy, share=0.7)
    add(replay, steps, kept, size)
    held = stored(steps, kept, rows)
    assert replay.capacity == rows * COPIES
    assert len(replay) == sum(map(len, held.values()))
    drawn = replay.sample(np.random.default_rng(0), (20, 500))
    assert drawn.reward.shape == (20, 500)
    drawn = jax.tree.map(lambda x: x.reshape(10_000, *x.shape[2:]), drawn)

    # Exactly the stored steps are drawn, none that only reset, and their leaves belong together.
    copy, episode, time = drawn.action.astype(int).T
    assert {(c, e, t + 1) for c, e, t in zip(copy, episode, time)} == {(*k, t) for k, ts in held.items() for t in ts}
    np.testing.assert_array_equal(drawn.observation["where"], np.stack([copy, episode, time], -1))
    np.testing.assert_array_equal(drawn.next_observation["where"], np.stack([copy, episode, time + 1], -1))
    assert drawn.observation["mask"].dtype == np.int8
    counts = np.unique(drawn.action, axis=0, return_counts=True)[1] / 10_000 * len(replay)
    assert np.abs(counts - 1).max() < 0.45  # about 200 of each: more than six standard deviations

    goal = drawn.observation["wish"].reshape(10_000, max(entities, 1), 3)
    np.testing.assert_array_equal(goal, drawn.next_observation["wish"].reshape(goal.shape))
    changed = goal[..., 2] != WISH
    assert np.mean(changed) == pytest.approx(0.7, abs=0.03)
    np.testing.assert_array_equal(goal[~changed], WISH)
    found = {}
    for row, entity in np.argwhere(changed):
        c, e, t = goal[row, entity].astype(int)
        assert (c - 100 * entity, e) == (copy[row], episode[row])
        found.setdefault((copy[row], e, time[row], entity), set()).add(t)
    for (c, e, t, _), times in found.items():
        all_times = held[c, e]
        expected = {
            "future": [x for x in all_times if x >= t + 1],
            "final": all_times[-1:],
            "episode": all_times,
        }[strategy]
        assert times == set(expected)

    expected = task(entities).reward(drawn.next_observation)
    np.testing.assert_array_equal(drawn.reward, np.where(changed.any(1), expected, np.float32(0.5)))
    ended = np.array([time[i] + 1 == (LENGTHS[copy[i] :] + LENGTHS[: copy[i]])[episode[i] % 5] for i in range(10_000)])
    np.testing.assert_array_equal(drawn.terminated, ended & (copy == 0))
    np.testing.assert_array_equal(drawn.truncated, ended & (copy > 0))


def test_times_are_uniform_and_every_entity_has_its_own():
    steps, kept = history([6], 12, AutoresetMode.SAME_STEP, ENTITIES)
    replay = HindsightReplay(1000, task(ENTITIES), share=0.5)
    replay.add(steps, kept)
    drawn = replay.sample(np.random.default_rng(1), 40_000)
    goal, now = drawn.observation["wish"][..., 2], drawn.action[:, 2]
    changed = goal != WISH
    both = np.array([[np.mean((changed[:, 0] == a) & (changed[:, 1] == b)) for a in (0, 1)] for b in (0, 1)])
    np.testing.assert_allclose(both, 0.25, atol=0.02)
    joint = goal[changed.all(1) & (now == 2)].astype(int) - 3  # four times each, 3 to 6
    table = np.histogram2d(*joint.T, bins=[range(5), range(5)])[0] / len(joint)
    assert len(joint) > 1000
    np.testing.assert_allclose(table, 1 / 16, atol=0.03)

    together = HindsightReplay(1000, task(ENTITIES), share=0.5, per_entity=False)
    together.add(steps, kept)
    goal = together.sample(np.random.default_rng(1), 4000).observation["wish"][..., 2]
    np.testing.assert_array_equal(goal[:, 0], goal[:, 1])
    assert np.mean(goal[:, 0] != WISH) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", [3, 30])
@pytest.mark.parametrize(
    ("length", "mode", "rows"),
    [(5, AutoresetMode.NEXT_STEP, 40), (1, AutoresetMode.SAME_STEP, 40), (1, AutoresetMode.NEXT_STEP, 20)],
)
def test_a_share_of_the_samples_comes_from_episodes_in_which_something_moved(length, mode, rows, size):
    def moves(copy, episode):
        return (copy == 2) & (episode % 3 == 1)

    steps, kept = history([length], 60, mode, ENTITIES, moves)
    for distance, share, expected in ((0.5, 0.7, 0.7), (0.5, 1.0, 1.0), (5.5, 0.7, 0.0)):
        replay = HindsightReplay(rows * COPIES, task(ENTITIES), moved_share=share, moved_distance=distance)
        add(replay, steps, kept, size)
        copy, episode, time = replay.sample(np.random.default_rng(0), 5000).action.astype(int).T
        moved = moves(copy, episode)
        chance = sum(len(t) for k, t in stored(steps, kept, rows).items() if moves(*k)) / len(replay)
        assert 0.05 < chance < 0.2
        assert np.mean(moved) == pytest.approx(expected + (1 - expected) * chance, abs=0.03)
        assert set(time[moved]) == set(time) == set(range(length))  # also the steps before the movement


def test_an_episode_counts_as_moved_from_its_own_start_on():
    steps, kept = history([50], 8, AutoresetMode.SAME_STEP)
    replay = HindsightReplay(24, task(0), share=0.0, moved_share=1.0, moved_distance=9.5)
    replay.add(steps, kept)
    assert not replay._moved.any()
    later, kept = history([50], 20, AutoresetMode.SAME_STEP)
    add(replay, jax.tree.map(lambda x: x[8:], later), kept[8:], 4)
    assert len(replay) == 24
    assert replay._moved.sum() == COPIES  # ten steps in all, of which no add held more than four
    copies = replay.sample(np.random.default_rng(0), 100).action[:, 0]
    assert set(copies) == {0, 1, 2}


def test_an_episode_that_was_broken_off_between_rollouts_is_not_continued():
    steps, kept = history([50], 4, AutoresetMode.SAME_STEP)
    replay = HindsightReplay(1000, task(0), strategy="episode", share=1.0)
    replay.add(steps, kept)
    again = jax.tree.map(np.copy, steps)
    for observation in (again.observation, again.next_observation):
        for name in ("where", "reached"):  # copy 1 goes on, the others were reset, which their observations show
            observation[name][..., 2] += np.array([10, 4, 10], observation[name].dtype)
    again.action[..., 2] += [10, 4, 10]
    replay.add(again, kept)
    drawn = replay.sample(np.random.default_rng(0), 5000)
    copy, now, then = drawn.action[:, 0], drawn.action[:, 2], drawn.observation["wish"][:, 2]
    np.testing.assert_array_equal((now >= 10)[copy != 1], (then >= 10)[copy != 1])
    assert set(zip(now[copy == 1].astype(int), then[copy == 1].astype(int))) == {
        (now, then) for now in range(8) for then in range(1, 9)
    }


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_an_episode_that_ended_is_not_continued_by_one_that_looks_alike(ending):
    steps, kept = history([50], 4, AutoresetMode.SAME_STEP)
    replay = HindsightReplay(1000, task(0), share=1.0)
    replay.add(replace(steps, **{ending: np.arange(4)[:, None] * np.ones((1, 3), int) == 3}), kept)
    later, kept = history([50], 8, AutoresetMode.SAME_STEP)
    replay.add(jax.tree.map(lambda x: x[4:], later), kept[4:])
    drawn = replay.sample(np.random.default_rng(0), 2000)
    np.testing.assert_array_equal(drawn.action[:, 2] >= 4, drawn.observation["wish"][:, 2] > 4)


@pytest.mark.parametrize("rows", [0, 3, 11, 30])
def test_a_restored_replay_goes_on_to_the_bit(rows, tmp_path):
    steps, kept = history(LENGTHS, 40, AutoresetMode.NEXT_STEP, ENTITIES)
    options = {"moved_share": 0.5, "moved_distance": 2.5}
    replay, restored = (HindsightReplay(15 * COPIES, task(ENTITIES), **options) for _ in range(2))
    add(restored, steps, kept, 9)
    first = jax.tree.map(lambda x: x[:rows], steps)
    if rows:
        add(replay, first, kept[:rows], 5)
    train.checkpoint.save(tmp_path / "step_1", {"replay": replay.get_state()})
    restored.set_state(train.checkpoint.load(tmp_path / "step_1").value("replay"))
    assert len(replay) == len(restored)
    for start in range(rows, 40, 5):
        if start:
            one, other = (r.sample(np.random.default_rng(start), (4, 32)) for r in (replay, restored))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
        for r in (replay, restored):
            r.add(jax.tree.map(lambda x: x[start : start + 5], steps), kept[start : start + 5])  # noqa: B023


def test_what_a_user_can_get_wrong():
    steps, kept = history(LENGTHS, 10, AutoresetMode.SAME_STEP, ENTITIES)
    goals = task(ENTITIES)
    with pytest.raises(OffroadError, match="did you mean 'future'"):
        HindsightReplay(10, goals, strategy="futur")
    with pytest.raises(OffroadError, match=r"moved_share of a HindsightReplay is 1.5"):
        HindsightReplay(10, goals, moved_share=1.5)
    with pytest.raises(OffroadError, match="at least 1"):
        HindsightReplay(0, goals)
    with pytest.raises(OffroadError, match="capacity of 2 is less than one step of 3"):
        HindsightReplay(2, goals).add(steps, kept)
    replay = HindsightReplay(30, goals)
    with pytest.raises(OffroadError, match="empty"):
        replay.sample(np.random.default_rng(0), 2)
    replay.add(steps, kept & False)
    with pytest.raises(OffroadError, match="empty"):
        replay.sample(np.random.default_rng(0), 2)
    with pytest.raises(OffroadError, match="rollout of 2 copies"):
        replay.add(jax.tree.map(lambda x: x[:, :2], steps), kept[:, :2])
    replay.add(steps, kept)
    with pytest.raises(OffroadError, match="capacity 60"):
        HindsightReplay(60, goals).set_state(replay.get_state())
    scalar = replace(goals, achieved=lambda observation: observation["reached"][..., 0, 0])
    with pytest.raises(OffroadError, match=r"shape \(\), expected \[g\]"):
        HindsightReplay(30, scalar).add(steps, kept)
    whole = replace(goals, relabel=lambda o, goal: {**o, "wish": goal, "where": o["where"] + 0})
    spoilt = HindsightReplay(30, whole)
    spoilt.add(steps, kept)
    with pytest.raises(OffroadError, match=r"an entry of shape \(3,\), not with a row for each"):
        spoilt.sample(np.random.default_rng(0), 2)


class Reach(gym.vector.VectorEnv):
    """Points in a square that move by at most 0.2 a step; a step costs 1 unless it ends within 0.1 of the goal.

    With `entities` there are as many points, each with a goal of its own, in an entity observation.
    """

    def __init__(self, num_envs=8, entities=0, horizon=15, mode=AutoresetMode.SAME_STEP):
        self.num_envs, self.shape, self.horizon = num_envs, (entities, 2) if entities else (2,), horizon
        box = gym.spaces.Box(-np.inf, np.inf, self.shape, np.float32)
        self.names = ("objects", "goals") if entities else ("achieved_goal", "desired_goal")
        parts = dict.fromkeys(self.names, box)
        if entities:
            parts["mask"] = gym.spaces.MultiBinary(entities)
            self.goal_task = GoalTask(lambda o: o["objects"], lambda o, goal: {**o, "goals": goal}, self.reward)
        self.single_observation_space = gym.spaces.Dict(parts)
        self.single_action_space = gym.spaces.Box(-1, 1, (int(np.prod(self.shape)),), np.float32)
        self.metadata = {"autoreset_mode": mode}

    def compute_reward(self, achieved, desired, info):
        assert achieved.ndim == 2
        assert info == {}
        return -(np.linalg.norm(achieved - desired, axis=-1) > 0.1).astype(np.float64)

    def reward(self, observation):
        far = np.linalg.norm(observation["objects"] - observation["goals"], axis=-1) > 0.1
        return -far.sum(-1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.at, self.goal = np.zeros((2, self.num_envs, *self.shape), np.float32)
        self.t = np.zeros(self.num_envs, int)
        self.restart(np.ones(self.num_envs, bool))
        return self.observe(), {}

    def restart(self, which):
        self.at[which], self.goal[which] = self.random.uniform(-1, 1, (2, which.sum(), *self.shape))
        self.t[which] = 0

    def observe(self):
        shown = dict(zip(self.names, (self.at.copy(), self.goal.copy())))
        return shown | ({"mask": np.ones((self.num_envs, self.shape[0]), np.int8)} if len(self.shape) == 2 else {})

    def step(self, action):
        self.at += 0.2 * np.asarray(action).reshape(self.at.shape)
        self.t += 1
        seen = self.observe()
        reward = self.reward(seen) if len(self.shape) == 2 else self.compute_reward(self.at, self.goal, {})
        truncated, info = self.t >= self.horizon, {}
        if truncated.any():
            info["final_obs"] = np.array(
                [{name: x[i] for name, x in seen.items()} for i in range(self.num_envs)], object
            )
            self.restart(truncated)
        return self.observe(), reward, truncated & False, truncated, info

    def get_state(self):
        return {"at": self.at.copy(), "goal": self.goal.copy(), "t": self.t.copy()} | {
            "random": self.random.bit_generator.state
        }

    def set_state(self, state):
        self.at, self.goal, self.t = (state[name].copy() for name in ("at", "goal", "t"))
        self.random.bit_generator.state = state["random"]


@pytest.mark.parametrize("entities", [0, 3])
def test_the_rewards_of_an_environment_are_those_of_its_task(entities):
    env = Reach(entities=entities)
    goals = GoalTask.of(env)
    agent = TD3.create(Spaces.of(env), TD3Config(hidden=(8,)), jax.random.key(0))
    collector = HostCollector(env)
    collector.reset(agent, 0)
    rollout, _ = collector.collect(agent, None, 40, np.random.default_rng(0))
    steps = rollout.transitions
    rewards = goals.reward(steps.next_observation)
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, steps.reward)
    replay = HindsightReplay(1000, goals, moved_share=0.5)
    replay.add(steps, rollout.mask)
    drawn = replay.sample(np.random.default_rng(0), (2, 500))
    np.testing.assert_array_equal(drawn.reward, goals.reward(drawn.next_observation))
    assert drawn.reward.mean() > steps.reward.mean() + 0.1
    if entities:
        assert drawn.observation["mask"].dtype == np.int8


class Alone(gym.Env):
    """One goal of Gymnasium-Robotics' convention."""

    observation_space = gym.spaces.Dict(
        {name: gym.spaces.Box(-9, 9, (2,), np.float64) for name in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def compute_reward(self, achieved, desired, info):
        return np.sum(achieved * desired, axis=-1)


class Deaf(Alone):
    def compute_reward(self, achieved, desired, info):
        return 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.wrappers.TimeLimit(Alone(), 5),
        lambda: gym.vector.SyncVectorEnv([Alone, Alone]),
        lambda: gym.vector.AsyncVectorEnv([Alone], context="spawn"),
    ],
)
def test_the_task_of_single_environments_and_vectors_of_them(make):
    env = make()
    try:
        goals = GoalTask.of(env)
        achieved, desired = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
        observation = {"observation": achieved, "achieved_goal": achieved, "desired_goal": desired * 0}
        relabelled = goals.relabel(observation, desired)
        assert (observation["desired_goal"] == 0).all()
        assert goals.achieved(observation) is achieved
        np.testing.assert_array_equal(goals.reward(relabelled), np.sum(achieved * desired, -1))
        assert goals.reward(relabelled).dtype == np.float32
        assert goals.reward({name: x[0, 0] for name, x in relabelled.items()}).shape == ()
    finally:
        env.close()


def test_environments_that_tell_no_goals_are_named():
    with pytest.raises(OffroadError, match="'CartPole-v1' tells no goals; give it an attribute goal_task"):
        GoalTask.of(gym.make_vec("CartPole-v1", 2))
    goals = GoalTask.of(Deaf())
    with pytest.raises(OffroadError, match=r"rewards of shape \(\) for 6 goals"):
        goals.reward({name: np.zeros((3, 2, 2)) for name in ("achieved_goal", "desired_goal")})


@pytest.mark.parametrize("entities", [0, 3])
def test_a_resumed_run_with_hindsight_is_the_run_that_was_left_alone(tmp_path, entities):
    def run(steps, **options):
        env = Reach(entities=entities)
        agent = TD3.create(Spaces.of(env), TD3Config(hidden=(8,), batch=16), jax.random.key(0))
        replay = HindsightReplay(220, GoalTask.of(env), moved_share=0.3)  # wraps, in the middle of episodes
        options = {"learning_starts": 80, "train_every": 10, "update_ratio": 0.1, "progress": False, **options}
        return train.off_policy(agent, env, steps, replay=replay, **options)

    run(240, out=tmp_path)
    resumed = run(480, out=tmp_path, resume=True)
    alone = run(480)
    assert resumed.step == alone.step == 480
    assert same(resumed.agent, alone.agent)
    assert not same(resumed.agent, run(400).agent)


def test_environments_written_in_jax_refuse_hindsight():
    env = jax_envs.point(2)
    agent = TD3.create(Spaces.of(env), TD3Config(hidden=(8,)), jax.random.key(0))
    with pytest.raises(OffroadError, match="plain Replay, found a HindsightReplay; put a Gymnasium vector wrapper"):
        train.off_policy(agent, env, 100, replay=HindsightReplay(100, task(0)), progress=False)


def test_the_rewards_of_gymnasium_robotics():
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    env = gym.make_vec("FetchPickAndPlace-v4", 2, vectorization_mode="sync", max_episode_steps=20)
    goals = GoalTask.of(env)
    agent = TD3.create(Spaces.of(env), TD3Config(hidden=(8,)), jax.random.key(0))
    collector = HostCollector(env)
    collector.reset(agent, 5)
    rollout, _ = collector.collect(agent, None, 60, np.random.default_rng(0))
    steps, kept = rollout.transitions, rollout.mask
    np.testing.assert_array_equal(goals.reward(steps.next_observation)[kept], steps.reward[kept])
    replay = HindsightReplay(1000, goals)
    replay.add(steps, kept)
    drawn = replay.sample(np.random.default_rng(0), 500)
    one = env.envs[0].unwrapped
    for i in range(500):
        following = drawn.next_observation
        assert drawn.reward[i] == one.compute_reward(following["achieved_goal"][i], following["desired_goal"][i], {})
    assert set(drawn.reward) == {-1, 0}
    env.close()


def reach_success(share):
    """How often TD3 ends at the goal after learning from 8 thousand steps of sparse rewards."""
    env = Reach()
    config = TD3Config(hidden=(64, 64), discount=0.9, batch=128, polyak=0.02, exploration_noise=0.3)
    agent = TD3.create(Spaces.of(env), config, jax.random.key(0))
    replay = HindsightReplay(50_000, GoalTask.of(env), share=share)
    result = train.off_policy(
        agent, env, 8000, replay=replay, learning_starts=1000, train_every=30, update_ratio=0.2, progress=False
    )
    test = HostCollector(Reach(200))
    test.reset(result.agent, 7)
    rollout, _ = test.collect(result.agent, None, 15)
    return np.mean(rollout.transitions.reward[-1] == 0)


def test_sparse_goals_are_reached_with_hindsight_and_not_without():
    with_hindsight, without = reach_success(0.8), reach_success(0.0)
    assert with_hindsight > 0.9
    assert without < 0.5
