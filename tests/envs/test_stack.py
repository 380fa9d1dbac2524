"""The stacking environment: its goals, rewards, physics and states."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from offroad.envs.stack import Stack
from offroad.envs.stack.goals import TASKS, starts
from offroad.envs.stack.scene import BLOCK, build
from offroad.envs.stack.stack import _orientation
from offroad.errors import OffroadError

IDLE = [0.0, 0.0, 0.0, 0.32]  # with open fingers
TALL = [[0.0, 0.0, BLOCK * (k + 0.5)] for k in range(9)]


def one(**kwargs):
    return Stack(1, autoreset_mode="Disabled", num_threads=1, **kwargs)


def start(env, blocks, goals, hand=(0.0, 0.0, 0.4), fingers=0.04):
    """Resets to a state of one's own; returns the first observation."""
    blocks = np.asarray(blocks, float)
    env.reset(seed=0)
    qpos, qvel = env.qpos[0].copy(), np.zeros(env.qvel.shape[1])
    qpos[:5] = *hand, fingers, fingers
    pose = qpos[5:].reshape(-1, 7)
    pose[: len(blocks)] = 0.0
    pose[: len(blocks), :3], pose[: len(blocks), 3] = blocks, 1.0
    return env.reset(options={"state": {"qpos": qpos, "qvel": qvel, "goals": np.asarray(goals, float)}})[0]


def repeat(env, action, times):
    for _ in range(times):
        step = env.step(np.tile(action, (env.num_envs, 1)))
    return step


# --- Gymnasium


@pytest.mark.filterwarnings("ignore:.*")
def test_gymnasium_is_content():
    check_env(gym.make("offroad/Stack-v0", blocks=3).unwrapped, skip_render_check=True)
    env = gym.make_vec("offroad/Stack-v0", 3, blocks=2)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space


def test_a_seed_gives_the_same_episodes():
    first, second = (Stack(3, blocks=3, num_threads=k) for k in (1, 2))
    assert data_equivalence(first.reset(seed=4), second.reset(seed=4), exact=True)
    assert data_equivalence(repeat(first, [1, 0, 0, 0], 2), repeat(second, [1, 0, 0, 0], 2), exact=True)
    a, b = first.reset(seed=4)[0], first.reset()[0]
    assert not np.array_equal(a["goals"], b["goals"])
    assert np.array_equal(Stack(1, blocks=3).reset(seed=6)[0]["objects"][0], a["objects"][2])


def test_absent_blocks_leave_no_trace():
    env = Stack(2, blocks=4)
    observation, _ = env.reset(seed=0, options={"blocks": 2})
    away = env.qpos[:, 5 + 14 :].copy()
    for _ in range(3):
        assert (observation["mask"] == [1, 1, 0, 0]).all()
        assert not observation["objects"][:, 2:].any()
        assert not observation["goals"][:, 2:].any()
        assert observation["objects"][:, :2].any(-1).all()
        observation = env.step(env.action_space.sample())[0]
    assert np.array_equal(env.qpos[:, 5 + 14 :], away)


def test_same_step_resets_hand_over_the_final_observation():
    env, other = (Stack(2, blocks=2, max_episode_steps=2, autoreset_mode=mode) for mode in ("SameStep", "Disabled"))
    env.reset(seed=0), other.reset(seed=0)
    observation, _, _, truncated, info = repeat(env, [1, 0, 0, 0], 2)
    final = repeat(other, [1, 0, 0, 0], 2)[0]
    assert truncated.all()
    for world in range(2):
        assert data_equivalence(info["final_obs"][world], {k: v[world] for k, v in final.items()}, exact=True)
    assert not np.array_equal(observation["goals"], final["goals"])
    assert set(info["final_info"]) >= {"success", "success_strict", "placed"}


# --- tasks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", TASKS)
def test_goals_are_what_their_task_says(task, seed):
    random = np.random.default_rng(seed)
    for blocks in (1, 2, 4, 6, 9):
        begin = starts(random, blocks)
        gaps = np.linalg.norm(begin[:, None] - begin, axis=-1)[~np.eye(blocks, dtype=bool)]
        assert (gaps >= 0.06).all()
        assert (np.hypot(*begin[:, :2].T) >= 0.10).all()
        goals = TASKS[task](random, begin)
        assert goals.shape == (blocks, 3)
        level = np.round(goals[:, 2] / BLOCK - 0.5)
        if task != "pick":
            assert np.allclose(goals[:, 2], BLOCK * (level + 0.5))
        if task == "tower":
            assert np.ptp(goals[:, :2], axis=0).max() == 0
            assert level.tolist() == list(range(blocks))
        elif task == "towers":
            sites, members = np.unique(goals[:, :2], axis=0, return_inverse=True)
            assert len(sites) == (1 if blocks < 3 else 2 if blocks < 6 else 3)
            apart = np.linalg.norm(sites[:, None] - sites, axis=-1)[~np.eye(len(sites), dtype=bool)]
            assert (apart >= 0.12).all()
            for site in range(len(sites)):
                assert level[members == site].tolist() == list(range((members == site).sum()))
        elif task == "pyramid":
            assert np.ptp(goals[:, 1]) == 0
            for high in goals[level > 0]:  # each rests on two, 3 cm to both sides
                below = goals[np.isclose(goals[:, 2], high[2] - BLOCK), 0] - high[0]
                assert np.isclose(below, 0.03).any()
                assert np.isclose(below, -0.03).any()
        else:
            assert (goals[:, 2] > BLOCK / 2).sum() <= 1
            assert goals[:, 2].max() <= BLOCK / 2 + 0.45


def test_the_first_goal_can_be_near():
    env = Stack(8, blocks=3)
    observation, _ = env.reset(seed=0, options={"goal_distance": 0.05})
    gap = np.linalg.norm((observation["objects"][:, 0, :3] - observation["goals"][:, 0])[:, :2], axis=1)
    assert (gap < 0.0501).all()
    assert np.ptp(observation["goals"][..., :2], axis=1).max() == 0  # still towers


MISTAKES = {
    "room for 2; make the environment with blocks=3": {"blocks": 3},
    "expected 1 to 2": {"blocks": 0},
    "unknown task 'towr'; did you mean 'tower'": {"task": "towr"},
    "unknown reset option 'block'; did you mean 'blocks'": {"block": 1},
    "options ask for 2 of 2 blocks built and held=True": {"built": 2, "held": True},
    "does not fit a scene for 2 blocks": {
        "state": {"qpos": np.zeros(3), "qvel": np.zeros(3), "goals": np.zeros((1, 3))}
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_in_options(message):
    with pytest.raises(OffroadError, match=message):
        one(blocks=2).reset(options=MISTAKES[message])


@pytest.mark.parametrize("wrong", [{"blocks": 10}, {"decision": "lng"}, {"precision": "x"}, {"task": "tour"}])
def test_mistakes_in_arguments(wrong):
    with pytest.raises(OffroadError, match=str(next(iter(wrong.values())))):
        Stack(1, **wrong)


# --- reward


def brute_force(observation, distance, height, away):
    """The paper's incremental reward of one world, plus whether all blocks are in place; then moved into [-1, 0]."""
    present = int(observation["mask"].sum())
    missing = 0
    for position, goal in zip(observation["objects"][:present, :3], observation["goals"][:present]):
        missing += not (np.linalg.norm(position - goal) <= distance and abs(position[2] - goal[2]) <= height)
    gone = all(np.linalg.norm(observation["robot"][:3] - goal) > away for goal in observation["goals"][:present])
    incremental = -missing if missing else int(gone)
    return (incremental - 1) / (present + 1), not missing


@pytest.mark.parametrize(("precision", "limits"), [("loose", (0.05, np.inf, 0.10)), ("strict", (0.025, 0.01, 0.08))])
def test_the_reward_is_the_papers_moved_into_the_unit_interval(precision, limits):
    env = one(blocks=4, precision=precision)
    random = np.random.default_rng(0)
    lead = (40, 3)
    mask = (np.arange(4) < random.integers(1, 5, (*lead, 1))).astype(np.int8)
    goals = random.uniform(-0.1, 0.1, (*lead, 4, 3)) * mask[..., None]
    objects = np.zeros((*lead, 4, 16), np.float32)
    scale = random.choice([0.003, 0.02], (*lead, 1, 1))
    objects[..., :3] = (goals + random.normal(0, 1, goals.shape) * scale) * mask[..., None]
    robot = random.uniform(-0.2, 0.2, (*lead, 10)).astype(np.float32)
    batch = {"robot": robot, "objects": objects, "goals": goals.astype(np.float32), "mask": mask}
    reward, success = env.compute_reward(batch), env.compute_success(batch, "loose")
    assert reward.shape == success.shape == lead
    seen = set()
    for at in np.ndindex(lead):
        expected, complete = brute_force({name: value[at] for name, value in batch.items()}, *limits)
        assert reward[at] == pytest.approx(expected, abs=1e-6)
        if precision == "loose":
            assert success[at] == complete
        seen.add(np.sign(round(expected, 6)) if complete else 2)
    assert {0, -1, 2} <= seen  # done, done but the hand is near, and not done
    assert -1 <= reward.min() <= reward.max() <= 0


@pytest.mark.parametrize("precision", ["loose", "strict"])
def test_steps_report_what_the_functions_compute(precision):
    env = Stack(4, blocks=3, precision=precision)
    env.reset(seed=0, options={"built": 2})
    for _ in range(3):
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        assert np.array_equal(reward, env.compute_reward(observation))
        for suffix in ("", "_loose", "_strict"):
            found = env.compute_success(observation, suffix[1:] or None)
            assert np.array_equal(info["success" + suffix], found)
        assert np.array_equal(info["placed"], env.placed(observation, env.precision).sum(1))
        assert not terminated.any()


def test_a_goal_in_the_air_needs_the_hand_and_others_need_it_away():
    env = one(blocks=1)
    for goal, hand, success in (
        ([0.1, 0.0, 0.3], [0.1, 0.0, 0.3], True),
        ([0.1, 0.0, 0.025], [0.1, 0.0, 0.06], False),
        ([0.1, 0.0, 0.025], [0.1, 0.0, 0.2], True),
    ):
        observation = start(env, [goal], [goal], hand)
        assert env.compute_success(observation, "strict") == [success]


# --- physics


@pytest.mark.parametrize(("decision", "reach", "seconds"), [("long", 0.10, 0.184), ("short", 0.05, 0.04)])
def test_decisions(decision, reach, seconds):
    env = one(blocks=1, decision=decision)
    before = start(env, [[0.2, 0.2, 0.025]], [[0, 0, 0.025]])["robot"][0, :3]
    assert env.dt == pytest.approx(seconds)
    moved = env.step(np.array([[1.0, 0.5, -0.5, 0.0]]))[0]["robot"][0, :3] - before
    if decision == "long":  # arrives within the decision
        assert np.allclose(moved, [reach, reach / 2, -reach / 2], atol=0.004)
    else:
        assert 0.6 * reach < moved[0] <= 1.05 * reach
    lifts = start(env, [[0, 0, 0.025]], [[0, 0, 0.025]], hand=(0, 0, 0.025), fingers=0.033)
    lifts = env.step(np.array([[0, 0, 1.0, -1.0]]))[0]["objects"][0, 0, 2]
    assert (lifts > 0.1) == (decision == "long")  # which closes the fingers first


@pytest.mark.parametrize("decision", ["long", "short"])
def test_a_held_block_stays_in_the_hand(decision):
    env = one(blocks=2, decision=decision)
    env.reset(seed=1, options={"held": True})
    offset = repeat(env, [0, 0, 0, -1], 3)[0]["objects"][0, 0, 3:6]
    for action in ([0, 0, 1, -1], [1, 1, 0, -1], [-1, 0, 1, -1], [0, -1, -1, -1]):
        observation = env.step(np.array([action], float))[0]
        assert np.abs(observation["objects"][0, 0, 3:6] - offset).max() < 0.01  # the fingers give way
    observation = repeat(env, [0, 0, 0, -1], 8)[0]
    assert np.abs(observation["objects"][0, 0, 3:6] - offset).max() < 0.002


def test_without_friction_a_grasp_fails():
    env = one(blocks=1, friction=0.01)
    env.reset(seed=1, options={"held": True})
    observation = repeat(env, [0, 0, 0.5, -1], 4)[0]
    assert observation["objects"][0, 0, 2] < 0.1 < observation["robot"][0, 2]


def test_what_is_built_stands():
    env = Stack(6, blocks=4)
    observation, info = env.reset(seed=0, options={"built": 3})
    assert (info["placed"] >= 3).all()
    assert (observation["objects"][:, 3, 2] < 0.03).all()
    observation, *_, info = repeat(env, IDLE, 8)
    assert (info["placed"] >= 3).all()
    env.reset(seed=0, options={"built": 4})
    assert env.stands().all()
    assert env.stands().all()  # nothing has moved meanwhile
    env.qpos[:, 5 + 21 : 5 + 23] += 0.02  # of the fourth block
    assert not env.stands(0.2).any()


def test_a_tower_of_six_stands_still():
    env = one(blocks=6, max_episode_steps=1000)
    start(env, TALL[:6], TALL[:6], hand=(0.25, 0.25, 0.5))
    settled = repeat(env, IDLE, 6)[0]["objects"][0, :, :3]
    after = repeat(env, IDLE, 55)[0]["objects"][0, :, :3]  # 10 s
    assert np.abs(after - settled).max() < 0.001
    assert np.abs(after - np.array(TALL[:6]))[:, :2].max() < 0.001
    assert env.stands().all()


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (0, 8), (3, 7)])
def test_blocks_that_are_aligned_touch_and_no_more(pair):
    """MuJoCo finds contacts as deep as a block where edges of equal boxes coincide."""
    model = build(9, 9)
    data = mujoco.MjData(model)
    data.qpos[2] = 0.5
    pose = data.qpos[5:].reshape(-1, 7)
    geoms = {model.geom(f"block{i}").id for i in pair}
    random, deepest = np.random.default_rng(0), 0.0
    for _ in range(400):
        offset = random.normal(0, 10.0 ** random.uniform(-7, -4), 2)
        pose[pair[0], :3], pose[pair[1], :3] = [0, 0, 0.0249], [*offset, 0.0743]
        pose[list(pair), 3:] = np.eye(4)[0] + random.normal(0, 1e-7, (2, 4))
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        deepest = min(deepest, *(contact.dist for contact in data.contact if set(contact.geom) == geoms))
    assert -0.001 < deepest < 0


# --- states


def mixed():
    """An environment whose worlds hold 1 to 3 blocks."""
    env = Stack(3, blocks=3)
    env.reset(seed=0)
    for world in range(3):
        env.reset(options={"reset_mask": np.arange(3) == world, "blocks": world + 1, "built": world % 2})
    return env


def test_a_restored_environment_continues_to_the_bit():
    env, restored = mixed(), Stack(3, blocks=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (55, 3, 4))
    for action in actions[:5]:
        env.step(action)
    state = env.get_state()
    restored.set_state(state)
    ended = 0
    for action in actions[5:]:
        step = env.step(action)
        assert data_equivalence(step, restored.step(action), exact=True)
        ended += step[3].any()
    assert ended >= 2  # worlds of 1, 2 and 3 blocks have other limits


def test_an_episode_continues_from_the_state_of_a_world():
    env, other = mixed(), one(blocks=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (8, 3, 4))
    for action in actions[:4]:
        env.step(action)
    for world in range(3):
        first, _ = other.reset(options={"state": env.world_state(world)})
        now = env._observe()
        assert all(np.array_equal(first[name][0], now[name][world]) for name in first)
        assert other._limits[0] == 15 * (world + 1)
    for action in actions[4:]:
        expected, found = env.step(action), other.step(action[2:])
        assert all(np.array_equal(found[0][name][0], expected[0][name][2]) for name in expected[0])
        assert found[1][0] == expected[1][2]


def test_divergence_ends_one_world_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file
    env, healthy = (Stack(3, blocks=2) for _ in range(2))
    before, _ = env.reset(seed=0)
    healthy.reset(seed=0)
    env.qvel[1] = 1e20
    observation, reward, _, truncated, info = repeat(env, IDLE, 1)
    expected = repeat(healthy, IDLE, 1)
    assert truncated.tolist() == [False, True, False]
    assert env.divergences.tolist() == [0, 1, 0]
    assert info["diverged"].tolist() == [False, True, False]
    assert reward[1] == 0
    for name, value in observation.items():
        assert np.array_equal(value[[0, 2]], expected[0][name][[0, 2]])
    observation, *_, truncated, info = repeat(env, IDLE, 1)  # a new episode
    assert np.isfinite(observation["objects"]).all()
    assert not np.array_equal(observation["goals"][1], before["goals"][1])
    assert not truncated.any()


# --- orientation


def turned(quaternion, axis, angle):
    """A quaternion followed, in the body's frame, by a turn."""
    other = np.array([np.cos(angle / 2), *(np.sin(angle / 2) * np.asarray(axis, float))])
    result = np.zeros(4)
    mujoco.mju_mulQuat(result, quaternion, other)
    return result


def test_a_cube_looks_the_same_on_every_face():
    random = np.random.default_rng(0)
    for _ in range(20):
        level = turned(np.eye(4)[0], [0, 0, 1], random.uniform(-np.pi, np.pi))
        leaning = turned(level, [1, 0, 0], random.uniform(0, 0.3))
        # While a cube leans, its two other axes turn by angles that differ a little: only its tilt is exact.
        for pose, exact in ((level, slice(0, 4)), (leaning, slice(2, 4))):
            seen = [_orientation(turned(pose, axis, k * np.pi / 2))[exact] for axis in np.eye(3) for k in range(4)]
            assert np.allclose(seen, seen[0], atol=1e-9)


def test_yaw_and_tilt_have_their_meaning():
    for angle in (0.1, 0.7, -0.4):
        features = _orientation(turned(np.eye(4)[0], [0, 0, 1], angle))
        assert np.allclose(features, [np.sin(4 * angle), np.cos(4 * angle), 0, 0])
    leaning = _orientation(turned(np.eye(4)[0], [1, 0, 0], 0.2))  # the upper face turns towards -y
    assert np.allclose(leaning[2:], [0, -np.sin(0.2)])
