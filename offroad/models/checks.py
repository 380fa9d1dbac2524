"""What can be wrong with a log, told in one sentence each; and the delay between an input and its effect.

Shapes: T rows, n joints, m inputs, c controls of the simulator.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.errors import OffroadError, unknown
from offroad.models.logs import Log, derivative
from offroad.models.simulators import Simulator

CHECKS = ("constant", "units", "signal", "actuation")
"""The names under which checks can be left out."""
MAGNITUDE = 30.0
"""How many times larger needed controls may be than inputs, or than ranges, before they are taken for other units."""
GAUGE = 10.0
"""The same, either way, of what in the needed controls comes from the inputs."""
BEYOND = 4.0
"""How many times the limit of a joint its positions may reach before they are taken for another unit."""


def check_sizes(log: Log, simulator: Simulator) -> None:
    if log.q.shape[1] != len(simulator.joints):
        raise OffroadError(
            f"the log has {log.q.shape[1]} joints, the simulator {len(simulator.joints)} "
            f"({', '.join(simulator.joints)}); "
            "name those that the log holds, in its order: joints=(...)"
        )
    if log.qd.shape != log.q.shape:
        raise OffroadError(f"the log has positions {log.q.shape} but velocities {log.qd.shape}; expected as many")


def check_ignored(names: Collection[str]) -> None:
    for name in names:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)


def check_constant(log: Log) -> None:
    """Raises `OffroadError` if an input or a position never changes."""
    spread = log.u.std(0)
    still = np.flatnonzero(spread <= 1e-9 * np.maximum(np.abs(log.u).max(0), 1e-12))
    if len(still) == log.u.shape[1]:
        raise OffroadError(
            "the actions of the log are constant, so nothing can be learnt about them; excite the robot, for example "
            "with noise that is filtered below its bandwidth"
        )
    if len(still):
        raise OffroadError(
            f"input {still[0]} of the log is constant at {log.u[0, still[0]] + 0.0:g}, so nothing can be learnt "
            "about it; excite "
            "it, or leave its column out"
        )
    if len(fixed := np.flatnonzero(np.ptp(log.q, axis=0) == 0)):
        raise OffroadError(
            f"the position of joint {fixed[0]} is {log.q[0, fixed[0]] + 0.0:g} in every row of the log; is its sensor "
            "connected? If the joint is locked, leave its column out, and its name out of joints=(...)"
        )


def check_velocities(log: Log) -> None:
    """Raises `OffroadError` if the velocities are not the derivative of the positions."""
    rows = np.concatenate([np.flatnonzero(log.episode == e)[2:-2] for e in np.unique(log.episode)])
    slope = np.concatenate([derivative(log.q[log.episode == e], log.dt)[2:-2] for e in np.unique(log.episode)])
    size = (slope**2).sum(0)
    ratio = np.where(size > 0, (log.qd[rows] * slope).sum(0) / np.maximum(size, 1e-300), 1.0)  # 1: a joint at rest
    joint = int(np.argmax(np.abs(np.log(np.maximum(ratio, 1e-12)))))
    if not 0.5 < ratio[joint] < 2:
        raise OffroadError(
            f"the velocity of joint {joint} is {ratio[joint]:.4g} times the derivative of its position, expected 1; "
            "bring "
            "positions, velocities and time to one unit (57.3: degrees for radians, 1000: ms for s)"
        )


def check_ranges(log: Log, simulator: Simulator) -> None:
    """Raises `OffroadError` if joints go far beyond the limits that the simulator has for them."""
    limits = simulator.limits()
    reached = np.quantile(np.abs(log.q), 0.99, axis=0) / limits
    joint = int(np.argmax(reached))
    if reached[joint] > BEYOND:
        raise OffroadError(
            f"the positions of joint {simulator.joints[joint]!r} reach {reached[joint]:.3g} times the limit of the "
            f"simulator, {limits[joint]:.3g}; bring the log to the simulator's units (rad or m: degrees are 57.3 times "
            "larger), or pass ignore=('units',)"
        )


def check_size(log: Log, needed: Float[ndarray, "rows c"], simulator: Simulator) -> None:
    """Raises `OffroadError` if the simulator needs controls that are far larger than the log's inputs are, or than the
    ranges of its actuators where these are more or fewer than inputs."""
    model = getattr(simulator, "model", None)
    if log.u.shape[1] == needed.shape[1]:
        have, whose = np.sqrt(np.mean(log.u**2, 0)), "the inputs of the log"
    elif model is not None and np.all(model.actuator_ctrllimited):
        have, whose = np.abs(model.actuator_ctrlrange).max(1), "the range of its actuators"
    else:
        return
    ratio = float(np.median(np.sqrt(np.mean(needed**2, 0)) / np.maximum(have, 1e-300)))
    if ratio > MAGNITUDE:
        raise _other_units(ratio, whose)


def check_gauge(log: Log, rows: ndarray, needed: Float[ndarray, "rows c"]) -> None:
    """Raises `OffroadError` if the simulator needs controls of another order of magnitude than the log's inputs.

    `log` has its delay taken out. What counts is what the needed controls change with the inputs, the state being the
    same. Logs with another number of inputs than the simulator has controls are not judged.
    """
    inputs = log.u.shape[1]
    if inputs != needed.shape[1]:
        return
    moved = log.u[rows] - log.u[rows].mean(0)
    x = np.column_stack([moved, log.q[rows], log.qd[rows], np.ones(len(rows))])
    scale = np.maximum(np.abs(x).max(0), 1e-300)
    slope = (np.linalg.lstsq(x / scale, needed, rcond=1e-9)[0] / scale[:, None])[:inputs]
    # By size, as the inputs may stand in another order than the controls.
    ratio = float(np.median((moved @ slope).std(0)) / np.median(moved.std(0)))
    if not 1 / GAUGE < ratio < GAUGE:
        raise _other_units(ratio, "the inputs of the log")


def _other_units(ratio: float, whose: str) -> OffroadError:
    return OffroadError(
        f"to move as in the log the simulator needs controls {ratio:.3g} times {whose}, expected about 1; is the "
        "log in the simulator's units (57: positions in degrees for rad, 0.01: inputs in percent)? If the inputs are "
        "meant to differ (volts for torques), pass ignore=('units',)"
    )


def check_signal(log: Log, explained: Float[ndarray, "lags"], without: float | int) -> None:
    """Raises `OffroadError` if inputs explain nothing of the motion at any lag."""
    if explained.max() - without < 0.01:
        raise OffroadError(
            f"the log carries no signal: its inputs explain {100 * max(explained.max() - without, 0.0):.2g} % of the "
            "motion at "
            "any delay; are its actions shuffled, of another recording, or wholly decided by the state (then add "
            "noise)?"
        )


def search_delay(
    log: Log, targets: Float[ndarray, "T t"], rows: ndarray, most: int
) -> tuple[int, Float[ndarray, "lags"], float]:
    """The rows between an input and its effect; the share of the targets' variance that state and input explain
    linearly on rows held out, for lags 0 to `most`; and what the state alone explains.

    `targets` are what the simulator needs from row t to the next, given at `rows`.
    """
    # The same rows for every lag: those whose whole past is in their episode.
    usable = np.isin(rows, log.starts(most) + most)
    rows, targets = rows[usable], targets[usable]
    state = np.column_stack([log.q[rows], log.qd[rows]])
    explained = np.array([_explained(np.column_stack([state, log.u[rows - lag]]), targets) for lag in range(most + 1)])
    left = 1 - explained
    # A longer delay must leave clearly less unexplained than a shorter one.
    lag = int(np.flatnonzero(left <= 1.02 * left.min() + 1e-6)[0])
    return lag, explained, _explained(state, targets)


def unactuated(
    log: Log, rows: ndarray, left: Float[ndarray, "rows n"], change: Float[ndarray, "rows n"]
) -> Float[ndarray, "n"]:
    """For each joint the share of its acceleration that no control produces but that can be foretold.

    `left` is what the best controls leave over of the change of velocity in one step, `change` that change. Noise is
    left over too, but no function of state and input.
    """
    x = np.column_stack([log.q[rows], log.qd[rows], log.u[rows]])
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    x = np.column_stack([x, x**2, np.tanh(3 * x)])
    foretold = np.array([max(_explained(x, left[:, [j]]), 0.0) for j in range(left.shape[1])])
    return foretold * left.var(0) / np.maximum(change.var(0), 1e-300)


def _explained(x: Float[ndarray, "rows f"], y: Float[ndarray, "rows t"]) -> float:
    """The share of the variance of `y` that a linear map of `x`, fitted on half of the rows, explains on the rest."""
    x = np.column_stack([x, np.ones(len(x))])
    half = len(x) // 2
    scale = np.maximum(np.abs(x).max(0), 1e-300)
    fit = np.linalg.lstsq(x[:half] / scale, y[:half], rcond=1e-9)[0]
    wrong, spread = ((x[half:] / scale) @ fit - y[half:]).var(0), y[half:].var(0)
    return float(1 - np.mean(wrong / np.maximum(spread, 1e-300)))
