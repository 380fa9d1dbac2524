"""Properties of the batched MuJoCo base, on the real locomotion tasks."""

import json
import os
import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

from offroad.envs.locomotion import ASSETS, Ant, HalfCheetah, Hopper, make_single
from offroad.envs.vector import SingleMujocoEnv
from offroad.errors import OffroadError


def actions(env, steps, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (steps, *env.action_space.shape))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_equals_gymnasiums_own_vectorisation_of_single_environments(mode):
    # Hoppers fall after 10 to 40 random steps, so that terminations and truncations come at different times.
    options = {"num_envs": 4, "max_episode_steps": 17}
    ours = gym.make_vec("offroad/Hopper-v5", autoreset_mode=mode, **options)
    theirs = gym.make_vec(
        "offroad/Hopper-v5", vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
    )
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=5), theirs.reset(seed=5), exact=True)
    causes = set()
    for action in actions(ours, 90):
        step = ours.step(action)
        assert data_equivalence(step, theirs.step(action), exact=True)
        terminated, truncated = step[2:4]
        causes |= set(zip(terminated.tolist(), truncated.tolist()))
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            # Gymnasium takes the mask out of the options, so each gets its own.
            resets = [env.reset(options={"reset_mask": ended.copy()}) for env in (ours, theirs)]
            assert data_equivalence(*resets, exact=True)
    assert {(False, False), (True, False), (False, True)} <= causes


def test_the_final_observation_is_what_the_action_led_to():
    env, other = (Hopper(3, max_episode_steps=4, autoreset_mode=mode) for mode in ("SameStep", "Disabled"))
    env.reset(seed=0), other.reset(seed=0)
    for action in actions(env, 4):
        observation, _, _, truncated, info = env.step(action)
        final = other.step(action)[0]
    assert truncated.all()
    assert np.array_equal(np.stack(info["final_obs"]), final)
    assert not np.array_equal(observation, final)


@pytest.mark.parametrize("task", [HalfCheetah, Ant])
def test_results_do_not_depend_on_the_number_of_threads(task):
    environments = [task(5, num_threads=threads) for threads in (1, 2, 3)]
    for env in environments:
        env.reset(seed=1)
    for action in actions(environments[0], 15):
        first, *others = [env.step(action) for env in environments]
        assert all(data_equivalence(first, other, exact=True) for other in others)


def test_both_ways_to_step_are_the_same_to_the_bit():
    seen = {}
    rollout, inspected = HalfCheetah(3), HalfCheetah(3, inspect=lambda world, data: seen.update({world: data.time}))
    rollout.reset(seed=1), inspected.reset(seed=1)
    for action in actions(rollout, 20):
        assert data_equivalence(rollout.step(action), inspected.step(action), exact=True)
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize("saved_after", [5, 11])  # in the middle of episodes, and where NEXT_STEP owes a reset
@pytest.mark.parametrize(("task", "mode"), [(Hopper, "NextStep"), (Hopper, "SameStep"), (Ant, "NextStep")])
def test_a_restored_environment_continues_to_the_bit(task, mode, saved_after):
    env = task(3, max_episode_steps=11, autoreset_mode=mode)
    env.reset(seed=2)
    before, after = np.split(actions(env, 41), [saved_after])
    for action in before:
        env.step(action)
    state = env.get_state()
    state["random"] = json.loads(json.dumps(state["random"]))
    restored = task(3, max_episode_steps=11, autoreset_mode=mode)
    expected = [env.step(action) for action in after]
    restored.set_state(state)
    assert data_equivalence(expected, [restored.step(action) for action in after], exact=True)
    assert data_equivalence(env.reset(), restored.reset(), exact=True)
    with pytest.raises(OffroadError, match="num_envs"):
        task(2).set_state(state)


def test_a_restored_single_environment_resets_alike():
    env, restored = (make_single("Hopper-v5") for _ in range(2))
    env.reset(seed=3)
    restored.set_state(env.get_state())
    assert data_equivalence(env.reset(), restored.reset(), exact=True)


def test_each_world_follows_its_own_model():
    def model(gravity):
        model = mujoco.MjModel.from_xml_path(str(ASSETS / "half_cheetah.xml"))
        model.opt.gravity[2] = gravity
        return model

    mixed = HalfCheetah(3, [model(-9.81), model(-4.0), model(-9.81)])
    alone = [HalfCheetah(1, model(-9.81)), HalfCheetah(1, model(-4.0)), HalfCheetah(1, model(-9.81))]
    mixed.reset(seed=0)
    for i, env in enumerate(alone):
        env.reset(seed=i)
    for action in actions(mixed, 10):
        observation = mixed.step(action)[0]
        assert np.array_equal(observation, np.concatenate([e.step(action[i : i + 1])[0] for i, e in enumerate(alone)]))

    with pytest.raises(OffroadError, match="2 models for 3 worlds"):
        HalfCheetah(3, [model(-9.81)] * 2)
    with pytest.raises(OffroadError, match="model of world 1 has nq=6"):
        HalfCheetah(2, [model(-9.81), mujoco.MjModel.from_xml_path(str(ASSETS / "hopper.xml"))])


def test_a_world_resets_alone_and_from_its_own_random_numbers():
    together, alone = HalfCheetah(3, autoreset_mode="Disabled"), HalfCheetah(1)
    first, _ = together.reset(seed=[7, None, 9])
    assert np.array_equal(first[2:], alone.reset(seed=9)[0])
    assert together.np_random_seed[0] == 7
    second, info = together.reset(options={"reset_mask": np.array([False, False, True])})
    assert np.array_equal(second[:2], first[:2])
    assert np.array_equal(second[2:], alone.reset()[0])
    assert info["_x_position"].tolist() == [False, False, True]


@pytest.mark.parametrize(("task", "asset"), [(HalfCheetah, "half_cheetah.xml"), (Ant, "ant.xml")])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_divergence_resets_one_world_and_is_counted(task, asset, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file
    normal, monster = (mujoco.MjModel.from_xml_path(str(ASSETS / asset)) for _ in range(2))
    monster.actuator_gear[:, 0] = 1e14  # harmless until the first action that is not zero
    env = task(3, [normal, monster, normal], autoreset_mode=mode)
    healthy = task(3, normal, autoreset_mode=mode)
    env.reset(seed=0), healthy.reset(seed=0)
    first, second, third, fourth = actions(env, 4)
    first[1] = 0
    if mode != "NextStep":  # which ignores this action, and must not count what it would have done
        third[1] = 0
    last, *_ = env.step(first)
    healthy.step(first)
    others = [0, 2]
    observation, reward, terminated, truncated, info = env.step(second)
    expected = healthy.step(second)
    assert np.array_equal(observation[others], expected[0][others])
    assert np.array_equal(reward[others], expected[1][others])
    assert np.array_equal(info["final_obs"][1] if mode == "SameStep" else observation[1], last[1])
    assert reward[1] == 0
    assert terminated.tolist() == [False] * 3
    assert truncated.tolist() == [False, True, False]
    assert env.divergences.tolist() == [0, 1, 0]
    mask = info["final_info"]["diverged"] if mode == "SameStep" else info["diverged"]
    assert mask.tolist() == [False, True, False]

    if mode == "Disabled":
        env.reset(options={"reset_mask": truncated})
    observation, _, _, truncated, info = env.step(third)
    assert np.array_equal(observation[others], healthy.step(third)[0][others])
    assert not np.array_equal(observation[1], last[1])
    assert not truncated.any()
    assert "diverged" not in info
    assert env.step(fourth)[3].tolist() == [False, True, False]
    assert env.divergences.tolist() == [0, 2, 0]


def test_divergence_is_seen_in_the_very_first_step_of_one_substep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class FineCheetah(HalfCheetah):
        frame_skip = 1

    env = FineCheetah(2)
    before, _ = env.reset(seed=0)
    env.qvel[1, 0] = 1e12
    observation, _, _, truncated, _ = env.step(actions(env, 1)[0])
    assert truncated.tolist() == [False, True]
    assert not np.array_equal(observation[0], before[0])


def test_user_mistakes_get_one_clear_sentence():
    env = HalfCheetah(3, autoreset_mode="Disabled", max_episode_steps=2)
    good = actions(env, 1)[0]
    with pytest.raises(OffroadError, match="call reset"):
        env.step(good)
    env.reset(seed=0)
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(OffroadError, match="action of world 1"):
        env.step(bad)
    with pytest.raises(OffroadError, match=r"shape \(2, 6\), expected \(3, 6\)"):
        env.step(good[:2])
    env.step(good), env.step(good)
    with pytest.raises(OffroadError, match=r"worlds \[0, 1, 2\] have ended"):
        env.step(good)
    for mask in (np.zeros(3, bool), np.ones(2, bool), np.ones(3)):
        with pytest.raises(OffroadError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(OffroadError, match="gravity"):
        env.reset(options={"gravity": 1})
    with pytest.raises(OffroadError, match="2 seeds for 3 worlds"):
        env.reset(seed=[1, 2])
    with pytest.raises(OffroadError, match="rgb_array"):
        HalfCheetah(1, render_mode="rgb")
    with pytest.raises(OffroadError, match="num_envs"):
        HalfCheetah(0)
    with pytest.raises(OffroadError, match="num_envs=1"):
        SingleMujocoEnv(env)


def test_rejected_actions_leave_the_worlds_as_they_were():
    env = HalfCheetah(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(OffroadError):
        env.step(np.full((2, 6), np.nan))
    assert data_equivalence(before, env.get_state(), exact=True)


def test_returned_arrays_are_the_callers():
    env = Hopper(2)
    _, reset_info = env.reset(seed=0)
    kept = [reset_info, env.step(actions(env, 1)[0])]
    copies = [
        {name: value.copy() for name, value in reset_info.items()},
        [
            value.copy() if isinstance(value, np.ndarray) else {k: v.copy() for k, v in value.items()}
            for value in kept[1]
        ],
    ]
    for action in actions(env, 5, seed=1):
        env.step(action)
    assert data_equivalence(kept[0], copies[0], exact=True)
    assert data_equivalence(kept[1], tuple(copies[1]), exact=True)


def test_no_rendering_without_a_render_mode_and_one_clear_error_without_opengl():
    env = HalfCheetah(2)
    env.reset(seed=0)
    assert env.render() is None
    script = (
        "from offroad.envs.locomotion import HalfCheetah\n"
        "from offroad.errors import OffroadError\n"
        "env = HalfCheetah(1, render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "try:\n    env.render()\n"
        "except OffroadError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"MUJOCO_GL": "disable"}, capture_output=True, text=True
    )
    assert "no usable OpenGL" in done.stdout, done.stderr
