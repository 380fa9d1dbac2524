import json
import logging

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from tiny import Proportional, leaves, steps_env

from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.tasks.curriculum import NOTE, CurriculumVectorEnv, Stage, SuccessGated, Uniform
from offroad.train import checkpoint
from offroad.train.collect import HostCollector

DISABLED, SAME = AutoresetMode.DISABLED, AutoresetMode.SAME_STEP


class Walk(gym.Env):
    """Walks from `start` plus noise to `goal`, where it terminates; truncated after `limit` steps."""

    observation_space = spaces.Dict({"at": spaces.Box(-99, 99, (1,), np.float32), "step": spaces.Discrete(50)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit=5):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = {"goal": 2.0, "start": 0.0, **(options or {})}
        self.goal, self.t = options["goal"], 0
        self.at = np.float32(options["start"] + 0.1 * self.np_random.normal())
        return self._show(), {"goal": self.goal, "shared": -1, "about": {"noise": float(self.at)}}

    def step(self, action):
        self.at, self.t = self.at + action[0], self.t + 1
        success = bool(self.at >= self.goal)
        info = {"success": success, "shared": self.t, "name": "walk", "about": {"where": np.full(2, self.at)}}
        return self._show(), float(self.at), success, self.t == self.limit, info

    def _show(self):
        return {"at": np.array([self.at], np.float32), "step": np.int64(self.t)}


def walks(mode=DISABLED, copy=True):
    return SyncVectorEnv([lambda limit=limit: Walk(limit) for limit in (3, 4, 5)], copy, autoreset_mode=mode)


class Levels(VectorEnv):
    """Copies that need `level` steps each, and succeed where the action is positive; a step is noise from a generator.

    Rows that a reset leaves alone are returned as -7, which none of Gymnasium's rules forbids.
    """

    def __init__(self, num_envs):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": DISABLED}
        self.single_observation_space = self.single_action_space = spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = self.action_space = batch_space(self.single_action_space, num_envs)
        self.random = np.random.default_rng()
        self.left, self.level = np.zeros((2, num_envs), int)
        self.calls = []

    def reset(self, *, seed=None, options):
        assert set(options) <= {"reset_mask", "level", "state"}, options  # knows its options and no others
        self.random = self.random if seed is None else np.random.default_rng(seed)
        mask = options["reset_mask"]
        self.calls.append(mask.tolist())
        self.left[mask] = self.level[mask] = options.get("level", 1) + np.sum(options.get("state", 0))
        return np.where(mask[:, None], self.show(), np.float32(-7)), {}

    def step(self, actions):
        self.left -= 1
        assert (self.left >= 0).all()
        info = {"success": actions[:, 0] > 0, "_success": np.ones(self.num_envs, bool)}
        return self.show(), np.ones(self.num_envs), self.left == 0, np.zeros(self.num_envs, bool), info

    def show(self):
        shown = np.stack([self.level, self.random.normal(size=self.num_envs)], 1).astype(np.float32)
        shown.flags.writeable = False
        return shown

    def get_state(self):
        return {"random": self.random.bit_generator.state, "left": self.left.copy(), "level": self.level.copy()}

    def set_state(self, state):
        self.random.bit_generator.state = state["random"]
        self.left, self.level = np.array(state["left"]), np.array(state["level"])


class Listed:
    """A curriculum that goes through a list of options, and keeps what it is told."""

    def __init__(self, *options):
        self.options, self.given, self.records = options, 0, []

    def sample(self, random):
        self.given += 1
        return dict(self.options[(self.given - 1) % len(self.options)])

    def record(self, options, success, graded):
        self.records.append((options, success, graded))

    def metrics(self):
        return {"curriculum/given": float(self.given)}

    def get_state(self):
        return {"given": self.given}

    def set_state(self, state):
        self.given = state["given"]


def actions(env, count, seed=0, low=-1):
    return np.random.default_rng(seed).uniform(low, 1, (count, *env.action_space.shape)).astype(np.float32)


def assert_same(one, other):
    """Equal to the bit, with the same keys, types and shapes."""
    if isinstance(other, dict):
        assert set(one) == set(other)
        for name in other:
            assert_same(one[name], other[name])
    elif isinstance(other, tuple | list) or (isinstance(other, np.ndarray) and other.dtype == object):
        assert type(one) is type(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        np.testing.assert_array_equal(one, other)


def test_without_options_it_is_gymnasiums_own_same_step_autoreset():
    own = walks(mode=SAME)
    env = CurriculumVectorEnv(walks(copy=False), Listed({}), deterministic_envs=0)
    assert env.metadata["autoreset_mode"] == env.autoreset_mode == own.metadata["autoreset_mode"]
    assert_same(env.reset(seed=3), own.reset(seed=3))
    ends = 0
    for action in actions(own, 60, low=-0.2):
        found = env.step(action)
        assert_same(found, own.step(action))
        ends += (found[2] | found[3]).sum()
    assert ends > 40


def test_without_options_it_is_the_autoreset_of_batched_mujoco():
    def make(mode):
        options = {"num_threads": 1, "max_episode_steps": 25, "autoreset_mode": mode}
        return gym.make_vec("offroad/Hopper-v5", 3, vectorization_mode="vector_entry_point", **options)

    own, inner = make(SAME), make(DISABLED)
    env = CurriculumVectorEnv(inner, Listed({}), success="x_position", deterministic_envs=0)
    assert_same(env.reset(seed=3), own.reset(seed=3))
    ended = np.zeros(3, bool)
    for action in actions(own, 60):
        found = env.step(action)
        assert_same(found, own.step(action))
        ended |= found[2] | found[3]
    assert ended.all()


def test_every_episode_gets_its_options_as_if_reset_by_hand():
    tasks = [{"goal": 1.0}, {"goal": 0.5, "start": -1.0}, {"goal": 3.0}, {"goal": 1.0}]
    curriculum = Listed(*tasks)
    env, plain = CurriculumVectorEnv(walks(), curriculum, deterministic_envs=1), walks()
    observation, info = env.reset(seed=5)
    plain.reset(seed=5, options=tasks[0])
    for world in (1, 2):
        mask = np.arange(3) == world
        expected, _ = plain.reset(options={"reset_mask": mask, **tasks[world]})
    assert_same(observation, expected)
    assert info["goal"].tolist() == [1.0, 0.5, 3.0]

    given, now, records = 3, tasks[:3], []
    for action in actions(env, 80, low=-0.2):
        observation, reward, terminated, truncated, info = env.step(action)
        expected, *others, final = plain.step(action)
        assert_same((reward, terminated, truncated), tuple(others))
        ended = terminated | truncated
        assert info.get("_final_obs", np.zeros(3, bool)).tolist() == ended.tolist()
        for world in np.flatnonzero(ended):
            assert_same(info["final_obs"][world], {name: value[world] for name, value in expected.items()})
            assert info["final_info"]["shared"][world] == final["shared"][world]
            records.append((now[world], bool(final["success"][world]), world == 0))
            now[world], given = tasks[given % 4], given + 1
            assert info["goal"][world] == now[world]["goal"]
        for world in np.flatnonzero(ended):
            expected, _ = plain.reset(options={"reset_mask": np.arange(3) == world, **now[world]})
        assert_same(observation, expected)
        assert info["shared"].tolist() == np.where(ended, -1, observation["step"]).tolist()
    assert curriculum.records == records
    assert {success for _, success, _ in records} == {True, False}
    assert env.metrics() == {"curriculum/given": float(given)}


def test_worlds_with_equal_options_share_a_reset_and_other_rows_are_kept():
    inner = Levels(4)
    state = np.ones(2)
    env = CurriculumVectorEnv(
        inner,
        Listed({"level": 1, NOTE: 1}, {"level": 2}, {"level": 1, NOTE: 2}, {"state": state}),
        deterministic_envs=0,
    )
    observation, _ = env.reset(seed=0)
    assert observation[:, 0].tolist() == [1, 2, 1, 3]
    # The first call is of all worlds, whatever it is for.
    assert inner.calls == [[True] * 4, [False, True, False, False], [False, False, False, True]]
    inner.calls.clear()
    observation, _, _, _, info = env.step(np.ones((4, 2), np.float32))  # ends worlds 0 and 2
    assert observation[:, 0].tolist() == [1, 2, 2, 3]
    assert info["final_obs"][0][0] == 1
    assert info["final_obs"][1] is None
    assert inner.calls == [[True, False, False, False], [False, False, True, False]]
    inner.calls.clear()
    env.step(np.ones((4, 2), np.float32))  # ends worlds 0, which gets level 1, and 1, which gets the array
    assert inner.calls == [[True, False, False, False], [False, True, False, False]]
    env = CurriculumVectorEnv(Levels(2), Listed({"state": state}), deterministic_envs=0)
    assert env.reset(seed=0)[0][:, 0].tolist() == [3, 3]
    assert env.env.calls == [[True, True], [False, True]]  # arrays are not compared


@pytest.mark.parametrize("graded", [0, 2])
def test_only_the_deterministic_worlds_are_graded(graded):
    curriculum = Listed({"level": 2})
    env = CurriculumVectorEnv(Levels(4), curriculum, deterministic_envs=graded)
    assert env.deterministic_envs == graded
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]], np.float32))
    expected = [({"level": 2}, world % 2 == 0, graded == 0 or world < graded) for _ in range(2) for world in range(4)]
    assert curriculum.records == expected


def gated(stages=3, **options):
    return SuccessGated([Stage(str(i), {"level": i + 1}) for i in range(stages)], **{"rehearsal": 0, **options})


def play(curriculum, outcomes, random=None):
    random = random or np.random.default_rng(0)
    for success in outcomes:
        curriculum.record(curriculum.sample(random), bool(success), True)
    return curriculum.stage


def test_promotion_needs_a_full_window_above_the_threshold():
    curriculum = gated(window=10)
    assert play(curriculum, [1] * 8 + [0]) == 0  # 8 of 9, but these are too few
    assert play(curriculum, [0]) == 0  # 8 of 10 is not above 0.8
    assert play(curriculum, [1] * 8) == 0  # of the last ten, two failed
    assert curriculum.metrics() == {"curriculum/stage": 0, "curriculum/promotions": 0, "curriculum/success": 0.8}
    assert play(curriculum, [1]) == 1
    assert curriculum.history == [{"episode": 19, "from": 0, "to": 1, "success": 0.9}]
    assert curriculum.metrics() == {"curriculum/stage": 1, "curriculum/promotions": 1}  # the window starts afresh
    assert play(curriculum, [1] * 9) == 1
    assert play(curriculum, [1]) == 2
    assert play(curriculum, [1] * 50) == 2  # the last one


def end(curriculum, stage, outcomes, graded=True):
    """Graded episodes of one stage, as if the others had not ended yet."""
    random = np.random.default_rng(0)
    for success in outcomes:
        options = curriculum.sample(random)
        while options["level"] != stage + 1:
            options = curriculum.sample(random)
        curriculum.record(options, bool(success), graded)
    return curriculum.stage


def test_demotion_needs_a_full_window_of_rehearsals_below_the_threshold(caplog):
    curriculum = gated(window=10, rehearsal=0.5)
    assert play(curriculum, [0] * 50) == 0  # the first one
    assert play(curriculum, [1] * 9) == 1
    assert end(curriculum, 1, [0] * 50) == 1  # hard at first, which is no reason to go back
    assert curriculum.metrics() == {"curriculum/stage": 1, "curriculum/promotions": 1, "curriculum/success": 0}
    assert end(curriculum, 0, [0, 0, 0, 1, 1, 0, 1, 0, 0]) == 1  # 3 of 9: too few, even if all but these failed
    assert end(curriculum, 0, [0]) == 1  # 3 of 10 is not below 0.3
    assert end(curriculum, 0, [0] * 3) == 1  # the window moves on past three failures
    assert curriculum.metrics()["curriculum/rehearsal"] == 0.3
    with caplog.at_level(logging.INFO, "offroad.tasks.curriculum"):
        assert end(curriculum, 0, [0]) == 0
    assert "demoted from stage '1' to '0' after 123 episodes" in caplog.text
    assert curriculum.history == [
        {"episode": 59, "from": 0, "to": 1, "success": 0.9},
        {"episode": 123, "from": 1, "to": 0, "success": 0.2},
    ]
    assert curriculum.metrics() == {"curriculum/stage": 0, "curriculum/promotions": 1}  # both windows start afresh
    assert end(curriculum, 0, [1] * 9) == 0
    assert end(curriculum, 0, [1]) == 1


def test_rehearsals_of_all_earlier_stages_count_together_and_never_promote():
    curriculum = gated(window=4, rehearsal=0.5)
    assert play(curriculum, [1] * 4) == 1
    assert end(curriculum, 0, [1] * 50) == 1
    assert end(curriculum, 1, [1] * 4) == 2
    assert end(curriculum, 0, [0, 0, 1]) == 2
    assert end(curriculum, 1, [1]) == 2
    assert end(curriculum, 1, [0, 0]) == 2  # the newest four: 1 1 0 0
    assert end(curriculum, 0, [0]) == 1  # 1 0 0 0, to the stage before, whichever was lost
    assert [(change["from"], change["to"]) for change in curriculum.history] == [(0, 1), (1, 2), (2, 1)]
    assert curriculum.history[-1]["success"] == 0.25


def test_only_graded_episodes_that_began_since_the_last_change_count():
    curriculum = gated(window=2, rehearsal=0.5)
    random = np.random.default_rng(0)
    early = curriculum.sample(random)
    assert end(curriculum, 0, [1] * 10, graded=False) == 0
    assert curriculum.episodes == 10
    assert end(curriculum, 0, [1, 1]) == 1
    for _ in range(10):
        curriculum.record(early, False, True)  # of stage 0, but no rehearsal: it began before the promotion
    assert end(curriculum, 0, [0] * 10, graded=False) == 1
    assert curriculum.metrics() == {"curriculum/stage": 1, "curriculum/promotions": 1}
    assert end(curriculum, 0, [0, 0]) == 0
    for _ in range(10):
        curriculum.record(early, True, True)  # the same stage, but an earlier stay
    assert "curriculum/success" not in curriculum.metrics()
    assert curriculum.stage == 0
    assert curriculum.episodes == 44


def test_a_restored_curriculum_goes_on_in_the_same_way():
    def follow(curriculum, seed, count):
        """Episodes that fail in a third of the cases; what is told after each."""
        random = np.random.default_rng(seed)
        for _ in range(count):
            options = curriculum.sample(random)
            curriculum.record(options, bool(random.random() < 2 / 3), bool(random.random() < 0.8))
            yield options, curriculum.metrics(), list(curriculum.history)

    options = {"stages": 4, "promote": 0.7, "demote": 0.6, "window": 5, "rehearsal": 0.4}
    curriculum = gated(**options)
    for cut in range(20):
        list(follow(curriculum, cut, 13))
        other = gated(**options)
        list(follow(other, 99, 30))
        other.set_state(json.loads(json.dumps(curriculum.get_state())))
        assert other.get_state() == curriculum.get_state()
        copy = gated(**options)
        copy.set_state(curriculum.get_state())
        assert list(follow(copy, 7, 60)) == list(follow(other, 7, 60))
    directions = {change["to"] - change["from"] for change in curriculum.history}
    assert directions == {1, -1}


def test_rehearsal_draws_earlier_stages_uniformly():
    curriculum = gated(4, window=1, rehearsal=0.3)
    random, n = np.random.default_rng(0), 20_000
    assert {curriculum.sample(random)["level"] for _ in range(100)} == {1}
    while curriculum.stage < 3:
        play(curriculum, [1], random)
    counts = np.bincount([curriculum.sample(random)["level"] for _ in range(n)], minlength=5)[1:]
    share = np.array([0.1, 0.1, 0.1, 0.7])
    assert (abs(counts / n - share) < 4.5 * np.sqrt(share * (1 - share) / n)).all()


def test_a_stage_draws_its_sets_by_weight_and_its_numbers_uniformly():
    stage = Stage("mixed", [(3, {"blocks": 2}), (1, {"blocks": 1, "distance": Uniform(0.5, 1.5)}), (0, {"blocks": 9})])
    random, n = np.random.default_rng(0), 20_000
    drawn = [stage.sample(random) for _ in range(n)]
    near = np.array([options["distance"] for options in drawn if options["blocks"] == 1])
    assert {tuple(options) for options in drawn} == {("blocks",), ("blocks", "distance")}
    assert abs(len(near) / n - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / n)
    assert 0.5 <= near.min() < 0.51
    assert 1.49 < near.max() < 1.5
    assert abs(near.mean() - 1) < 4.5 * np.sqrt(1 / 12 / len(near))
    assert Stage("one", {"blocks": 1}).sample(random) == {"blocks": 1}


def run(env, count, seed):
    """What an environment shows, and what its curriculum says, while odd worlds fail half of the time."""
    found = []
    for action in actions(env, count, seed, low=-0.2):
        observation, _, terminated, _, info = env.step(action)
        found.append((observation, terminated, str(info), env.metrics(), str(env.curriculum.history)))
    return found


def test_a_run_continues_from_a_saved_state_to_the_bit(tmp_path):
    def make():
        stages = [Stage("a", {"level": 1}), Stage("b", [(1, {"level": 2}), (1, {"state": np.ones(2)})])]
        stages.append(Stage("c", {"level": 3}))
        return CurriculumVectorEnv(
            Levels(4), SuccessGated(stages, demote=0.7, window=4, rehearsal=0.5), deterministic_envs=2
        )

    env, other = make(), make()
    env.reset(seed=1)
    run(env, 30, 0)
    assert env.curriculum.history
    assert env.curriculum.get_state()["rehearsed"]
    checkpoint.save(tmp_path / "state", {"env": env.get_state()})
    expected = run(env, 60, 1)
    other.reset(seed=2)
    run(other, 5, 3)
    other.set_state(checkpoint.load(tmp_path / "state").value("env"))
    found = run(other, 60, 1)
    assert_same(found, expected)
    assert env.curriculum.get_state() == other.curriculum.get_state()
    assert found[0][-1] != found[-1][-1]


def test_the_seed_of_reset_decides_everything():
    def observations(seed):
        env = CurriculumVectorEnv(walks(), SuccessGated([Stage("far", {"goal": Uniform(1, 9)})]), deterministic_envs=0)
        starts = env.reset(seed=seed)
        return starts, [env.step(action) for action in actions(env, 10)]

    found = observations(4)
    assert_same(found, observations(4))
    assert found[0][1]["goal"][0] != np.random.default_rng(4).uniform(1, 9)  # world 0 draws its noise from these
    assert found[0][1]["goal"].tolist() != observations(5)[0][1]["goal"].tolist()


@pytest.mark.parametrize("nested", [False, True])
def test_the_host_collector_sees_same_step_autoreset(nested):
    ends = [{"end": 3, "nested": nested}, {"cut": 4, "nested": nested}, {"end": 2, "cut": 2, "nested": nested}]

    def success(observation, info):
        return (observation["where"] if nested else observation)[:, 1] > 2

    curriculum = SuccessGated([Stage("only", {"x": 0})], window=100)
    wrapped = CurriculumVectorEnv(steps_env(*ends, mode=DISABLED), curriculum, success=success, deterministic_envs=0)
    agent, parts = Proportional.create(Spaces.of(wrapped)), []
    for env in (wrapped, steps_env(*ends, mode=SAME)):
        collector = HostCollector(env)
        collector.reset(agent, 0)
        parts.append([collector.collect(agent, jax.random.key(0), length) for length in (5, 7)])
        assert collector.get_state()["env"] is None  # as the environment inside has no state
    for (rollout, episodes), (expected, ended) in zip(*parts):
        assert episodes == ended
        for a, b in zip(leaves(rollout), leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    assert curriculum.episodes == 4 + 3 + 6
    assert curriculum.metrics()["curriculum/success"] == 7 / 13


def failing_step(**options):
    env = CurriculumVectorEnv(Levels(2), Listed({}), deterministic_envs=0, **options)
    env.reset(seed=0)
    env.step(np.ones((2, 2), np.float32))


ERRORS = {
    "no stages": lambda: SuccessGated([]),
    "demote=0.9": lambda: gated(demote=0.9),
    "promote=1 ": lambda: gated(promote=1),
    "window=0": lambda: gated(window=0),
    "rehearsal=1;": lambda: gated(rehearsal=1),
    "does not fit one of 2 stages": lambda: gated(2).set_state(gated().get_state() | {"stage": 2}),
    "10 episodes in its window": lambda: gated(window=9).set_state(gated().get_state() | {"present": [True] * 10}),
    r"weights \[\]": lambda: Stage("empty", []),
    r"weights \[-1.0, 2.0\]": lambda: Stage("odd", [(-1, {}), (2, {})]),
    r"Uniform\(2, 1\)": lambda: Uniform(2, 1),
    "autoreset_mode NEXT_STEP": lambda: CurriculumVectorEnv(walks(mode=AutoresetMode.NEXT_STEP), Listed({})),
    "fewer than the 3 worlds": lambda: CurriculumVectorEnv(walks(), Listed({})),
    r"options \['goal'\]": lambda: CurriculumVectorEnv(walks(), Listed({}), deterministic_envs=0).reset(
        options={"goal": 1}
    ),
    r"world 0 and its info has no 'is_success', only \['success'\]": lambda: failing_step(success="is_success"),
    r"has shape \(\), expected \(2,\)": lambda: failing_step(success=lambda observation, info: True),
}


@pytest.mark.parametrize("message", ERRORS)
def test_mistakes_are_told(message):
    with pytest.raises(OffroadError, match=message):
        ERRORS[message]()
