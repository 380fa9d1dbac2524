"""Simulators: the discrete inverse is exact, and held joints stay where they are."""

import equinox as eqx
import gymnasium as gym
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from residual_pair import ARM, arm, random_state

from offroad.errors import OffroadError
from offroad.models import FunctionSimulator, MujocoSimulator, corrected, simulator
from offroad.models.residual import empty, whole
from offroad.models.simulators import Simulator


@pytest.mark.parametrize("integrator", ["Euler", "implicit", "implicitfast", "RK4"])
@pytest.mark.parametrize("route", [MujocoSimulator, Simulator])
def test_the_inverse_finds_the_controls_and_forces_of_a_step(integrator, route):
    simulator = MujocoSimulator(arm(integrator=integrator))
    q, qd, u, f = random_state(0, 40)
    step = simulator.step(q, qd, u, 0 * f)
    controls, forces = route.inverse(simulator, q, qd, *step, u)
    np.testing.assert_allclose(controls, u, atol=1e-8)
    np.testing.assert_allclose(forces, 0, atol=1e-8)
    pushed = simulator.step(q, qd, u, f)
    np.testing.assert_allclose(route.inverse(simulator, q, qd, *pushed, u)[1], f, atol=1e-8)


def test_the_inverse_of_several_substeps_and_of_a_function():
    simulator = MujocoSimulator(arm()).with_dt(0.04)
    assert simulator.substeps == 4
    function = FunctionSimulator(lambda q, qd, u: simulator.step(q, qd, u, 0 * q), 2, 2, 0.04)
    q, qd, u, f = random_state(1, 30)
    for each in (simulator, function):
        step = each.step(q, qd, u, 0 * f)
        controls, forces = each.inverse(q, qd, *step, 0 * u)
        np.testing.assert_allclose(controls, u, atol=1e-4)
        assert np.abs(forces).max() > 0.1  # for the start, zero, is not what was applied
        _, qd_next = each.step(q, qd, 0 * u, forces)
        np.testing.assert_allclose(qd_next, step[1], atol=1e-4)


def test_the_linearisation_agrees_with_small_steps():
    simulator = MujocoSimulator(arm())
    q, qd, u, f = random_state(2, 30)
    here, by_state, by_control, by_force = simulator.linearise(q, qd, u, f)
    rng = np.random.default_rng(3)
    for size in (1e-3, 1e-4):
        dq, dqd, du, df = (size * rng.normal(size=x.shape) for x in (q, qd, u, f))
        there = np.concatenate(simulator.step(q + dq, qd + dqd, u + du, f + df), -1)
        told = here + sum(
            np.einsum("nij,nj->ni", a, b)
            for a, b in ((by_state, np.concatenate([dq, dqd], -1)), (by_control, du), (by_force, df))
        )
        assert np.abs(there - told).max() < 30 * size**2 + 1e-7


def test_unnamed_joints_are_held_under_gravity_and_free_bases_too():
    free = (ARM % {"integrator": "implicitfast", "friction": 0, "load": 0.5}).replace(
        "<body>",
        '<body pos="0 0 1"><freejoint name="base"/><inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/><body>',
        1,
    )
    free = free.replace("</worldbody>", "</body></worldbody>")
    simulator = MujocoSimulator(mujoco.MjModel.from_xml_string(free), ("b", "a"))
    fixed = MujocoSimulator(arm(), ("b", "a"))
    q, qd, u, f = random_state(4, 20)
    for x, y in zip(simulator.step(q, qd, u, f), fixed.step(q, qd, u, f)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    # and the order of joints is the one that was asked for
    for x, y in zip(fixed.step(q[:, ::-1], qd[:, ::-1], u, f[:, ::-1]), MujocoSimulator(arm()).step(q, qd, u, f)):
        np.testing.assert_array_equal(x[:, ::-1], y)


def test_any_simulator_is_told_by_a_model():
    function = FunctionSimulator(lambda q, qd, u: (q + qd, qd + u), joints=2, controls=2, dt=1.0)
    twice = empty((whole(2, 2, 2),), None, 0, form="action", joints=function.joints, controls=function.controls,
                  inputs=2, dt=1.0, delay=0, notes=())  # fmt: skip
    twice = eqx.tree_at(lambda m: m.linear, twice, jnp.zeros((2, 7)).at[0, 4].set(2.0).at[1, 5].set(2.0))
    q, qd, u, _ = random_state(5, 20)
    for model, factor in ((None, 1), (twice, 2)):
        after, speed = corrected(function, model)(q, qd, u)
        np.testing.assert_allclose(after, q + qd)
        np.testing.assert_allclose(speed, qd + factor * u, rtol=1e-5, atol=1e-6)


def test_what_a_simulator_cannot_do_is_said():
    model = arm()
    with pytest.raises(OffroadError, match="no hinge or slider 'c'"):
        MujocoSimulator(model, ("c",))
    with pytest.raises(OffroadError, match="the joint 'b' is named twice"):
        MujocoSimulator(model, ("b", "b"))
    with pytest.raises(OffroadError, match="no simulator can be made of CartPoleEnv"):
        simulator(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    with pytest.raises(OffroadError, match="no multiple of the simulator's timestep"):
        MujocoSimulator(model).with_dt(0.015)
    with pytest.raises(OffroadError, match=r"2,000 timesteps .* at most 500"):
        MujocoSimulator(model).with_dt(20.0)
