"""HAMR's models against what is published of them, against physics, and against each other."""

from pathlib import Path

import mujoco
import numpy as np
import pytest

from offroad.envs.hamr import HamrFull, HamrSimple, drive, geometry, models
from offroad.envs.hamr.drive import record
from offroad.errors import OffroadError

TROT = np.load(Path(__file__).parent / "data" / "hamr_trot60hz.npz", allow_pickle=False)
INTERVAL = 0.25


def rows(name):
    """A field of the published trot as `[T, 8]`."""
    return TROT[name].transpose(0, 2, 1).reshape(-1, 8)


def at_rest(model):
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return data


def openings(model, data):
    """How far the two points of each loop are apart, in mm."""
    return np.linalg.norm(data.site_xpos[model.eq_obj1id] - data.site_xpos[model.eq_obj2id], axis=-1)


def mass_matrix(model, data):
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, mass)
    return mass


def rms(difference):
    return np.sqrt(np.mean(np.square(difference)))


# --- What is published


def test_actuators_push_as_published():
    model = models.full(in_air=True)
    data = mujoco.MjData(model)
    slides = model.jnt_qposadr[model.actuator_trnid[:, 0]]
    fields = ("inputs_voltage", "state_qact", "inputs_actuator_force")
    for volts, position, force in list(zip(*map(rows, fields)))[::5]:
        data.qpos[slides], data.ctrl[:] = position, volts
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdActuation(model, data)
        np.testing.assert_allclose(data.actuator_force, force, atol=1e-6)


def test_gait_is_the_published_one():
    volts = drive.sine("trot", len(TROT["time"]) * INTERVAL, frequency=60, amplitude=50)
    np.testing.assert_allclose(volts, rows("inputs_voltage"), atol=1e-9)


def test_hip_map_is_that_of_the_published_states():
    # Their hip angles are those of the linkage's joints; lever arms hold to a few per cent over the whole trot.
    angle, actuator = rows("state_qhip"), rows("state_qact")
    slope = (angle * actuator).sum(0) / (actuator**2).sum(0)
    jacobian = models.rest_jacobian()
    model = models.full(in_air=True)
    levers = jacobian[model.actuator_trnid[:, 0], np.arange(8)]
    np.testing.assert_allclose(np.abs(levers), np.tile((0.53, 0.58), 4), atol=1e-6)
    np.testing.assert_allclose(slope, 1 / levers, rtol=0.06)


def test_masses_and_geometry():
    full, simple = models.full(), models.simple()
    assert full.body_mass.sum() == pytest.approx(1.475, abs=2e-5)
    assert simple.body_mass.sum() == pytest.approx(full.body_mass.sum(), abs=1e-9)
    assert (full.nq, full.nv, full.nu, full.neq) == (39, 38, 8, 12)
    assert (simple.nv, simple.nu) == (14, 8)
    for model in (full, simple):
        data = at_rest(model)
        feet = np.array([data.geom(f"{leg}_foot").xpos for leg in geometry.LEGS]) - data.body("chassis").xpos
        feet[:, 2] -= geometry.FOOT_RADIUS
        np.testing.assert_allclose(feet, TROT["outputs_qleg_rest"].T, atol=1e-4)
        assert data.body("chassis").xpos[2] == pytest.approx(TROT["state_qfloat"][2, 0])
    assert openings(full, at_rest(full)).max() < 1e-6


def test_both_models_have_the_same_centre_of_mass_and_inertia_at_rest():
    full, simple = models.full(), models.simple()
    values = []
    for model in (full, simple):
        data = at_rest(model)
        values.append((data.subtree_com[0].copy(), mass_matrix(model, data)[:6, :6]))
    np.testing.assert_allclose(values[0][0], values[1][0], atol=1e-9)
    np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-5)


def test_lumped_leg_is_that_of_the_fact_sheet():
    model = models.simple(in_air=True)
    front_left = mass_matrix(model, at_rest(model))[:2, :2]  # lift about x, swing about z
    np.testing.assert_allclose(front_left, [[1.948, -0.417], [-0.417, 1.057]], atol=1e-3)
    assert model.body("FL_L4").mass[0] == pytest.approx(0.05334, abs=1e-5)


def test_first_30_ms_of_the_published_trot_and_closed_loops():
    model, steps = models.full(0.05), round(30 / INTERVAL) + 1
    log = record(model, rows("inputs_voltage")[:steps], interval=INTERVAL)
    slides = model.jnt_qposadr[model.actuator_trnid[:, 0]]
    assert rms(log["qpos"][:, slides] - rows("state_qact")[:steps]) < 0.015
    assert rms(rows("state_qact")[:steps]) > 0.03  # what the above is to be compared with
    assert rms(log["q"] - rows("state_qhip")[:steps]) < 0.03
    data = mujoco.MjData(model)
    for position in log["qpos"][::4]:
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        assert openings(model, data).max() < 2e-3


def test_loops_stay_closed_under_noise():
    model = models.full(0.05)
    volts = drive.noise(np.random.default_rng(0), 80, ramp=5)
    data = mujoco.MjData(model)
    for position in record(model, volts, interval=INTERVAL)["qpos"][::2]:
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        assert openings(model, data).max() < 2e-3


def test_rests_on_four_feet():
    for model, rest in ((models.full(0.25), np.full(8, geometry.REST)), (models.simple(), np.zeros(8))):
        log = record(model, np.tile(rest, (80, 1)), interval=5.0)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = log["qpos"][-1], log["qvel"][-1], rest
        mujoco.mj_forward(model, data)
        feet = [data.geom(f"{leg}_foot").xpos[2] for leg in geometry.LEGS]
        np.testing.assert_allclose(feet, geometry.FOOT_RADIUS, atol=0.01)
        # Without load, tips are 12.54 mm below the chassis. Legs give way, as slowly as feet creep under friction.
        assert 12.4 < log["qpos"][-1, 2] < 12.53
        assert np.abs(log["qvel"][-1, :3]).max() < 1e-3
        force = np.zeros(6)
        lift = 0.0
        for contact in range(data.ncon):
            mujoco.mj_contactForce(model, data, contact, force)
            lift += force[0]
        assert lift == pytest.approx(1.475 * geometry.GRAVITY, rel=0.02)


# --- Physics


def undriven(model):
    """Takes friction and drive away, keeps springs."""
    model.dof_damping[:] = 0.0
    model.actuator_gainprm[:] = 0.0
    model.actuator_biasprm[:] = 0.0
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
    return model


@pytest.mark.parametrize(("build", "dt"), [(models.full, 0.01), (models.simple, 0.02)])
def test_energy_is_kept_without_friction_and_drive(build, dt):
    model = undriven(build(dt, in_air=True))
    data = mujoco.MjData(model)
    rate = 0.05 * np.random.default_rng(1).standard_normal(8)
    data.qvel[:] = models.rest_jacobian() @ rate if build is models.full else models.hip_matrix(model).T @ rate
    energy, potential = [], []
    for _ in range(round(40 / dt)):
        mujoco.mj_step(model, data)
        energy.append(data.energy.sum())
        potential.append(data.energy[0])
    energy = np.array(energy)
    assert np.max(potential) > 0.5 * energy[0]  # it went back and forth between springs and motion
    np.testing.assert_allclose(energy, energy[0], rtol=0.03)


def momentum_after_free_fall(build, dt):
    """Linear momentum in g mm/ms of a robot that moved its legs without gravity and ground, for 10 ms."""
    model = build(dt)
    model.opt.gravity[:] = 0.0
    model.qpos0[2] = 100.0
    volts = drive.sine("pronk", 10, frequency=60, amplitude=90, ramp=0)
    log = record(model, volts if build is models.full else models.hip_torques(volts))
    assert np.abs(log["qd"][-1]).max() > 0.02
    assert np.abs(log["qpos"][-1, :3] - (0, 0, 100)).max() > 0.01
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = log["qpos"][-1], log["qvel"][-1]
    mujoco.mj_fwdPosition(model, data)
    mujoco.mj_subtreeVel(model, data)
    return np.abs(data.subtree_linvel[0]).max() * model.body_mass.sum()


@pytest.mark.parametrize("build", [models.full, models.simple])
def test_momentum_is_kept_by_a_driven_robot_in_free_fall(build):
    # But for the error of the integrator, which is of first order.
    coarse, fine = (momentum_after_free_fall(build, dt) for dt in (0.05, 0.01))
    assert fine < 0.25 * coarse + 1e-9
    assert fine < 2e-4


def mirrored(values, flip):
    """Left and right exchanged; `flip` is what to do with each leg's numbers."""
    return flip(values.reshape(*values.shape[:-1], 4, 2)[..., [2, 3, 0, 1], :]).reshape(values.shape)


@pytest.mark.parametrize("build", [models.full, models.simple])
def test_left_and_right_are_mirror_images(build):
    random = np.random.default_rng(2)
    volts = drive.sine(random.uniform(0, 6, 8), 30, frequency=40, amplitude=90, ramp=5)
    other = mirrored(volts, lambda leg: geometry.BIAS - leg)
    model = build(0.05)
    convert = (lambda v: v) if build is models.full else models.hip_torques
    one, two = (record(model, convert(drive_)) for drive_ in (volts, other))
    np.testing.assert_allclose(one["q"], mirrored(two["q"], np.negative), atol=1e-5)
    np.testing.assert_allclose(one["qpos"][:, :3], two["qpos"][:, :3] * (1, -1, 1), atol=1e-4)
    assert np.abs(one["qpos"][-1, 0]) > 0.5  # it moved


def test_front_and_rear_differ_a_little():
    # Rear legs have another link behind the lift actuator, so they are no exact images.
    volts = drive.sine(np.tile((0.3, 1.9), 4), 40, frequency=30, amplitude=70)
    rear = np.isin(np.arange(8) // 2, (1, 3))
    volts[:, rear] = geometry.BIAS - volts[:, rear]
    q = HamrFull.log(volts)["q"]
    front, rear = q[:, :2], q[:, 2:4] * (-1, 1)
    assert 1e-6 < rms(front - rear) < 0.05 * rms(front)


def test_simple_model_gives_way_as_the_full_one():
    volts = np.full((1600, 8), geometry.REST) + 20 * np.random.default_rng(3).standard_normal(8)
    full = HamrFull.log(volts, dt=0.25)["q"][-1]
    simple = HamrSimple.log(models.hip_torques(volts))["q"][-1]
    summed = HamrSimple.log(models.hip_torques(volts, "summed"), constants="summed")["q"][-1]
    np.testing.assert_allclose(simple, full, atol=0.03 * np.abs(full).max())
    assert rms(summed - full) > 5 * rms(simple - full)


def test_steps_of_physics_hardly_matter():
    volts = drive.noise(np.random.default_rng(4), 64, ramp=10)
    reference = HamrFull.log(volts, dt=0.01)["q"]
    coarse, fine = (np.mean(np.square(HamrFull.log(volts, dt=dt)["q"] - reference)) for dt in (0.25, 0.05))
    assert fine < 1e-5
    assert fine < coarse < 5e-4


# --- Drive and records


def test_noise_has_its_band_and_spread():
    volts = drive.noise(np.random.default_rng(0), 8000, ramp=0)
    assert volts.shape == (32000, 8)
    assert volts.min() >= 0
    assert volts.max() <= 225
    assert volts.std() == pytest.approx(225 / 3.5, rel=0.1)  # a little less: clipped
    unclipped = drive.noise(np.random.default_rng(0), 8000, ramp=0, deviation=10)
    power = np.square(np.abs(np.fft.rfft(unclipped - unclipped.mean(0), axis=0))).sum(1)
    above = np.fft.rfftfreq(32000, 0.25e-3) > 40.01
    assert power[above].sum() < 1e-4 * power.sum()
    assert unclipped.std() == pytest.approx(10, rel=0.05)
    ramped = drive.noise(np.random.default_rng(0), 8000)
    assert ramped[:200].std() < 0.2 * ramped[-2000:].std()


def test_records_of_many_worlds_are_those_of_each():
    volts = np.stack([drive.sine("pronk", 10, frequency=f, ramp=0) for f in (20, 60)])
    together = HamrFull.log(volts)
    for world in range(2):
        alone = HamrFull.log(volts[world])
        for name in ("q", "qd", "u", "qpos"):
            np.testing.assert_array_equal(together[name][world], alone[name])
    np.testing.assert_array_equal(together["time"], 0.25 * np.arange(40))
    np.testing.assert_array_equal(together["q"][:, 0], 0.0)
    # Rates are those of the angles.
    slope = np.gradient(alone["q"], 0.25, axis=0)
    np.testing.assert_allclose(slope[5:-5], alone["qd"][5:-5], atol=1e-2)


def test_mistakes_are_explained():
    with pytest.raises(OffroadError, match="no whole number"):
        HamrFull.log(np.full((3, 8), 112.5), interval=0.12)
    with pytest.raises(OffroadError, match="did you mean 'trot'"):
        drive.sine("tro", 10, frequency=10)
    with pytest.raises(OffroadError, match="amplitude"):
        drive.sine("trot", 10, frequency=10, amplitude=200)
    with pytest.raises(OffroadError, match="longer than 25 ms"):
        drive.noise(np.random.default_rng(0), 10)
    with pytest.raises(OffroadError, match="hip constants"):
        models.simple(constants="guessed")
    with pytest.raises(OffroadError, match="diverged"):
        HamrSimple.log(np.full((50, 8), 1e9))
