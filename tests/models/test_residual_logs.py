"""Logs: formats, gaps, jitter, missing velocities, noise, delay, and a message for everything that is wrong."""

import numpy as np
import pytest
from residual_pair import arm, logged

from offroad.data import tables
from offroad.envs.hamr import HamrFull, HamrSimple, drive
from offroad.envs.hamr.geometry import REST
from offroad.errors import OffroadError
from offroad.models import FitConfig, make_log, read_log
from offroad.models.checks import search_delay
from offroad.models.fitting import prepare, targets
from offroad.models.logs import derivative, noise_of
from offroad.models.simulators import MujocoSimulator

QUICK = FitConfig(updates=100, tuning=0, hidden=(8,))


def wave(rows=400, dt=0.01):
    time = dt * np.arange(rows)
    q = np.stack([np.sin(3 * time), 0.5 * np.cos(5 * time)], -1)
    qd = np.stack([3 * np.cos(3 * time), -2.5 * np.sin(5 * time)], -1)
    return time, q, qd, np.sin(7 * time)[:, None]


def test_every_format_holds_the_same_log(tmp_path):
    time, q, qd, u = wave()
    columns = {"time": time, "q": q, "qd": qd, "u": u, "episode": np.repeat([3, 7], 200)}
    np.savez(tmp_path / "log.npz", **columns)
    tables.write_csv(tmp_path / "log.csv", columns)
    tables.write_parquet(tmp_path / "log.parquet", columns)
    logs = [read_log(tmp_path / f"log.{kind}") for kind in ("npz", "csv", "parquet")]
    for log in logs:
        np.testing.assert_allclose(log.q, q)
        np.testing.assert_array_equal(log.u, u)
        np.testing.assert_array_equal(log.episode, np.repeat([0, 1], 200))
        assert log.dt == pytest.approx(0.01)
        assert len(log.starts(1)) == 398
        assert log.duration == pytest.approx(3.98)
    named = read_log(tmp_path / "log.csv", q=("q_1", "q_0"), qd=("qd_1", "qd_0"), u="u_0", dt=0.01)
    np.testing.assert_allclose(named.q, q[:, ::-1])


def test_derivatives_of_clean_and_of_noisy_positions():
    _, q, qd, _ = wave(1000)
    assert np.abs(derivative(q, 0.01) - qd)[5:-5].max() < 2e-3 * np.abs(qd).max()
    noisy = q + 1e-3 * np.random.default_rng(0).normal(size=q.shape)
    np.testing.assert_allclose(noise_of(noisy), 1e-3, rtol=0.15)
    rough = np.gradient(noisy, 0.01, axis=0)
    error = np.std((derivative(noisy, 0.01) - qd)[20:-20])
    assert error < 0.2 * np.std((rough - qd)[20:-20])


def test_missing_velocities_and_noise_are_noted():
    time, q, qd, u = wave(1000)
    clean = make_log(q, u, time=time)
    assert np.abs(clean.qd - qd)[5:-5].max() < 5e-3
    assert any("derivative" in note for note in clean.notes)
    noise = np.random.default_rng(0).normal(size=(2, *q.shape))
    noisy = make_log(q + 1e-3 * noise[0], u, qd + 0.05 * noise[1], time=time)
    assert any("smoothed" in note for note in noisy.notes)
    assert np.std(noisy.qd - qd) < 0.025


def test_jitter_is_resampled_and_gaps_are_not():
    time, q, qd, u = wave(400)
    jitter = time + 0.002 * np.random.default_rng(0).uniform(-1, 1, 400)
    true = np.stack([np.sin(3 * jitter), 0.5 * np.cos(5 * jitter)], -1)
    log = make_log(true, u, time=jitter)
    assert any("resampled" in note for note in log.notes)
    assert (
        np.abs(log.q - np.stack([np.sin(3 * (jitter[0] + log.dt * np.arange(len(log.q)))), log.q[:, 1]], -1)).max()
        < 1e-3
    )
    cut = np.delete(np.arange(400), np.arange(150, 170))
    with pytest.raises(OffroadError, match=r"1 gap in time \(first after row 149: 0.21 where rows are 0.01 apart\)"):
        make_log(q[cut], u[cut], qd[cut], time=time[cut])
    split = make_log(q[cut], u[cut], qd[cut], time=time[cut], gaps="split")
    assert split.starts(1).tolist() == [i for i in range(379) if i != 149]
    back = time.copy()
    back[200:] -= 1.0
    with pytest.raises(OffroadError, match="time does not increase at row 200"):
        make_log(q, u, qd, time=back)


def test_delays_shift_inputs_within_episodes_and_splits_are_late():
    time, q, qd, u = wave(200)
    log = make_log(q, u, qd, time=time, episode=np.repeat([0, 1], 100))
    late = log.delayed(3)
    assert len(late.q) == 194
    np.testing.assert_array_equal(late.u[97:], u[100:197])
    np.testing.assert_array_equal(late.q[97:], q[103:])
    seen, unseen = log.split(0.2)
    np.testing.assert_array_equal(unseen.q, np.concatenate([q[80:100], q[180:]]))
    assert len(seen.q) + len(unseen.q) == 200


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_the_delay_is_found(delay):
    simulator = MujocoSimulator(arm())
    log = logged(arm(friction=0.05, load=0.7), delay=delay)
    rows, needed, _ = targets(simulator, log)
    found, explained, without = search_delay(log, needed, rows, 10)
    assert found == delay
    assert explained.max() > without + 0.3


def changed(log, **changes):
    fields = {"q": log.q, "u": log.u, "qd": log.qd, "dt": log.dt} | changes
    return make_log(fields["q"], fields["u"], fields["qd"], dt=fields["dt"])


def test_every_bad_log_has_its_message(tmp_path):
    log = logged(arm())
    shuffled = log.u[np.random.default_rng(0).permutation(len(log.u))]
    half = np.column_stack([log.u[:, 0], 0 * log.u[:, 1]])
    holes = log.q.copy()
    holes[17, 1] = np.nan
    for bad, message in (
        (lambda: changed(log, u=0 * log.u + 0.3), "the actions of the log are constant"),
        (lambda: changed(log, u=half), "input 1 of the log is constant at 0"),
        (lambda: changed(log, q=log.q * (1, 0), qd=log.qd * (1, 0)), "position of joint 1 is 0 in every row"),
        (lambda: changed(log, u=shuffled), "the log carries no signal"),
        (lambda: changed(log, qd=np.degrees(log.qd)), r"is 57\.\d+ times the derivative of its position"),
        (lambda: changed(log, q=1e3 * log.q, qd=1e3 * log.qd), "is the log in the simulator's units"),
        (lambda: changed(log, dt=10.0), "1,000 timesteps of the simulator; .* is time in another unit"),
        (lambda: changed(log, dt=0.015), "no multiple of the simulator's timestep"),
        (lambda: changed(log, q=log.q[:, :1], qd=log.qd[:, :1]), "the log has 1 joints, the simulator 2"),
        (
            lambda: changed(log, q=holes),
            r"q of the log holds 1 values that are missing or not finite \(first in row 17\)",
        ),
        (lambda: make_log(log.q[:20], log.u[:20], dt=0.01), "longest episode of the log has 20 rows"),
        (lambda: make_log(log.q, log.u), "no column of times and no dt"),
        (lambda: make_log(log.q[..., None], log.u, dt=0.01), r"q of the log has the shape \(2000, 2, 1\)"),
        (lambda: make_log(np.array(3.0), log.u, dt=0.01), r"q of the log has the shape \(\), expected"),
        (lambda: make_log(log.q, log.u, time=log.u), r"time of the log has the shape \(2000, 2\)"),
        (lambda: make_log(log.q, log.u[:-1], dt=0.01), "2000 rows of q but 1999 of u"),
        (lambda: read_log(tmp_path / "log.csv"), "does not exist"),
    ):
        with pytest.raises(OffroadError, match=message):
            prepare(arm(), bad(), config=QUICK)
    (tmp_path / "log.csv").write_text("time,hip,u\n" + "\n".join(f"{i},{i},{i}" for i in range(60)))
    with pytest.raises(OffroadError, match=r"has no column 'q'.*it has hip, time, u"):
        read_log(tmp_path / "log.csv")
    with pytest.raises(OffroadError, match="unknown check 'unit'; did you mean 'units'"):
        prepare(arm(), log, ignore=("unit",))


def test_files_that_are_no_logs_have_their_message_too(tmp_path):
    rows = "\n".join(f"{t / 100},0.1,{'off' if t == 40 else 0.2},0.3" for t in range(60))
    for name, content, message in (
        ("log.csv", b"\xff\xfe\xb3\x00", "log.csv' cannot be read"),
        ("log.npz", b"PK\x03\x04", "log.npz' cannot be read"),
        ("log.parquet", b"PAR1", "log.parquet' cannot be read"),
        ("log.csv", b"time,q_0,u_0\n", "the log has no rows"),
        ("log.csv", f"time,q_0,q_1,u\n{rows}".encode(), "the column 'q_1' of the log .* holds words"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OffroadError, match=message):
            read_log(tmp_path / name)
    np.savez(tmp_path / "log.npz", q=np.array([{}] * 60), u=np.zeros(60), time=np.arange(60.0))
    with pytest.raises(OffroadError, match=r"log.npz' cannot be read"):  # no pickle is ever loaded
        read_log(tmp_path / "log.npz")


def pendulum():
    """A robot and its simulator, which is light by a third, without limits of joints."""
    return arm(load=0.3), logged(
        arm(friction=0.05, load=0.5), rows=1000, delay=1, actuator=lambda u: 2 * np.tanh(u / 2)
    )


def hamr():
    volts = drive.noise(np.random.default_rng(0), 400, ramp=50)
    record = HamrFull.log(volts)
    return HamrSimple(constants="summed"), make_log(record["q"], (volts - REST) / REST, record["qd"], dt=0.25)


@pytest.mark.parametrize("pair", [pendulum, hamr])
def test_logs_in_other_units_are_refused(pair):
    simple, log = pair()
    prepare(simple, log, config=QUICK)  # as it is, it is no cause for complaint
    degrees = np.degrees(log.q), np.degrees(log.qd)
    no_velocities = make_log(log.q, log.u, dt=1000 * log.dt)
    limited = r"positions of joint '\w+' reach \d+\.?\d* times the limit" if pair is hamr else None
    for bad, message in (
        (no_velocities, "1,000 timesteps of the simulator; .* is time in another unit"),
        (changed(log, dt=1000 * log.dt, qd=log.qd / 1000), "is time in another unit"),
        (changed(log, dt=log.dt / 1000, qd=log.qd * 1000), "check that both are in one unit"),
        (changed(log, q=degrees[0], qd=degrees[1]), limited or r"needs controls \d{2,}\.?\S* times the inputs"),
        (changed(log, u=100 * log.u), r"needs controls 0\.0[012]\d* times the inputs"),
        (changed(log, u=log.u / 100), r"needs controls \d{2,}\.?\d* times the inputs"),
    ):
        with pytest.raises(OffroadError, match=message):
            prepare(simple, bad, config=QUICK)
    shuffled = changed(log, u=100 * log.u[:, ::-1])
    with pytest.raises(OffroadError, match="times the inputs"):  # in whatever order inputs come
        prepare(simple, shuffled, config=QUICK)
    prepare(simple, changed(log, u=100 * log.u), config=QUICK, ignore=("units",))
