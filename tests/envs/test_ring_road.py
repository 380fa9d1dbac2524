"""The ring road against published and measured traffic, and against its own symmetries."""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offroad.envs import ring_road
from offroad.envs.ring_road.controllers import ACC, ConstantSpeed, FollowerStopper, Human, PISaturation
from offroad.envs.ring_road.drivers import DRIVERS, IDM
from offroad.envs.ring_road.ring import RingRoad
from offroad.envs.ring_road.simulation import flow_bound, simulate, summary, uniform_flow, wave_speed
from offroad.errors import OffroadError

LENGTHS = range(210, 300, 10)
KEY = jax.random.key(0)


def test_equilibrium_speeds_and_flows_bound():
    uniform = [2.545, 3.0, 3.454, 3.908, 4.362, 4.816, 5.269, 5.722, 6.174]
    bound = [2.762, 3.238, 3.714, 4.189, 4.665, 5.14, 5.614, 6.088, 6.562]
    np.testing.assert_allclose([uniform_flow(float(length)) for length in LENGTHS], uniform, atol=0.005)
    np.testing.assert_allclose([flow_bound(float(length)) for length in LENGTHS], bound, atol=0.005)


@pytest.mark.parametrize("name", DRIVERS)
def test_uniform_flow_is_an_equilibrium_of_every_driver(name):
    speed = uniform_flow(260.0, driver=name)
    gap = jnp.float32(260 / 22 - 5)
    at = lambda gap, speed, lead: float(DRIVERS[name]().acceleration(*map(jnp.float32, (gap, speed, lead))))  # noqa: E731
    assert abs(at(gap, speed, speed)) < 1e-3
    assert at(gap + 1, speed, speed) > 0 > at(gap - 1, speed, speed)
    assert at(gap, speed, speed + 1) >= 0 > at(gap, speed, speed - 1)


@pytest.fixture(scope="module")
def human_traffic():
    return simulate(RingRoad(), None, np.full(4, 230.0), KEY, 500.0)


def test_human_traffic_jams_and_the_jam_travels_backwards(human_traffic):
    late = human_traffic.between(250.0)
    told = summary(late)
    assert told["mean_speed"].mean() == pytest.approx(2.40, abs=0.05)
    assert told["speed_std"].min() > 2.7
    assert told["guard_uses"].sum() == 0
    np.testing.assert_allclose(wave_speed(late), -4.5, atol=0.2)


def test_small_waves_travel_backwards_at_about_20_km_per_hour():
    growing = simulate(RingRoad(), None, np.full(8, 230.0), KEY, 200.0, start="uniform").between(150.0)
    assert 0.1 < growing.speed.std(2).mean() < 1.5
    assert 18 < -3.6 * np.median(wave_speed(growing)) < 21


def test_road_is_conserved_and_positions_agree_with_gaps(human_traffic):
    np.testing.assert_allclose(human_traffic.gap.sum(2) + 22 * 5, 230.0, atol=0.01)
    ahead = np.roll(human_traffic.position, -1, axis=2) - human_traffic.position
    np.testing.assert_allclose(ahead % 230.0, human_traffic.gap + 5, atol=0.01)
    moved = (np.diff(human_traffic.position[:, :, 3], axis=0) + 115) % 230 - 115  # of some car, in half a second
    mean = (human_traffic.speed[1:, :, 3] + human_traffic.speed[:-1, :, 3]) / 2
    np.testing.assert_allclose(moved, 0.5 * mean, atol=0.15)


def state_of(ring, seed=0):
    """Some traffic on 240 m."""
    key = jax.random.key(seed)
    share = jax.random.uniform(key, (22,), minval=0.5, maxval=1.5)
    speed = jax.random.uniform(key, (22,), maxval=5.0)
    return ring.start(jnp.float32(240.0), key)._replace(gap=130 * share / share.sum(), speed=speed)


def test_turning_the_ring_changes_nothing():
    ring = RingRoad(noise=0.0, num_automated=2)
    state = state_of(ring)
    turned = state._replace(gap=jnp.roll(state.gap, 11), speed=jnp.roll(state.speed, 11))
    action = jnp.array([0.5, -0.3])
    one, two = ring.transition(state, action, KEY), ring.transition(turned, action[::-1], KEY)
    np.testing.assert_allclose(jnp.roll(one.speed, 11), two.speed, rtol=1e-6)
    np.testing.assert_allclose(jnp.roll(one.gap, 11), two.gap, rtol=1e-6)
    swapped = ring.observation(two, KEY).reshape(2, 3)[::-1].reshape(-1)
    np.testing.assert_allclose(ring.observation(one, KEY), swapped, rtol=1e-5, atol=1e-6)


def test_one_decision_by_hand():
    ring = RingRoad(num_vehicles=3, length=80.0, noise=0.0, sim_steps=1, failsafe="guard", pool=1, warmup=0.0)
    start = ring.start(jnp.float32(80.0), KEY)._replace(
        gap=jnp.array([10.0, 20.0, 35.0]), speed=jnp.array([5.0, 4.0, 3.0])
    )
    after = ring.transition(start, jnp.array([7.0]), KEY)  # clipped to 1 m/s^2
    wanted = 2 + 4 + 4 * 1 / (2 * 1.5**0.5)
    second = 4 + 0.1 * (1 - (4 / 30) ** 4 - (wanted / 20) ** 2)
    np.testing.assert_allclose(after.speed[:2], [5.1, second], rtol=1e-6)
    assert float(after.gap[0]) == pytest.approx(10 + 0.1 * (second - 5.1), abs=1e-5)
    assert float(after.position) == pytest.approx(0.51, abs=1e-5)
    seen = [5.1 / 15, (second - 5.1) / 15, (after.gap[0] + 5) / 270]
    np.testing.assert_allclose(ring.observation(after, KEY), seen, rtol=1e-5)
    reward = ring.reward(start, jnp.array([7.0]), after, KEY)
    assert float(reward) == pytest.approx(4 * float(after.speed.mean()) / 20 - 4.0, rel=1e-5)


def drive_randomly(ring, *, rings=32, decisions=200):
    """Smallest gaps, guard uses and whether an episode ended, under actions that change every few seconds."""
    lengths = jnp.linspace(220, 270, rings)
    actions = jax.random.choice(KEY, jnp.array([-1.0, -0.2, 0.0, 0.5, 1.0, 1.0]), (decisions // 10, rings, 1))

    @jax.jit
    def run(lengths):
        def step(state, inputs):
            action, key = inputs
            state = jax.vmap(ring.transition)(state, action, jax.random.split(key, rings))
            return state, (state.closest, state.guards, jax.vmap(ring.terminal, (0, None))(state, key))

        inputs = jnp.repeat(actions, 10, axis=0), jax.random.split(KEY, decisions)
        state = jax.vmap(ring.start)(lengths, jax.random.split(KEY, rings))
        return jax.lax.scan(step, state, inputs)[1]

    return run(lengths)


def test_fail_safe_prevents_collisions_whatever_the_action():
    closest, guards, terminated = drive_randomly(RingRoad())
    assert closest.min() > 0.5
    assert guards.sum() == 0
    assert not terminated.any()


def test_the_guard_alone_is_used_and_counted_and_nothing_at_all_ends_in_a_collision():
    closest, guards, terminated = drive_randomly(RingRoad(failsafe="guard"))
    assert -1e-3 < closest.min() < 0.1
    assert guards[..., 0].sum() > 100
    assert np.all(guards[..., 0] <= guards[..., 1])
    assert not terminated.any()
    closest, _, terminated = drive_randomly(RingRoad(failsafe="none"))
    assert closest.min() < -0.5
    assert terminated.any()


def test_a_collision_ends_the_episode_with_no_reward():
    env = ring_road.make_vec(4, length=230.0, pool=8, failsafe="none", autoreset_mode="SameStep")
    env.reset(seed=0)
    for _ in range(200):
        _, reward, terminated, _, info = env.step(np.ones((4, 1), np.float32))
        if terminated.any():
            break
    assert np.all(reward[terminated] == 0)
    assert np.all(info["final_info"]["min_gap"][terminated] < 0)


def test_controllers():
    """At 260 m humans average 3.3 m/s and uniform flow 4.8; what dissolves the jam is known from Stern et al."""
    lengths, ring, speeds = np.full(4, 260.0), RingRoad(), {}
    for controller in (PISaturation(), FollowerStopper(desired=4.15), Human(), ACC()):
        trajectory = simulate(ring, controller, lengths, KEY, 300.0)
        assert trajectory.closest.min() > 1.0
        assert np.abs(trajectory.action).max() <= 1.0
        speeds[type(controller)] = summary(trajectory.between(200.0))
    assert speeds[PISaturation]["mean_speed"].min() > 0.97 * uniform_flow(260.0)
    assert speeds[PISaturation]["speed_std"].max() < 0.25
    assert speeds[FollowerStopper]["mean_speed"] == pytest.approx(4.15, abs=0.02)
    assert speeds[FollowerStopper]["speed_std"].max() < 0.1
    for follower in (Human, ACC):  # to follow the leader is no remedy
        assert speeds[follower]["speed_std"].min() > 2.5
    braking = {kind: told["braking_per_km"].mean() for kind, told in speeds.items()}
    energy = {kind: told["energy_per_metre"].mean() for kind, told in speeds.items()}
    assert braking[FollowerStopper] < 0.1 * braking[Human]
    assert energy[FollowerStopper] < 0.7 * energy[Human]


def test_follower_stoppers_bands():
    """With equal speeds the bands start at 4.5, 5.25 and 6 m; the third runs from the leader's to the desired speed."""
    stopper = FollowerStopper(desired=4.0, period=100.0)  # a long period keeps the action within its bounds
    gaps = jnp.array([4.0, 4.875, 5.625, 7.0])
    speed = jnp.full(4, 3.0)
    action, _ = stopper(jnp.stack([speed / 15, 0 * speed, (gaps + 5) / 270], axis=1), ())
    np.testing.assert_allclose(action[:, 0] * 100 + 3, [0.0, 1.5, 3.5, 4.0], atol=1e-3)


def test_constant_speed():
    action, _ = ConstantSpeed(desired=4.0)(jnp.array([[3.8 / 15, -0.2, 0.1], [9 / 15, 0.0, 0.1]]), ())
    np.testing.assert_allclose(action, [[0.4], [-1.0]], atol=1e-5)


def test_automation_can_be_switched_on_later():
    ring = RingRoad()
    late = simulate(ring, FollowerStopper(desired=4.15), np.full(2, 260.0), KEY, 300.0, engage=100.0)
    human = simulate(ring, None, np.full(2, 260.0), KEY, 300.0)
    np.testing.assert_array_equal(late.between(0.0, 100.0).speed, human.between(0.0, 100.0).speed)
    assert late.between(280.0).speed.std(2).mean() < 0.5 * human.between(280.0).speed.std(2).mean()


def test_delay_shows_the_past():
    prompt, late = (RingRoad(delay=delay) for delay in (0, 2))
    one, two, seen = state_of(prompt), state_of(late), []
    for i in range(5):
        seen.append(prompt.observation(one, KEY))
        expected = seen[max(i - 2, 0)]
        np.testing.assert_allclose(late.observation(two, KEY), expected, rtol=1e-6)
        one = prompt.transition(one, jnp.array([0.5]), jax.random.key(i))
        two = late.transition(two, jnp.array([0.5]), jax.random.key(i))


def test_several_automated_cars():
    ring = RingRoad(num_automated=4)
    assert ring.automated == (0, 5, 11, 16)
    env = ring_road.make_vec(3, num_automated=4, pool=4, warmup=10.0)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3, 12)
    observation, reward, *_ = env.step(np.zeros((3, 4), np.float32))
    assert observation.shape == (3, 12)
    assert reward.shape == (3,)
    action, _ = PISaturation()(jnp.asarray(observation), PISaturation().initial_memory(3, 4))
    assert action.shape == (3, 4)


def test_people_differ():
    ring = RingRoad(heterogeneity=0.2)
    state = state_of(ring)
    headway = np.asarray(state.drivers.headway)
    assert headway.shape == (22,)
    assert 0.8 <= headway.min() < 0.95 < 1.05 < headway.max() <= 1.2
    assert not np.array_equal(headway, np.asarray(state_of(ring, 1).drivers.headway))
    after = ring.transition(state, jnp.zeros(1), KEY)
    assert eqx.tree_equal(after.drivers, state.drivers)
    assert isinstance(state.drivers, IDM)


@pytest.mark.parametrize("name", ["ovm", "gipps"])
def test_other_drivers_drive(name):
    told = summary(simulate(RingRoad(driver=name), None, np.full(2, 260.0), KEY, 100.0, start="uniform"))
    assert np.all(told["mean_speed"] > 1)
    assert np.all(np.isfinite(told["energy_per_metre"]))


def test_the_simulator_can_be_differentiated():
    ring = RingRoad(noise=0.0)
    state = state_of(ring)
    speed = lambda action: ring.transition(state, action, KEY).speed.sum()  # noqa: E731
    slope = jax.grad(speed)(jnp.array([-0.5]))
    numeric = (speed(jnp.array([-0.45])) - speed(jnp.array([-0.55]))) / 0.1
    assert float(slope[0]) == pytest.approx(float(numeric), rel=0.01)
    assert float(slope[0]) > 0.4


def test_registered_and_accepted_by_gymnasium():
    single = gym.make("offroad/RingRoad-v0", pool=8)
    assert single.spec.max_episode_steps == 600
    check_env(single.unwrapped, skip_render_check=True)
    env = gym.make_vec("offroad/RingRoad-v0", num_envs=8, vectorization_mode="vector_entry_point", pool=8)
    observation, info = env.reset(seed=0)
    assert observation.shape == (8, 3)
    assert set(info["length"]) <= set(range(220, 271))
    assert env.max_episode_steps == 600
    diagnostics = env.step(np.zeros((8, 1), np.float32))[4]
    assert {"mean_speed", "speed_std", "min_gap", "min_time_to_collision", "braking", "tractive_power"} <= set(
        diagnostics
    )
    assert np.all(diagnostics["min_time_to_collision"] <= 100)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"driver": "imd"}, "did you mean 'idm'"),
        ({"length": 100.0}, "need more than 160 m"),
        ({"length": (270.0, 220.0)}, "the shortest length comes first"),
        ({"num_automated": 0}, "expected 1 to num_vehicles = 22"),
        ({"failsafe": "off"}, "expected 'car_following', 'guard' or 'none'"),
        ({"delay": -1}, "at least 0"),
    ],
)
def test_mistakes_are_explained(mistake, message):
    with pytest.raises(OffroadError, match=message):
        RingRoad(**mistake)
