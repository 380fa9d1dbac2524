"""Domain randomisation: inertias that a body could have, one model for each world, latency, and reproducibility."""

import mujoco
import numpy as np
import pytest

import offroad
from offroad.errors import OffroadError
from offroad.models import Randomization, RandomizedVectorEnv
from offroad.models.randomization import valid_inertias

WIDE = Randomization(
    mass=(0.5, 2.0), inertia=(0.3, 3.0), friction=(0.5, 1.5), gain=(0.7, 1.3), damping=(0.5, 2), stiffness=(0.5, 2)
)


def test_randomised_inertias_are_those_of_bodies():
    rng = np.random.default_rng(0)
    second = rng.uniform(0, 1, (2000, 3)) ** 4  # some bodies are nearly flat or thin
    inertia = second.sum(-1, keepdims=True) - second
    drawn = valid_inertias(inertia, rng.uniform(0.05, 20, (2000, 3)))
    assert (drawn >= 0).all()
    assert (2 * drawn.max(-1) <= drawn.sum(-1) * (1 + 1e-9)).all()
    assert np.abs(drawn / np.maximum(inertia, 1e-12) - 1).max() > 1
    np.testing.assert_allclose(valid_inertias(inertia, np.ones((2000, 3))), inertia, atol=1e-12)
    np.testing.assert_allclose(valid_inertias(inertia, np.full((2000, 3), 2.0)), 2 * inertia, atol=1e-12)


def test_a_drawn_model_stays_within_its_ranges_and_the_nominal_one_as_it_is():
    nominal = offroad.make_vec("offroad/HalfCheetah-v5", 1).unwrapped.models[0]
    before = nominal.body_mass.copy()
    drawn = WIDE.draw(nominal, np.random.default_rng(0))
    np.testing.assert_array_equal(nominal.body_mass, before)
    for field, (low, high) in {
        "body_mass": WIDE.mass, "actuator_gainprm": WIDE.gain, "dof_damping": WIDE.damping,
        "jnt_stiffness": WIDE.stiffness,
    }.items():  # fmt: skip
        new, old = getattr(drawn, field), getattr(nominal, field)
        ratio = new[old != 0] / old[old != 0]
        assert ratio.min() >= low - 1e-12
        assert ratio.max() <= high + 1e-12
        assert np.ptp(ratio) > 0.1
    data = mujoco.MjData(drawn)
    mujoco.mj_step(drawn, data, 100)
    assert np.isfinite(data.qpos).all()


def test_worlds_differ_and_are_drawn_anew_and_repeat_with_their_seed():
    env = RandomizedVectorEnv(offroad.make_vec("offroad/HalfCheetah-v5", 3, max_episode_steps=4), WIDE)
    models = env.unwrapped.models

    def run():
        env.reset(seed=7)
        masses, seen = [], []
        for _ in range(6):
            masses.append([m.body_mass[1] for m in models])
            seen.append(env.step(np.full((3, 6), 0.3, np.float32))[0])
        return np.array(masses), np.array(seen)

    masses, seen = run()
    assert len(set(masses[0])) == 3
    np.testing.assert_array_equal(masses[0], masses[3])
    assert (masses[4] != masses[3]).all()  # the fourth step ended the episodes
    again = run()
    np.testing.assert_array_equal(again[0], masses)
    np.testing.assert_array_equal(again[1], seen)


def test_nothing_randomised_is_nothing_changed_and_latency_is_a_shift():
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2, 6)).astype(np.float32)

    def run(env, actions):
        env.reset(seed=1)
        return np.array([env.step(a)[0] for a in actions])

    plain = run(offroad.make_vec("offroad/HalfCheetah-v5", 2), actions)
    np.testing.assert_array_equal(
        run(RandomizedVectorEnv(offroad.make_vec("offroad/HalfCheetah-v5", 2), Randomization()), actions), plain
    )
    late = RandomizedVectorEnv(offroad.make_vec("offroad/HalfCheetah-v5", 2), Randomization(latency=(2, 2)))
    before = np.concatenate([actions[:1], actions[:1], actions[:-2]])
    np.testing.assert_array_equal(run(late, actions), run(offroad.make_vec("offroad/HalfCheetah-v5", 2), before))
    noisy = RandomizedVectorEnv(offroad.make_vec("offroad/HalfCheetah-v5", 2), Randomization(observation_noise=0.1))
    assert 0.07 < np.std(run(noisy, actions) - plain) < 0.13


def test_what_cannot_be_randomised_is_said():
    with pytest.raises(OffroadError, match=r"mass is drawn from \(0.0, 1.0\)"):
        Randomization(mass=(0.0, 1.0))
    with pytest.raises(OffroadError, match="no list 'models'"):
        RandomizedVectorEnv(offroad.make_vec("Pendulum-v1", 2), Randomization(mass=(0.5, 2.0)))
    RandomizedVectorEnv(offroad.make_vec("Pendulum-v1", 2), Randomization(latency=(0, 2)))
