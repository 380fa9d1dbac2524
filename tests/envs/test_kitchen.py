"""The kitchen beside gymnasium-robotics' own, its rewards, the demonstrator and the scripted data."""

from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offroad.data.dataset import Dataset
from offroad.envs.kitchen import Kitchen, model, recipes
from offroad.envs.kitchen.demonstrator import ARM, Demonstrator, Kinematics, attitude
from offroad.envs.kitchen.model import GOALS, NOISE, SETS, START, goal, satisfied
from offroad.errors import OffroadError

pytest.importorskip("gymnasium_robotics")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")


def one(**kwargs):
    return Kitchen(1, autoreset_mode="Disabled", num_threads=1, **kwargs)


# --- the environment


def test_it_moves_as_gymnasium_robotics_does():
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    theirs = gym.make("FrankaKitchen-v1", robot_noise_ratio=0.0, object_noise_ratio=0.0).unwrapped
    theirs.reset(seed=0)
    ours, random = one(noise=0), np.random.default_rng(0)
    observation, _ = ours.reset(seed=0)
    assert np.allclose(observation[0, :30], theirs.data.qpos, atol=1e-6)
    action = np.zeros(9)
    for _ in range(40):
        action = 0.8 * action + 0.5 * random.normal(size=9)
        theirs.data.qacc_warmstart[:] = 0.0  # ours starts every solution afresh
        expected = theirs.step(action)[0]["observation"]
        observation, *_ = ours.step(action[None])
        assert np.allclose(ours.qpos[0], theirs.data.qpos, rtol=0, atol=1e-9)
        assert np.allclose(ours.qvel[0], theirs.data.qvel, rtol=0, atol=1e-9)
    assert np.allclose(observation[0, :9], expected[:9], atol=1e-6)
    assert np.allclose(observation[0, 9:30], expected[18:39], atol=1e-6)
    assert np.abs(ours.qpos[0, :ARM] - START[:ARM]).max() > 0.3  # it did move


def test_goals_are_those_of_gymnasium_robotics():
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    assert GOALS.keys() == kitchen_env.OBS_ELEMENT_GOALS.keys()
    for task, (joints, values) in GOALS.items():
        assert np.array_equal(np.arange(30)[joints], kitchen_env.OBS_ELEMENT_INDICES[task])
        assert np.array_equal(values, kitchen_env.OBS_ELEMENT_GOALS[task])
    assert model.NEAR == kitchen_env.BONUS_THRESH
    assert not satisfied(START, tuple(GOALS)).any()
    assert satisfied(goal(tuple(GOALS)), tuple(GOALS)).all()


def test_gymnasium_is_content():
    check_env(gym.make("offroad/Kitchen-mixed-v0").unwrapped, skip_render_check=True)
    env = gym.make_vec("offroad/Kitchen-partial-v0", 2)
    assert env.max_episode_steps == 280
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert np.array_equal(observation[:, 30:], np.tile(goal(SETS["partial"]).astype(np.float32), (2, 1)))
    assert info["score"].tolist() == [0.0, 0.0]
    assert env.step(env.action_space.sample())[0] in env.observation_space


def test_a_subtask_is_paid_once_and_all_of_them_end_the_episode():
    env = one(noise=0)
    env.reset(seed=0)
    idle = np.zeros((1, 9))

    def put(*tasks):
        env.qpos[0] = START
        for task in tasks:
            joints, values = GOALS[task]
            env.qpos[0, joints] = values
        _, reward, terminated, _, info = env.step(idle)
        return reward[0], terminated[0], info["completed"][0], info["score"][0], info["success"][0]

    assert put("microwave") == (1, False, 1, 25, False)
    assert env.satisfied()[0].tolist() == [True, False, False, False]
    assert put("microwave") == (0, False, 1, 25, False)
    assert put("bottom burner") == (0, False, 1, 25, False)  # no target; the microwave is shut again, but was done
    assert put("kettle", "light switch") == (2, False, 3, 75, False)
    assert put("slide cabinet") == (1, True, 4, 100, True)
    assert env.reset()[1]["completed"].tolist() == [0]


def test_noise_is_d4rls_and_moves_what_is_told_to_the_actuators():
    env = Kitchen(3, num_threads=1)
    seen, _ = env.reset(seed=0)
    error = seen[:, :30] - START
    assert (np.abs(error) <= 0.1 * NOISE + 1e-6).all()
    assert np.abs(error[:, :ARM]).max() > 0.004
    assert np.allclose(env._controls(np.zeros((3, 9)))[:, :ARM], seen[:, :ARM], atol=1e-6)
    again, _ = Kitchen(1, num_threads=1).reset(seed=2)
    assert np.array_equal(again[0], seen[2])
    assert not np.array_equal(env.reset()[0], seen)


def test_it_resumes_to_the_bit():
    first, second = Kitchen(2, num_threads=1), Kitchen(2, num_threads=1)
    first.reset(seed=0)
    second.reset(seed=5)
    action = np.full((2, 9), 0.3)
    first.step(action)
    second.set_state(first.get_state())
    assert np.array_equal(first.step(action)[0], second.step(action)[0])


def test_mistakes_are_one_sentence(monkeypatch):
    with pytest.raises(OffroadError, match="unknown set of kitchen tasks 'mixd'"):
        one(tasks="mixd")
    with pytest.raises(OffroadError, match="unknown kitchen task 'toaster'"):
        one(tasks=("toaster",))
    with pytest.raises(OffroadError, match="no tasks"):
        one(tasks=())
    with pytest.raises(OffroadError, match="the only one is 'reset_mask'"):
        one().reset(options={"task": "kettle"})
    with pytest.raises(OffroadError, match="unknown kitchen data set 'kitchen-complet'"):
        recipes.make("kitchen-complet", 10)
    with pytest.raises(OffroadError, match="0 steps"):
        recipes.make("kitchen-mixed", 0)
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(OffroadError, match=r"pip install 'offroad\[robotics\]'"):
        one()


# --- the demonstrator


def test_an_attitude_is_a_rotation_that_starts_pointing_into_the_kitchen():
    for yaw, pitch in ((0, 0), (0.4, 0), (0, 0.6), (-0.3, 0.5)):
        hand = attitude(yaw, pitch)
        assert np.allclose(hand.T @ hand, np.eye(3))
        assert np.linalg.det(hand) == pytest.approx(1)
    assert np.allclose(attitude()[:, 2], [0, 1, 0])
    assert attitude(pitch=0.5)[2, 2] < 0 < attitude(yaw=-0.5)[0, 2]


def test_the_hand_goes_where_it_is_told():
    """Through the physics, from where an episode starts, with gravity, to 2 cm."""
    env = one(noise=0, tasks=tuple(GOALS))
    env.reset(seed=0)
    body = Kinematics(env.models[0])
    body.see(env.qpos[0].copy())
    waypoint = body.travel(np.array([-0.3, 0.4, 2.2]), attitude(pitch=0.3))
    for _ in range(25):
        body.see(env.qpos[0].copy())
        env.step(np.clip(body.action(waypoint), -1, 1)[None])
    body.see(env.qpos[0].copy())
    assert np.linalg.norm(body.tip() - waypoint.point) < 0.02
    assert np.abs(env.qpos[0, :ARM] - waypoint.joints).max() < 0.05


def test_where_a_handle_would_be():
    body = Kinematics(model.load())
    body.see(START)
    shut, opened = body.site("slide_site"), body.site("slide_site", "slide_cabinet", 0.3)
    assert np.allclose(opened - shut, [0.3 - START[19], 0, 0])
    assert np.array_equal(body.site("slide_site"), shut)  # asking moves nothing
    with pytest.raises(OffroadError, match="unknown kitchen task 'toast'"):
        Demonstrator(model.load(), ("kettle", "toast"), np.random.default_rng(0))


def test_the_script_switches_the_light_on():
    env = Kitchen(2, tasks=("light switch",), terminate=False, num_threads=2)
    observation, _ = env.reset(seed=0)
    drivers = [Demonstrator(env.models[0], ("light switch",), np.random.default_rng(i), noise=i) for i in range(2)]
    rewards = np.zeros(2)
    for _ in range(120):
        action = np.stack([driver.act(row) for driver, row in zip(drivers, observation)])
        assert np.abs(action).max() <= 0.95
        observation, reward, *_ = env.step(action)
        rewards += reward
        if all(driver.finished for driver in drivers):
            break
    assert rewards.tolist() == [1, 1]
    assert all(driver.finished for driver in drivers)


# --- the data


def episode(sequence, length, done_at):
    """Subtasks are done from the given steps on."""
    done = np.zeros((length, 7), bool)
    for task, step in done_at.items():
        done[step:, list(GOALS).index(task)] = True
    seen = np.arange(length + 1)[:, None] + np.zeros(30)
    return recipes.Episode(sequence, seen, np.zeros((length, 9), np.float32), done)


def test_sequences():
    assert len(set(recipes.SEQUENCES)) == 24
    sets = [set(sequence) for sequence in recipes.SEQUENCES]
    assert all(len(four) == 4 and four <= GOALS.keys() for four in sets)
    assert sets.count(set(SETS["partial"])) == 4
    assert set(SETS["mixed"]) not in sets
    assert set.union(*sets) == GOALS.keys()
    for sequence in recipes.SEQUENCES:
        if {"slide cabinet", "hinge cabinet"} <= set(sequence):
            assert sequence.index("slide cabinet") < sequence.index("hinge cabinet")


def test_rewards_ends_and_goals_of_the_data(monkeypatch):
    everything = episode(SETS["mixed"], 30, {task: 5 * i for i, task in enumerate(SETS["mixed"])})
    part = episode(("microwave", "top burner", "hinge cabinet", "kettle"), 20, {"microwave": 4, "top burner": 2})
    monkeypatch.setattr(recipes, "demonstrations", lambda *args, **kwargs: iter([everything, part, part, part]))
    told = []
    made = recipes.make("kitchen-mixed", 50, progress=told.append)
    columns = made.columns
    assert told == [20, 40, 50]
    assert made.provenance["episodes left out"] == 1
    assert np.flatnonzero(columns["truncated"]).tolist() == [19, 39, 49]
    assert not columns["terminated"].any()
    assert np.array_equal(columns["rewards"], np.tile([0] * 4 + [1] * 16, 3)[:50])
    assert columns["final_observations"][:, 0].tolist() == [20, 20, 10]
    assert (columns["observations"][:, 30:] == goal(SETS["mixed"]).astype(np.float32)).all()
    Dataset(**columns)

    made = recipes.make("kitchen-partial", 30)
    assert made.provenance["episodes"] == 1
    assert (
        made.columns["rewards"].tolist() == [1] * 5 + [2] * 10 + [3] * 15
    )  # mixed's third target is none of partial's
    assert made.provenance["tasks"] == SETS["partial"]


def test_an_episode_does_not_depend_on_how_many_are_made_at_a_time():
    (alone,) = islice(recipes.demonstrations(seed=3, num_threads=1, worlds=1), 1)
    (beside, _) = islice(recipes.demonstrations(seed=3, num_threads=2, worlds=2), 2)
    assert np.array_equal(alone.seen, beside.seen)
    assert np.array_equal(alone.actions, beside.actions)
    assert np.array_equal(alone.done, beside.done)
    assert alone.sequence == recipes.SEQUENCES[0]
    assert alone.of(alone.sequence)[-1].sum() >= 3
    assert len(alone.seen) == len(alone.actions) + 1
