"""HAMR's environments: one interface to two models."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offroad.envs.hamr import HamrFull, HamrSimple, drive, models
from offroad.envs.hamr.hamr import DECISIONS, REACH, _euler
from offroad.errors import OffroadError

BOTH = pytest.mark.parametrize("kind", [HamrFull, HamrSimple])
MODES = pytest.mark.parametrize("control", ["angles", "voltage"])


def actions(steps, worlds, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, worlds, 8)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", ["offroad/HamrFull-v0", "offroad/HamrSimple-v0"])
def test_gymnasium_is_content(name):
    check_env(gym.make(name).unwrapped, skip_render_check=True)
    env = gym.make_vec(name, 2, control="voltage")
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space


def test_both_have_the_same_interface():
    full, simple = HamrFull(2), HamrSimple(2)
    assert full.single_observation_space == simple.single_observation_space
    assert full.single_action_space == simple.single_action_space
    starts = [env.reset(seed=3)[0] for env in (full, simple)]
    np.testing.assert_array_equal(*starts)
    rest = np.zeros((2, 8))
    one, two = full.step(rest)[0], simple.step(rest)[0]
    np.testing.assert_allclose(one[:, :14], two[:, :14], atol=2e-3)


@BOTH
@MODES
def test_a_batch_is_its_worlds(kind, control):
    batch = kind(3, control=control, num_threads=2, autoreset_mode="Disabled")
    one = kind(1, control=control, num_threads=1, autoreset_mode="Disabled")
    batch.reset(seed=5)
    one.reset(seed=6)
    for action in actions(4, 3):
        many, alone = batch.step(action), one.step(action[1:2])
        np.testing.assert_array_equal(many[0][1], alone[0][0])
        np.testing.assert_array_equal(many[1][1], alone[1][0])


@BOTH
@MODES
def test_continues_from_a_saved_state(kind, control):
    env, other = kind(2, control=control), kind(2, control=control)
    env.reset(seed=0)
    other.reset(seed=1)
    first, then = actions(3, 2), actions(3, 2, seed=1)
    for action in first:
        env.step(action)
    other.set_state(env.get_state())
    for action in then:
        for one, two in zip(env.step(action)[:4], other.step(action)[:4]):
            np.testing.assert_array_equal(one, two)


def test_observation_is_in_si_units():
    env = HamrFull(1, control="voltage")
    before, _ = env.reset(seed=0)
    for action in actions(3, 1):
        after = env.step(action)[0]
    q, qd = env.qpos[0], env.qvel[0]
    np.testing.assert_allclose(after[0, :3], q[:3] * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(after[0, 14:17], qd[:3], rtol=1e-5)  # 1 mm/ms is 1 m/s
    np.testing.assert_allclose(after[0, 17:20], qd[3:6] * 1e3, rtol=1e-5)
    hips = models.hip_matrix(env.models[0])
    np.testing.assert_allclose(after[0, 6:14], hips @ q[7:], rtol=1e-5)
    np.testing.assert_allclose(after[0, 20:], hips @ qd[6:] * 1e3, rtol=1e-5)
    assert 0.012 < before[0, 2] < 0.013


def test_euler_angles():
    for axis in range(3):
        quaternion = np.array([[np.cos(0.2), 0.0, 0.0, 0.0]])
        quaternion[0, 1 + axis] = np.sin(0.2)
        np.testing.assert_allclose(_euler(quaternion)[0], 0.4 * np.eye(3)[axis], atol=1e-12)


@BOTH
def test_rewards(kind):
    walk, back = (kind(2, direction=direction, control="voltage") for direction in (1, -1))
    turn, other = (kind(2, task="turn", direction=direction, control="voltage") for direction in (1, -1))
    envs = (walk, back, turn, other)
    for env in envs:
        env.reset(seed=2)
    was = _euler(walk.qpos[:, 3:7])
    for action in actions(3, 2):
        forward, backward, left, right = (env.step(action) for env in envs)
        now, x = _euler(walk.qpos[:, 3:7]), walk.qpos[:, 0] - walk.qpos_before[:, 0]
        tilt, rate = np.hypot(now[:, 0], now[:, 1]), (now - was)[:, 2] / 4e-3
        np.testing.assert_allclose(forward[1], 2 * x / 4 - tilt, atol=1e-9)
        np.testing.assert_allclose(forward[1] + backward[1], -2 * tilt, atol=1e-9)
        np.testing.assert_allclose(left[1], 0.5 * rate, atol=1e-9)
        np.testing.assert_allclose(right[1], -left[1], atol=1e-9)
        was = now


@BOTH
def test_voltages_are_held_for_a_decision(kind):
    env = kind(1, control="voltage", in_air=True)
    env.reset(seed=0)
    action = actions(1, 1)[0]
    observation = env.step(action)[0][0]
    volts = 112.5 * (1 + action.astype(float)).repeat(17, axis=0)
    log = kind.log(volts if kind is HamrFull else models.hip_torques(volts))
    np.testing.assert_allclose(observation[6:14], log["q"][16], atol=1e-6)
    np.testing.assert_allclose(observation[20:], log["qd"][16] * 1e3, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(observation[:6], 0.0)


@BOTH
def test_angles_go_where_they_are_told(kind):
    env = kind(1, in_air=True, max_episode_steps=None)
    env.reset(seed=0)
    action = actions(1, 1)[0]
    for _ in range(12):
        observation = env.step(action)[0][0]
    target = REACH * action[0]
    # A proportional controller against springs stays short of its targets, by the ratio of the two stiffnesses.
    hips = models.hip_constants()
    gain = drive.PROPORTIONAL * np.abs(hips.torque)
    np.testing.assert_allclose(observation[6:14], target * gain / (gain + hips.stiffness), atol=0.03)


def test_a_trot_walks_alike_in_both():
    # Diagonal pairs in step; lift ahead of swing by eight phases: some walk forward, some backward.
    swing, lift = np.pi * np.array([0, 1, 1, 0]), np.arange(8) * np.pi / 4
    phases = np.stack(np.broadcast_arrays(swing, swing + lift[:, None]), axis=-1).reshape(8, 8)
    forward_up = np.array([[-1, 1], [-1, 1], [1, -1], [1, -1]]).ravel()
    speeds = []
    for env in (HamrFull(8, dt=0.125, num_threads=1), HamrSimple(8, num_threads=1)):
        env.reset(seed=0)
        start = env.qpos[:, 0].copy()
        for step in range(40):
            env.step(forward_up * np.sin(2 * np.pi * 30 * 4e-3 * step + phases))
        speeds.append((env.qpos[:, 0] - start) / 160)
    assert np.corrcoef(*speeds)[0, 1] > 0.85
    for speed in speeds:
        assert speed.max() > 0.1  # m/s
        assert speed.min() < -0.1


def test_controller_pulls_to_the_target_in_volts():
    # Joints that are left of their targets are pushed right, in either model; amplifiers give 0 to 225 V.
    target = np.full(8, 0.01)
    volts = drive.leg_position_controller(target, np.zeros(8), np.zeros(8))
    assert (models.hip_torques(volts) > 0).all()
    assert (models.hip_torques(drive.leg_position_controller(target, target, np.full(8, 0.01))) < 0).all()
    far = drive.leg_position_controller(np.array([9.0, -9.0] * 4), np.zeros(8), np.zeros(8))
    assert set(far) == {0.0, 225.0}
    np.testing.assert_array_equal(drive.leg_position_controller(target, target, np.zeros(8)), 112.5)


def test_a_correction_sees_voltages_and_legs_in_every_physics_step():
    seen = []

    def correction(angle, velocity, u, begun):
        seen.append((u.copy(), angle.copy(), begun.copy()))
        return u

    one, two = HamrSimple(2, control="voltage"), HamrSimple(2, control="voltage")
    one.correct(correction)
    for env in (one, two):
        env.reset(seed=0)
    action = actions(1, 2)[0]
    after = [env.step(action)[0] for env in (one, two)]
    assert len(seen) == 16
    np.testing.assert_allclose(seen[-1][0], action, rtol=1e-6)
    assert (seen[-1][1] != seen[0][1]).all()
    assert [begun.all() for *_, begun in seen] == [True] + [False] * 15
    np.testing.assert_allclose(*after, atol=5e-3)  # up to 600 rad/s


@BOTH
def test_episodes_take_300_ms(kind):
    env = kind(1, dt=0.25, autoreset_mode="Disabled")
    env.reset(seed=0)
    ends = [env.step(np.zeros((1, 8)))[3][0] for _ in range(DECISIONS)]
    assert ends == [False] * (DECISIONS - 1) + [True]
    assert env.metadata["render_fps"] == 250
    assert env.divergences.sum() == 0


def test_mistakes_are_explained():
    with pytest.raises(OffroadError, match="did you mean 'walk'"):
        HamrSimple(task="walks")
    with pytest.raises(OffroadError, match="control mode"):
        HamrSimple(control="torque")
    with pytest.raises(OffroadError, match="expected 1 "):
        HamrSimple(direction=2)
    with pytest.raises(OffroadError, match=r"4 ms over a whole number"):
        HamrFull(dt=0.3)
    with pytest.raises(OffroadError, match="unknown to HAMR"):
        HamrSimple().reset(options={"height": 3})
