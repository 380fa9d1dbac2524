"""The study of residual models: its geometry and grades, exactly; and every arm end to end with a budget of seconds."""

import dataclasses
import io

import equinox as eqx
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from rich.console import Console

from offroad.envs.hamr import HamrFull, HamrSimple, drive
from offroad.envs.hamr import models as hamr
from offroad.models import FitConfig, ResidualEnv
from offroad.models.residual import empty
from offroad.studies import load, residual
from offroad.studies.residual import control, endtoend, robots, speed, tables
from offroad.studies.study import Results, reproduce

TINY = tables.ResidualBudget(
    seeds=1, minutes=1, seconds=1, contact=1, gaits=4, updates=20, tuning=10, decisions=300, worlds=4,
    rollouts=2,
)  # fmt: skip


def states(count, seed=0):
    random = np.random.default_rng(seed)
    found = random.normal(size=(count, 29))
    found[:, 3:7] /= np.linalg.norm(found[:, 3:7], axis=1, keepdims=True)
    return jnp.asarray(found, jnp.float32)


def test_differences_of_states_are_what_moves_them():
    here, there = states(50), states(50, seed=1)
    found = endtoend.moved(here, endtoend.difference(here, there))
    sign = jnp.sign(jnp.sum(found[:, 3:7] * there[:, 3:7], -1, keepdims=True))
    np.testing.assert_allclose(found.at[:, 3:7].multiply(sign), there, atol=2e-4)
    np.testing.assert_allclose(endtoend.moved(here, jnp.zeros((50, 28))), here, atol=1e-6)


def test_where_the_robot_stands_and_heads_is_no_matter():
    here, there, u = states(20), states(20, seed=1), jnp.ones((20, 8))
    turn = jnp.array([np.cos(0.7), 0.0, 0.0, np.sin(0.7)], jnp.float32)

    def elsewhere(state):
        q = jnp.broadcast_to(turn, state[:, 3:7].shape)
        place = endtoend.rotated(q, state[:, :3]) + jnp.array([3.0, -2.0, 0.0])
        moved = endtoend.multiplied(q, state[:, 3:7]), state[:, 7:15], endtoend.rotated(q, state[:, 15:18])
        return jnp.concatenate([place, *moved, state[:, 18:]], -1)

    np.testing.assert_allclose(endtoend.features(elsewhere(here), u), endtoend.features(here, u), atol=1e-5)
    np.testing.assert_allclose(
        endtoend.difference(elsewhere(here), elsewhere(there)), endtoend.difference(here, there), atol=1e-4
    )


def test_rotations_are_mujocos():
    q, v = states(1)[0, 3:7], jnp.array([1.0, 2.0, 3.0])
    expected = np.zeros(3)
    mujoco.mju_rotVecQuat(expected, np.asarray(v, float), np.asarray(q, float))
    np.testing.assert_allclose(endtoend.rotated(q, v), expected, atol=1e-5)


def test_the_simple_model_grades_itself_as_faultless_and_the_full_ones_path_is_its_own():
    volts = drive.sine("trot", 40, frequency=30)
    model = hamr.simple()
    record = HamrSimple.log(hamr.hip_torques(volts), in_air=False) | {"u": volts}
    step = robots.stepped(hamr.driven_by_voltage(hamr.simple()))
    assert robots.ground_errors(step, record, 32).max() < 1e-12
    worse = robots.stepped(hamr.driven_by_voltage(hamr.simple(constants="published"), "published"))
    assert robots.ground_errors(worse, record, 32)[-1] > 1e-6
    path = robots.walked(step, robots.states_of(record, model)[:1], robots.inputs(record)[None, :60])
    np.testing.assert_allclose(path[0, -1, 1:8], record["qpos"][60, :7], atol=1e-9)
    moved = robots.displacement(path)
    assert moved["x"] == pytest.approx(record["qpos"][60, 0] - record["qpos"][1, 0], abs=1e-9)


def test_the_full_models_path_has_its_hips_in_the_right_places():
    record = HamrFull.log(drive.sine("trot", 20, frequency=30), in_air=False)
    state = robots.states_of(record, hamr.simple())
    np.testing.assert_allclose(state[:, robots.LEGS_Q] @ hamr.hip_matrix(hamr.simple()).T, record["q"])
    ordered = endtoend._ordered(state)
    np.testing.assert_allclose(ordered[:, 7:15], record["q"])
    np.testing.assert_allclose(ordered[:, 21:], record["qd"])
    assert np.ptp(record["q"][:, 0]) != pytest.approx(np.ptp(record["q"][:, 1]), rel=1e-3)


def test_errors_of_the_full_model_are_over_the_windows_of_all_others():
    volts = drive.noise(np.random.default_rng(0), 200, ramp=50)
    true = HamrFull.log(volts, dt=0.05)
    same, coarse = (speed.full_error(hamr.full(dt, in_air=True), true) for dt in (0.05, 0.25))
    assert same < 1e-9 < 1e-7 < coarse
    # by hand: the same starts, let go one by one
    log = robots.log_of(true)
    starts = log.windows(256, speed.WINDOWS)
    assert (len(starts), starts[0], starts[-1]) == (speed.WINDOWS, 0, 800 - 257)
    wrong = []
    for start in starts[::40]:
        model = hamr.full(0.25, in_air=True)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = true["qpos"][start], true["qvel"][start]
        for u in true["u"][start : start + 256]:
            data.ctrl[:] = u
            mujoco.mj_step(model, data)
        wrong.append(np.mean((hamr.hip_matrix(model) @ data.qpos - true["q"][start + 256]) ** 2))
    assert coarse == pytest.approx(np.mean(wrong), rel=0.5)


def test_the_cheapest_full_model_of_the_same_error_is_what_counts(tmp_path):
    def measured(error, paid):
        return {"seeds": [0], "metrics": {speed.ERROR: [error], speed.PAID: [paid]}}

    rows = {"cost, full, 0.25 ms": (5e-4, 50), "cost, full, 0.125 ms": (1e-4, 200), "cost, full, 0.05 ms": (1e-5, 500)}
    arms = {name: measured(*map(float, row)) for name, row in rows.items()}
    for error, expected in ((2e-4, 2.0), (1e-3, 0.5), (2e-5, 5.0), (1e-6, np.nan)):
        found = Results("residual", "cpu", tmp_path, arms=arms | {"cost, residual, 0.25 ms": measured(error, 100.0)})
        assert speed.at_matched_error(found) == pytest.approx(expected, nan_ok=True)


def test_a_step_is_timed_for_one_world_and_for_many():
    found = speed.row(0.05, 1e-4, lambda volts: np.sort(np.random.default_rng(0).normal(size=4000 * len(volts))))
    assert found["1 world: CPU [us per step]"] == pytest.approx(0.05 * found["1 world: CPU [us per ms]"])
    assert found[speed.PAID] > 0


def test_rank_correlations():
    a = np.array([3.0, 1.0, 2.0, 10.0])
    assert tables.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert tables.rank_correlation(a, -a) == pytest.approx(-1)


def identity(gain):
    """A correction that multiplies voltages."""
    joints = HamrSimple.joints
    made = empty(robots.hamr_limbs(), None, 0, form="action", joints=joints, controls=joints, inputs=8, dt=0.25,
                 delay=0, notes=())  # fmt: skip
    weights = jnp.zeros((2, 7)).at[0, 4].set(gain).at[1, 5].set(gain)
    return eqx.tree_at(lambda m: m.linear, made, weights)


def test_what_stands_for_the_robot_is_what_it_says():
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 8))

    def run(env):
        env.reset(seed=3)
        return np.array([env.step(a)[0] for a in actions])

    plain = run(HamrSimple(2))
    np.testing.assert_allclose(run(ResidualEnv(HamrSimple(2), identity(1.0))), plain, rtol=1e-3, atol=2e-3)
    assert np.abs(run(ResidualEnv(HamrSimple(2), identity(0.5))) - plain).max() > 0.05
    first, again, other = (run(control.noisy(2, seed=s, constants="summed")) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    drawn = control.randomised(3, seed=0)
    drawn.reset(seed=0)
    assert len({float(m.jnt_stiffness[1]) for m in drawn.unwrapped.models}) == 3


def test_a_network_of_the_whole_robot_learns_and_stands_for_it():
    config = FitConfig(members=2, updates=150, batch=128, tuning=10, horizon=8, windows=40, tuning_batch=8)
    log = endtoend.contact_log(1, 0)
    fitted = endtoend.fit_whole_robot(*log, config, 0)
    here, there = (jnp.asarray(log[0][0, t : t + 3900 : 10], jnp.float32) for t in (0, 1))
    foretold = fitted(here, jnp.asarray(log[1][0, :3900:10], jnp.float32))
    wrong, still = (float(jnp.mean((x - there)[:, 7:] ** 2)) for x in (foretold, here))
    assert wrong < 0.5 * still
    env = control.NetworkHamr(2, model=fitted, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    step, state = endtoend.stepped(fitted), env.get_state()["physics"]
    found = env.step(np.zeros((2, 8)))[0]
    for _ in range(16):
        state = step(state, env._law(state, np.zeros((2, 8))))
    np.testing.assert_allclose(env.get_state()["physics"], state, rtol=1e-6, atol=1e-9)
    assert found.shape == (2, 28)


# Not those that are the simple model with other springs, or another correction by the same code.
WALKING = [f"control_{name}" for name in ("simple", "noise", "randomisation", "residual", "network", "full")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = dataclasses.replace(residual.STUDY, profiles={"tiny": TINY})
    out = tmp_path_factory.mktemp("residual")
    chosen = ["simple, summed springs", "linear identification, windows", "residual", "network, contact"]
    chosen += [*WALKING, "turn_residual"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "TURNING", 0)
        found = reproduce(study, "tiny", arms=chosen, out=out, console=Console(file=io.StringIO()))
    return study, out, found


def test_arms_are_graded(results):
    _, out, found = results
    for arm in ("simple, summed springs", "residual"):
        assert found.iqm(arm, "air, 64 ms [rad^2]") > found.iqm(arm, "air, 0.25 ms [rad^2]") > 0
        assert -1 <= found.iqm(arm, "gaits: rank correlation of distance") <= 1
    assert not any("air" in metric for metric in found["network, contact"])
    known = {claim.claim: claim.holds is not None for claim in found.claims}
    assert known["In air its error after 64 ms"]
    assert not known["In air, 64 ms, below physical identification"]
    assert known["Control: what it keeps of its return in the full model"]
    assert known["Control: what it keeps of its return in turning"]
    assert (out / "figures" / "learning.png").exists()


def test_policies_are_graded_on_the_full_model_and_runs_are_read_again(results):
    study, out, found = results
    assert "turning in the full model [rad/s]" in found["turn_residual"]
    for arm in WALKING:
        assert "speed in the full model [body lengths/s]" in found[arm]
        assert np.isfinite(found.values(arm, "return in the full model")).all()
        assert found[arm]["decisions [thousands]"][0] >= 0.3
    again = reproduce(study, "tiny", arms=["control_simple", "turn_full"], out=out, console=Console(file=io.StringIO()))
    assert "turn_full" not in again.arms  # the budget is too small for turning
    for metric in ("return in the full model", "return in its own model"):
        assert again.values("control_simple", metric) == found.values("control_simple", metric)


def test_the_study_is_found_and_its_profiles_know_all_arms():
    assert load("residual") is residual.STUDY
    assert residual.STUDY.shares.keys() <= residual.STUDY.arms.keys()
