"""HAMR's full and simple models: cost of a physics step, and error of its size.

    python benchmarks/hamr.py

One process, one thread, 16 worlds; CPU time, which other work on the machine disturbs less; each cost is the least of
several rounds. Errors are those of hip angles from rest over 64 ms, under noise in the air and under random gaits on
the ground, against the same model at 0.005 ms; for the simple model also against the full one. The published trot is
replayed from the test data. Writes `benchmarks/results/hamr.json`.
"""

import argparse
import json
import platform
import time
from importlib import metadata
from pathlib import Path

import mujoco
import numpy as np

from offroad.envs.hamr import HamrFull, HamrSimple, drive, models
from offroad.envs.physics import PHYSICS, RolloutPhysics

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "hamr.json"
TROT = HERE.parent / "tests" / "envs" / "data" / "hamr_trot60hz.npz"
WORLDS, INTERVAL, HORIZON = 16, 0.5, 64.0  # ms
REFERENCE = 0.005  # ms
STEPS = {"full": (0.25, 0.125, 0.05, 0.025, 0.02, 0.01), "simple": (0.5, 0.25, 0.125, 0.1, 0.05)}


def voltages(in_air: bool) -> np.ndarray:
    """`[WORLDS, T, 8]`: noise that is there from the start; or gaits of 10 to 60 Hz and 50 to 100 V."""
    random = np.random.default_rng(0)
    if in_air:
        return np.stack([drive.noise(random, HORIZON, ramp=10, interval=INTERVAL) for _ in range(WORLDS)])
    gaits = []
    for _ in range(WORLDS):
        frequency, amplitude = random.uniform(10, 60), random.uniform(50, 100)
        phases = random.uniform(0, 2 * np.pi, 8)
        gaits.append(drive.sine(phases, HORIZON, frequency=frequency, amplitude=amplitude, ramp=10, interval=INTERVAL))
    return np.stack(gaits)


def build(kind: str, dt: float, in_air: bool) -> mujoco.MjModel:
    return models.full(dt, in_air=in_air) if kind == "full" else models.simple(dt, in_air=in_air)


def controls(kind: str, volts: np.ndarray, constants: str = "projected") -> np.ndarray:
    return volts if kind == "full" else models.hip_torques(volts, constants)


def step_cost(kind: str, dt: float, in_air: bool, volts: np.ndarray, rounds: int) -> float:
    """Microseconds of CPU for one physics step of one world."""
    model, command = build(kind, dt, in_air), controls(kind, volts)
    substeps, rows = round(INTERVAL / dt), min(volts.shape[1], 48)
    physics = RolloutPhysics([model] * WORLDS, substeps, 1)
    costs = []
    for _ in range(rounds):
        state = np.zeros((WORLDS, mujoco.mj_stateSize(model, PHYSICS)))
        state[:, 0], state[:, 1 : 1 + model.nq] = dt, model.qpos0
        start = time.process_time()
        for row in range(rows):
            physics.step(state, command[:, row])
        costs.append((time.process_time() - start) / (rows * substeps * WORLDS))
    physics.close()
    return 1e6 * min(costs)


def decision_cost(kind: type[HamrFull | HamrSimple], control: str, num_envs: int, rounds: int) -> float:
    """Microseconds of CPU for one decision (4 ms) of one environment under random actions, resets included."""
    env = kind(num_envs, control=control, num_threads=1)
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (10, num_envs, 8))
    costs = []
    for _ in range(rounds):
        start = time.process_time()
        for action in actions:
            env.step(action)
        costs.append((time.process_time() - start) / (len(actions) * num_envs))
    env.close()
    return 1e6 * min(costs)


def trot() -> dict[str, float]:
    """The full model at 0.05 ms beside the published simulation of the same voltages."""
    published = np.load(TROT, allow_pickle=False)
    volts, actuators = (published[name].transpose(0, 2, 1).reshape(-1, 8) for name in ("inputs_voltage", "state_qact"))
    model = models.full()
    log = drive.record(model, volts)
    error = log["qpos"][:, model.jnt_qposadr[model.actuator_trnid[:, 0]]] - actuators
    result = {f"actuator_rms_mm_{ms}ms": float(np.sqrt(np.mean(error[: 4 * ms + 1] ** 2))) for ms in (20, 30, 50)}
    data, opening = mujoco.MjData(model), 0.0
    for position in log["qpos"]:
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        gap = data.site_xpos[model.eq_obj1id] - data.site_xpos[model.eq_obj2id]
        opening = max(opening, float(np.linalg.norm(gap, axis=-1).max()))
    return result | {
        "loop_opening_mm": opening,
        "forward_mm": float(log["qpos"][-1, 0]),
        "published_forward_mm": float(published["state_qfloat"][0, -1]),
        "published_actuator_std_mm": float(actuators[:201].std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for in_air in (True, False):
        volts, truth = voltages(in_air), {}
        for kind in STEPS:
            truth[kind] = drive.record(build(kind, REFERENCE, in_air), controls(kind, volts), interval=INTERVAL)["q"]
        for kind, steps in STEPS.items():
            for dt in steps:
                q = drive.record(build(kind, dt, in_air), controls(kind, volts), interval=INTERVAL)["q"]
                cost = step_cost(kind, dt, in_air, volts, arguments.rounds)
                row = {
                    "model": kind,
                    "where": "air" if in_air else "ground",
                    "dt_ms": dt,
                    "us_per_step": round(cost, 2),
                    "slower_than_real_time": round(1e-3 * cost / dt, 4),
                    "mse_step_rad2": float(np.mean(np.square(q - truth[kind]))),
                    "mse_full_rad2": float(np.mean(np.square(q - truth["full"]))),
                    "variance_rad2": float(truth["full"].var()),
                }
                rows.append(row)
                print(row, flush=True)
    constants = []
    for in_air in (True, False):
        volts = voltages(in_air)
        full = HamrFull.log(volts, interval=INTERVAL, dt=0.05, in_air=in_air)["q"]
        for name in models.CONSTANTS:
            torques = models.hip_torques(volts, name)
            simple = HamrSimple.log(torques, interval=INTERVAL, in_air=in_air, constants=name)["q"]
            at = {
                f"mse_{ms}ms": float(np.mean(np.square(simple - full)[:, round(ms / INTERVAL)])) for ms in (4, 16, 63)
            }
            constants.append({"constants": name, "where": "air" if in_air else "ground"} | at)
            print(constants[-1], flush=True)
    decisions = [
        {"model": kind.__name__, "control": control, "envs": count}
        | {"us_per_decision": round(decision_cost(kind, control, count, arguments.rounds), 1)}
        for kind in (HamrFull, HamrSimple)
        for control in ("angles", "voltage")
        for count in (1, 32)
    ]
    for row in decisions:
        print(row)
    report = {
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "mujoco": metadata.version("mujoco"),
        "worlds": WORLDS,
        "reference_dt_ms": REFERENCE,
        "steps": rows,
        "simple_against_full": constants,
        "decisions": decisions,
        "published_trot": trot(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(report["published_trot"])


if __name__ == "__main__":
    main()
