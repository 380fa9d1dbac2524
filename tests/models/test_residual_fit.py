"""Fitting: nothing to correct, known maps recovered, the linear floor off the data, limbs, forms, saving."""

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from residual_pair import arm, excitation, logged, record

from offroad.errors import OffroadError
from offroad.models import FitConfig, FunctionSimulator, Limb, MujocoSimulator, fit, load, make_log
from offroad.models.comparison import corrected, mean_squared_errors
from offroad.models.fitting import fit_linear, fit_networks, prepare, tune_linear
from offroad.models.identification import identify
from offroad.models.regression import minimise
from offroad.models.residual import gather, networks, whole

LINEAR = FitConfig(hidden=(), tuning=0)
QUICK = FitConfig(hidden=(24,), members=3, updates=600, batch=128, tuning=40, horizon=12, windows=100, tuning_batch=16)


@pytest.fixture(scope="module")
def hidden():
    """A real arm with friction, a load, weak motors and a delay, and the model that corrects the simple one."""
    real = arm(friction=0.1, load=0.8)
    weak = lambda u: 2 * np.tanh(u / 2)  # noqa: E731
    log = logged(real, delay=2, actuator=weak)
    return real, weak, log, fit(arm(), log, config=QUICK)


def test_nothing_is_corrected_where_the_simulator_is_right():
    log = logged(arm())
    problem = prepare(arm(), log, config=QUICK)
    np.testing.assert_allclose(problem.targets, log.u[problem.rows], atol=1e-9)
    model = fit_networks(problem, fit_linear(problem))
    control, force = model(log.q, log.qd, log.u)
    np.testing.assert_allclose(control, log.u, atol=1e-3)
    assert not force.any()


def test_a_linear_actuator_map_is_recovered():
    gains, offsets = np.array([0.7, 1.3]), np.array([0.2, -0.1])
    log = logged(arm(), actuator=lambda u: gains * u + offsets)
    problem = prepare(arm(), log, config=LINEAR)
    model = fit_linear(problem)
    control, _ = model(np.zeros((3, 2)), np.zeros((3, 2)), np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(control[0], offsets, atol=1e-3)
    np.testing.assert_allclose(control[1:] - control[0], np.diag(gains), atol=1e-3)
    # and through any function as well, which knows no closed form
    simulator = MujocoSimulator(arm())
    function = FunctionSimulator(lambda q, qd, u: simulator.step(q, qd, u, 0 * q), 2, 2, 0.01)
    other = fit(function, log, config=LINEAR)
    np.testing.assert_allclose(other.linear, model.linear, atol=1e-3)


def test_networks_learn_what_a_linear_map_cannot(hidden):
    real, weak, _, model = hidden
    assert model.delay == 2
    assert model.form == "action"
    assert any("inertia gauge" in note for note in model.notes)
    unseen = logged(real, seed=1, rows=600, delay=2, actuator=weak)
    simulator = MujocoSimulator(arm())
    errors = {
        name: mean_squared_errors(corrected(simulator, m), unseen.delayed(2), 50)[0][-1].mean()
        for name, m in {"simple": None, "linear": model.only_linear(), "residual": model}.items()
    }
    assert errors["residual"] < 0.2 * errors["linear"] < 0.02 * errors["simple"]


def test_off_the_data_it_is_the_linear_map(hidden):
    real, weak, _, model = hidden
    wild = logged(real, seed=2, rows=600, delay=2, actuator=weak, size=6.0).delayed(2)
    simulator = MujocoSimulator(arm())
    errors = [
        mean_squared_errors(corrected(simulator, m), wild, h)[0][-1].mean()
        for h in (1, 10, 40)
        for m in (model, model.only_linear())
    ]
    for residual, linear in zip(errors[::2], errors[1::2]):
        assert residual < 1.1 * linear
    far = np.full((1, 2), 50.0)
    np.testing.assert_array_equal(model(far, far, far)[0], model.only_linear()(far, far, far)[0])
    assert model.trust(far, far, far)[0] == 0
    _, _, log, _ = hidden
    late = log.delayed(2)
    assert (model.trust(late.q, late.qd, late.u) > 0.99).mean() > 0.98


def test_saved_models_are_equal_to_the_bit(hidden, tmp_path):
    model, log = hidden[3], hidden[2]
    again = load(model.save(tmp_path / "model"))
    for a, b in zip(model(log.q, log.qd, log.u), again(log.q, log.qd, log.u)):
        np.testing.assert_array_equal(a, b)
    assert (again.form, again.limbs, again.delay, again.notes) == (model.form, model.limbs, model.delay, model.notes)
    linear = load(model.only_linear().save(tmp_path / "linear"))
    assert linear.networks is None
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(OffroadError, match="no residual model that can be read"):
        load(tmp_path / "model")


def test_tuning_on_windows_lowers_the_error_over_windows():
    """Least squares on noisy velocities is biased towards too little motion, errors over windows are hardly so."""
    u = excitation(0, 2000)
    q, qd = record(arm(), u)
    noise = np.random.default_rng(1).normal(size=(2, *q.shape))
    log = make_log(q + 1e-3 * noise[0], u, qd + 0.3 * noise[1], dt=0.01, filtered=False)
    config = FitConfig(hidden=(), tuning=150, tuning_rate=2e-3, horizon=20, windows=150)
    problem = prepare(arm(), log, config=config)
    linear = fit_linear(problem)
    tuned = tune_linear(problem, linear)
    clean = logged(arm(), seed=3, rows=600)
    before, after = (
        mean_squared_errors(corrected(problem.simulator, m), clean, 30)[0][-1].mean() for m in (linear, tuned)
    )
    assert after < 0.25 * before


def test_an_unactuated_error_is_detected_and_corrected_by_forces():
    xml = """<mujoco><option timestep="0.01"/><worldbody>
    <body><joint name="cart" type="slide" axis="1 0 0" damping="0.5"/>
    <geom type="box" size=".1 .1 .1" mass="1" contype="0"/>
    <body><joint name="pole" type="hinge" axis="0 1 0" 
    damping="%s" stiffness="%s"/><geom type="capsule" size=".03" fromto="0 0 0 0 0 -.5" mass=".3" contype="0"/></body>
    </body></worldbody>
    <actuator><motor joint="cart" gear="5"/></actuator></mujoco>"""
    simple, real = (mujoco.MjModel.from_xml_string(xml % x) for x in ((0.0, 0.0), (0.3, 2.0)))
    u = excitation(0, 2000)[:, :1]
    log = make_log(*_swapped(real, u), dt=0.01)
    with pytest.raises(OffroadError, match=r"no control can correct the simulator.*'pole'"):
        prepare(simple, log, form="action", config=LINEAR)
    model = fit(simple, log, config=LINEAR)
    assert model.form == "dynamics"
    assert any("forces are added" in note for note in model.notes)
    simulator = MujocoSimulator(simple)
    unseen = make_log(*_swapped(real, excitation(1, 600)[:, :1]), dt=0.01)
    plain, mended = (mean_squared_errors(corrected(simulator, m), unseen, 50)[0][-1].mean() for m in (None, model))
    assert mended < 1e-2 * plain
    # a simulator that is right is not accused
    assert fit(real, log, config=LINEAR).form == "action"


def _swapped(model, u):
    q, qd = record(model, u)
    return q, u, qd


def test_limbs_share_weights_and_mirror():
    limbs = (Limb((0,), (0,)), Limb((1,), (1,), joint_signs=(-1.0,), input_signs=(-1.0,), control_signs=(-1.0,)))
    q = np.array([[0.3, -0.3]])
    x = gather(limbs, q, 2 * q, 3 * q)
    np.testing.assert_allclose(x[0, 0], x[0, 1])
    two = """<mujoco><option timestep="0.01" gravity="0 0 0"/><worldbody>
    <body pos="0 -1 0"><joint name="left" type="hinge" axis="0 1 0" damping="%s"/>
    <geom type="capsule" size=".03" fromto="0 0 0 0 0 -.4" mass="1"/></body>
    <body pos="0 1 0"><joint name="right" type="hinge" axis="0 -1 0" damping="%s"/>
    <geom type="capsule" size=".03" fromto="0 0 0 0 0 -.4" mass="1"/></body>
    </worldbody><actuator><motor joint="left"/><motor joint="right"/></actuator></mujoco>"""
    simple, real = (mujoco.MjModel.from_xml_string(two % (d, d)) for d in (0.1, 0.4))
    log = logged(real, actuator=lambda u: 0.8 * u + np.array([0.1, -0.1]))
    model = fit(simple, log, limbs=limbs, config=LINEAR)
    errors = [mean_squared_errors(corrected(MujocoSimulator(simple), m), log, 20)[0][-1].mean() for m in (None, model)]
    assert errors[1] < 1e-4 * errors[0]
    here, there = (model(*(sign * np.full((1, 2), x) for x in (0.3, 0.2, 1.0)))[0] for sign in (1.0, -1.0))
    np.testing.assert_allclose(here, -there[:, ::-1], rtol=1e-5)
    with pytest.raises(OffroadError, match="limb names joint 5"):
        prepare(simple, log, limbs=(Limb((5,), (0,)),), config=LINEAR)
    with pytest.raises(OffroadError, match="1 joints but 2 signs"):
        Limb((0,), (0,), joint_signs=(1.0, 1.0))


def test_delta_and_action_agree_where_inputs_are_controls():
    log = logged(arm(), actuator=lambda u: 0.8 * u + 0.1)
    models = [fit(arm(), log, form=form, config=LINEAR) for form in ("action", "delta")]
    controls = [m(log.q, log.qd, log.u)[0] for m in models]
    np.testing.assert_allclose(*controls, atol=1e-3)
    with pytest.raises(OffroadError, match="form='action'"):
        prepare(arm(), make_log(log.q, log.u[:, :1], log.qd, dt=0.01), form="delta", config=LINEAR)


def test_parameters_are_identified():
    log = logged(arm(load=0.5, friction=0.08), rows=1500)
    simulator = MujocoSimulator(arm(load=0.4))
    search = {"kinds": ("mass", "friction"), "horizon": 16, "windows": 64}
    fitted, values = identify(simulator, log, limbs=(whole(2, 2, 2),), **search)
    assert values["mass of b"] == pytest.approx(0.5 / 0.4, rel=0.03)
    assert values["mass of a"] == pytest.approx(1.0, rel=0.05)
    assert values["friction of a"] == pytest.approx(0.08, rel=0.1)
    errors = [mean_squared_errors(corrected(s, None), log, 30)[0][-1].mean() for s in (simulator, fitted)]
    assert errors[1] < 1e-2 * errors[0]


def test_identification_that_runs_out_of_time_keeps_the_best_so_far():
    log = logged(arm(load=0.5), rows=600)
    simulator = MujocoSimulator(arm(load=0.3))
    search = {"limbs": (whole(2, 2, 2),), "kinds": ("mass",), "horizon": 16, "windows": 32}
    _, none = identify(simulator, log, seconds=0, **search)
    assert none == {"mass of a": 1.0, "mass of b": 1.0}
    assert identify(simulator, log, **search)[1]["mass of b"] == pytest.approx(0.5 / 0.3, rel=0.05)


def test_the_loop_keeps_the_best_weights_of_each_member():
    import jax

    x = jnp.linspace(-1, 1, 200)[:, None]
    y = jnp.sin(3 * x)
    nets = networks(1, (16,), 1, 3, jax.random.key(0))
    loss = lambda net, batch: jnp.mean((net(batch[0]) - batch[1]) ** 2)  # noqa: E731
    fitted = minimise(loss, nets, (x, y), (x, y), updates=600, batch=64, rate=1e-2, key=jax.random.key(1))
    held = jax.vmap(lambda w: loss(w, (x, y)))
    assert held(fitted).max() < 1e-2
    # steps that only do harm are not kept
    harmed = minimise(loss, fitted, (x, -y), (x, y), updates=50, batch=64, rate=1e-1, key=jax.random.key(1))
    assert (held(harmed) <= held(fitted)).all()
