"""The ring in SUMO against the ring in JAX. Real SUMO."""

import gymnasium as gym
import jax
import numpy as np
import pytest

from offroad.envs.ring_road import sumo
from offroad.envs.ring_road.controllers import PISaturation
from offroad.envs.ring_road.ring import RingRoad
from offroad.envs.ring_road.simulation import simulate
from offroad.envs.ring_road.sumo import SumoEnv, SumoRing, build_ring
from offroad.errors import OffroadError

pytest.importorskip("libsumo")


@pytest.fixture
def ring():
    env = SumoRing(length=240.0)
    yield env
    env.close()


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    if sumo._running is not None:
        sumo._running.close()


@pytest.mark.parametrize("length", [230.0, 260.0])
def test_human_traffic_is_that_of_sumo(length):
    env = SumoRing(length=length, num_automated=0, warmup=0.0, sim_steps=1)
    env.reset(seed=0)
    speeds = []
    for _ in range(6000):
        env.step(np.zeros(0))
        speeds.append(env.speeds())
    env.close()
    jax_ring = RingRoad(noise=0.0, sim_steps=1)
    ours = simulate(jax_ring, None, np.array([length]), jax.random.key(0), 600.0, start="bunched").speed[:, 0]
    assert np.std(speeds[-1]) > 2.5  # a jam has formed: this is no comparison of uniform flow
    assert np.sqrt(np.mean((ours - np.array(speeds)) ** 2)) < 1e-3


def test_episodes_are_determined_by_their_seed(ring):
    def episode(seed):
        seen = [ring.reset(seed=seed)[0]]
        seen += [ring.step(np.array([0.3]))[0] for _ in range(20)]
        return np.array(seen)

    first = episode(1)
    assert np.array_equal(first, episode(1))
    assert not np.array_equal(first, episode(2))


def test_observation_and_reward_are_those_of_the_ring(ring):
    observation, info = ring.reset(seed=0)
    assert info["length"] == 240
    speed, relative, distance = observation * [15, 15, 270]
    assert 0 <= speed < 10
    assert 5 < distance < 100
    assert 0 <= speed + relative < 10
    observation, reward, terminated, _, info = ring.step(np.array([0.5]))
    assert not terminated
    assert reward == pytest.approx(4 * info["mean_speed"] / 20 - 4 * 0.5)


def test_controller_written_for_jax_dissolves_the_jam_here(ring):
    controller = PISaturation()
    observation, _ = ring.reset(seed=0)
    memory, act = controller.initial_memory(1), jax.jit(lambda controller, *seen: controller(*seen))
    spread = []
    for _ in range(600):
        action, memory = act(controller, observation[None], memory)
        observation, _, terminated, _, info = ring.step(np.asarray(action[0]))
        assert not terminated
        spread.append(info["speed_std"])
    assert spread[0] > 2
    assert np.mean(spread[-100:]) < 0.25


def test_safe_speed_check_holds_against_any_action(ring):
    ring.reset(seed=0)
    for _ in range(200):
        observation, _, terminated, _, _ = ring.step(np.array([1.0]))
        assert not terminated
        assert observation[2] * 270 > 5.5


def test_one_simulation_at_a_time(ring):
    ring.reset(seed=0)
    other = SumoRing(length=240.0, num_automated=2)
    with pytest.raises(OffroadError, match="close\\(\\) it first"):
        other.reset(seed=0)
    ring.close()
    observation, _ = other.reset(seed=0)
    assert observation.shape == (6,)
    with pytest.raises(OffroadError, match="call reset first"):
        ring.step(np.array([0.0]))
    other.close()


def test_network_of_the_users(tmp_path, ring):
    """The ring's own files, taken as a user's: another vehicle type, speeds as actions, a reward of one's own."""
    net, routes = tmp_path / "ring.net.xml", tmp_path / "cars.rou.xml"
    build_ring(net, 200.0)
    routes.write_text(
        '<routes><vType id="mine" maxSpeed="20"/><vType id="other" maxSpeed="3"/>'
        '<route id="r" edges="e0 e1 e2 e3" repeat="9"/>'
        '<vehicle id="a" type="mine" route="r" depart="0"/><vehicle id="b" type="other" route="r" depart="5"/></routes>'
    )
    env = SumoEnv(net, routes, "mine", action="speed", bound=9.0, reward=lambda speeds, action, collided: speeds.max())
    env.reset(seed=0)
    observation, *_ = env.step(np.array([4.0]))
    np.testing.assert_allclose(observation[1:], [0.0, 200 / 270], atol=1e-6)  # alone: its leader is itself
    for _ in range(30):
        observation, reward, *_ = env.step(np.array([4.0]))
    assert observation[0] * 15 == pytest.approx(4.0)
    assert observation[1] * 15 == pytest.approx(-1.0, abs=0.3)  # the other, far ahead around the ring
    assert 140 < observation[2] * 270 < 195
    assert reward == pytest.approx(4.0)
    env.close()
    with pytest.raises(OffroadError, match=r"none\.net\.xml' does not exist"):
        SumoEnv(tmp_path / "none.net.xml", routes, "mine").reset()
    with pytest.raises(OffroadError, match="expected 'accel' or 'speed'"):
        SumoEnv(net, routes, "mine", action="jump")


def test_registered():
    env = gym.make("offroad/SumoRing-v0", length=230.0)
    assert env.spec.max_episode_steps == 600
    env.reset(seed=0)
    env.close()
