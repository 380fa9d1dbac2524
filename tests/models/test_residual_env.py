"""Corrected environments: batches equal single worlds, identity changes nothing, delays, guards, refusals."""

import equinox as eqx
import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest
from residual_pair import excitation

import offroad
from offroad.envs.hamr import HamrSimple, drive
from offroad.envs.hamr import models as hamr_models
from offroad.envs.hamr.geometry import REST
from offroad.errors import OffroadError
from offroad.models import FitConfig, Limb, ResidualEnv, fit, make_log, simulator
from offroad.models.residual import empty

JOINTS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


def model(gain=1.0, bend=0.0, delay=0, form="action", dt=0.01, joints=JOINTS):
    """A model that multiplies inputs, and adds something of the joints' positions."""
    n = len(joints)
    made = empty(
        (Limb(tuple(range(n)), tuple(range(n))),), None, 0, form=form, joints=joints, controls=joints, inputs=n, dt=dt,
        delay=delay, notes=(),
    )  # fmt: skip
    weights = np.zeros((n, 3 * n + 1))
    weights[:, 2 * n : 3 * n] = gain * np.eye(n)
    weights[:, :n] = bend * np.eye(n)
    return eqx.tree_at(lambda m: m.linear, made, jnp.asarray(weights, jnp.float32))


def rollout(env, actions, seed=3):
    env.reset(seed=seed)
    return np.array([env.step(a)[0] for a in actions])


def actions(worlds, steps=12, seed=0, scale=0.9):
    return np.random.default_rng(seed).uniform(-scale, scale, (steps, worlds, 6)).astype(np.float32)


def test_a_model_that_changes_nothing_changes_nothing():
    chosen = actions(3)
    plain = rollout(offroad.make_vec("offroad/HalfCheetah-v5", 3), chosen)
    for form, gain in (("action", 1.0), ("delta", 0.0), ("dynamics", 0.0)):
        env = ResidualEnv(offroad.make_vec("offroad/HalfCheetah-v5", 3), model(gain, form=form))
        np.testing.assert_allclose(rollout(env, chosen), plain, atol=1e-8)


def test_controls_forces_and_delays_reach_the_physics():
    chosen = actions(2)
    plain = rollout(offroad.make_vec("offroad/HalfCheetah-v5", 2), 0.5 * chosen)
    half = ResidualEnv(offroad.make_vec("offroad/HalfCheetah-v5", 2), model(0.5))
    np.testing.assert_allclose(rollout(half, chosen), plain, atol=1e-4)
    # forces on joints do what their motors would, whose gear is in the model
    inner = offroad.make_vec("offroad/HalfCheetah-v5", 2)
    gears = inner.unwrapped.models[0].actuator_gear[:, 0]
    pushed = eqx.tree_at(lambda m: m.unit, model(0.5, form="dynamics"), jnp.asarray(gears, jnp.float32))
    more = rollout(offroad.make_vec("offroad/HalfCheetah-v5", 2), 1.5 * actions(2, scale=0.6))
    np.testing.assert_allclose(rollout(ResidualEnv(inner, pushed), actions(2, scale=0.6)), more, atol=1e-3)
    # five rows a step: a delay of five rows is one step, and the first action is also the one before it
    late = ResidualEnv(offroad.make_vec("offroad/HalfCheetah-v5", 2), model(delay=5))
    before = np.concatenate([chosen[:1], chosen[:-1]])
    shifted = rollout(offroad.make_vec("offroad/HalfCheetah-v5", 2), before)
    np.testing.assert_allclose(rollout(late, chosen), shifted, atol=1e-8)


def test_a_batch_equals_single_worlds():
    chosen = actions(3)
    batch = ResidualEnv(offroad.make_vec("offroad/HalfCheetah-v5", 3), model(0.7, bend=0.4, delay=2))
    together = rollout(batch, chosen, seed=5)
    for world in range(3):
        one = ResidualEnv(offroad.make_vec("offroad/HalfCheetah-v5", 1), model(0.7, bend=0.4, delay=2))
        np.testing.assert_allclose(
            rollout(one, chosen[:, [world]], seed=5 + world)[:, 0], together[:, world], atol=1e-5
        )


def test_any_vector_environment_is_corrected_through_its_actions():
    class Line(gym.Env):
        """A point whose position is the sum of its actions."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gym.spaces.Box(-2, 2, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = np.zeros(1, np.float32)
            return self.x.copy(), {}

        def step(self, action):
            self.x = self.x + action
            return self.x.copy(), 1.0, False, False, {}

    def made(**kwargs):
        env = gym.vector.SyncVectorEnv([Line] * 2)
        read = lambda env: (np.stack([e.unwrapped.x for e in env.unwrapped.envs]), np.zeros((2, 1)))  # noqa: E731
        return ResidualEnv(env, model(0.5, delay=1, joints=("x",), **kwargs), read=read, penalty=2.0)

    env = made()
    env.reset(seed=0)
    seen = [env.step(np.full((2, 1), a))[0][0, 0] for a in (0.4, 1.0, 9.0, 0.0)]
    np.testing.assert_allclose(seen, np.cumsum([0.2, 0.2, 0.5, 1.0]), atol=1e-6)  # 9 is guarded to 2
    *_, info = env.step(np.zeros((2, 1)))
    assert info["trust"].shape == (2,)
    env.reset()
    _, reward, *_, info = env.step(np.full((2, 1), 2.0))
    np.testing.assert_allclose(reward, 1 - 2 * (1 - info["trust"]), atol=1e-6)
    with pytest.raises(OffroadError, match="forces, which have no way through actions"):
        made(form="dynamics")


def test_what_does_not_fit_is_refused():
    cheetah = lambda: offroad.make_vec("offroad/HalfCheetah-v5", 1)  # noqa: E731
    for bad, message in (
        (lambda: ResidualEnv(cheetah(), model(joints=("a", "b"))), "fitted to 2 inputs"),
        (lambda: ResidualEnv(cheetah(), model(dt=0.015)), "no multiple of the environment's physics step"),
        (lambda: ResidualEnv(cheetah(), model(dt=0.04)), "no multiple of the log's 0.04"),
        (lambda: ResidualEnv(cheetah(), model(joints=tuple("abcdef"))), "has no joint 'a'; it has rootx"),
        (lambda: ResidualEnv(gym.make_vec("Pendulum-v1", 1), model(joints=("x",))), "no batched MuJoCo environment"),
        (lambda: ResidualEnv(gym.make("Pendulum-v1"), model(joints=("x",))), "got TimeLimit.*gymnasium.make_vec"),
    ):
        with pytest.raises(OffroadError, match=message):
            bad()


def of_legs(gain=1.0, delay=0, joints=HamrSimple.joints, dt=0.25):
    return model(gain, delay=delay, dt=dt, joints=joints)


def legs(env, seed=1):
    chosen = np.random.default_rng(0).uniform(-1, 1, (5, 2, 8))
    return rollout(env, chosen, seed=seed)


@pytest.mark.parametrize("control", ["angles", "voltage"])
def test_hamr_keeps_its_leg_controllers_and_is_corrected_behind_them(control):
    def made(**kwargs):
        return offroad.make_vec("offroad/HamrSimple-v0", 2, control=control, **kwargs)

    plain = legs(made())
    np.testing.assert_allclose(legs(ResidualEnv(made(), of_legs())), plain, rtol=1e-3, atol=2e-3)
    # half of the voltage is the voltage of legs of half the torque, on which the controllers act as before
    weak = hamr_models.simple()
    weak.actuator_gear[:, 0] = 0.5
    halved = legs(ResidualEnv(made(), of_legs(0.5)))
    np.testing.assert_allclose(halved, legs(made(models=weak)), rtol=1e-3, atol=2e-3)
    assert np.abs(halved - plain).max() > 0.05


def test_what_is_fitted_to_hamr_from_gymnasium_is_what_its_environment_takes():
    env, other = (offroad.make_vec("offroad/HamrSimple-v0", 2, constants="published", in_air=True) for _ in range(2))
    volts = drive.noise(np.random.default_rng(0), 600)
    record = HamrSimple.log(hamr_models.hip_torques(volts, "published"), constants="published")
    log = make_log(record["q"], (volts - REST) / REST, record["qd"], dt=0.25)
    fitted = fit(env, log, config=FitConfig(hidden=(), tuning=0))
    assert (fitted.joints, fitted.controls) == (HamrSimple.joints, HamrSimple.joints)
    np.testing.assert_allclose(fitted(log.q, log.qd, log.u)[0], log.u, atol=1e-3)  # for there is nothing to correct
    np.testing.assert_allclose(legs(ResidualEnv(env, fitted)), legs(other), rtol=2e-3, atol=0.05)  # up to 60 rad/s
    for bad, message in (
        (of_legs(dt=0.5), "controllers act every 0.25, the rows of the log were 0.5 apart"),
        (of_legs(joints=HamrSimple.joints[::-1]), "gives the controls RR_lift"),
        (model(form="dynamics", dt=0.25, joints=HamrSimple.joints), "no way through controllers"),
    ):
        with pytest.raises(OffroadError, match=message):
            ResidualEnv(offroad.make_vec("offroad/HamrSimple-v0", 2), bad)


def test_a_delay_shifts_what_hamr_is_told_and_begins_anew_with_an_episode():
    late = ResidualEnv(offroad.make_vec("offroad/HamrSimple-v0", 2, control="voltage"), of_legs(delay=16))
    chosen = np.random.default_rng(0).uniform(-1, 1, (5, 2, 8))
    before = np.concatenate([chosen[:1], chosen[:-1]])
    plain = rollout(offroad.make_vec("offroad/HamrSimple-v0", 2, control="voltage"), before)
    for _ in range(2):
        np.testing.assert_allclose(rollout(late, chosen), plain, rtol=1e-3, atol=2e-3)


def test_a_robot_of_gymnasium_that_integrates_with_rk4_is_corrected():
    names = ("thigh_joint", "leg_joint", "foot_joint")

    def hoppers():
        return gym.make_vec("Hopper-v5", 2, vectorization_mode="sync")

    def read(env):
        data = [e.unwrapped.data for e in env.unwrapped.envs]
        return np.stack([d.qpos[3:] for d in data]), np.stack([d.qvel[3:] for d in data])

    robot = simulator(hoppers(), names).with_dt(0.008)
    u, q = excitation(0, 600, 0.3), [np.zeros((1, 3))]
    u = np.column_stack([u, u[::-1, :1]])
    qd = [np.zeros((1, 3))]
    for t in range(599):  # the real motors are weaker by a fifth and pull a little to one side
        here = robot.step(q[-1], qd[-1], 0.8 * u[[t]] + 0.05, np.zeros((1, 3)))
        q.append(here[0])
        qd.append(here[1])
    log = make_log(np.concatenate(q), u, np.concatenate(qd), dt=0.008)
    fitted = fit(hoppers(), log, joints=names, config=FitConfig(hidden=(), tuning=0))
    assert fitted.form == "action"
    np.testing.assert_allclose(fitted(log.q, log.qd, log.u)[0], 0.8 * u + 0.05, atol=0.04)
    chosen = np.random.default_rng(0).uniform(-1, 1, (4, 2, 3)).astype(np.float32)
    wanted = rollout(hoppers(), 0.8 * chosen + 0.05)
    plain, told = (rollout(e, chosen) - wanted for e in (hoppers(), ResidualEnv(hoppers(), fitted, read=read)))
    assert np.abs(told).max() < 0.1 * np.abs(plain).max()
