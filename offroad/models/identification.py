"""System identification: named parameters of a MuJoCo model fitted to a log by nonlinear least squares.

The alternative that a residual model is held against: it keeps the structure of the simulator and moves its numbers.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import least_squares

from offroad.errors import OffroadError, unknown
from offroad.models.logs import Log
from offroad.models.residual import Limb
from offroad.models.simulators import MujocoSimulator

KINDS = ("mass", "damping", "stiffness", "armature", "friction", "gain")


@dataclass(frozen=True)
class Parameter:
    """One number of the fit, shared by several joints, bodies or actuators (the same of every limb).

    Positive numbers of the model are multiplied by exp(theta), |theta| <= `REACH`; where the model has zero, theta in
    [0, 10] times `reference` is put there.
    """

    kind: str
    indices: tuple[int, ...]
    name: str
    reference: float = 0.0


REACH = 2.0


def parameters(
    simulator: MujocoSimulator, log: Log, limbs: Sequence[Limb], kinds: Sequence[str] = KINDS
) -> tuple[Parameter, ...]:
    """The parameters that a log may tell: those of logged joints, of the bodies that they move, and of actuators."""
    model, found = simulator.source, []
    speed = np.maximum(np.sqrt(np.mean(log.qd**2, 0)), 1e-9)
    inertia = model.dof_M0[simulator.dofs]
    torque = inertia * np.sqrt(np.mean(np.diff(log.qd, axis=0) ** 2, 0)) / log.dt
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of parameter", kind, KINDS)
        for place in range(len(limbs[0].controls if kind == "gain" else limbs[0].joints)):
            own = [(limb.controls if kind == "gain" else limb.joints)[place] for limb in limbs]
            label = (simulator.controls if kind == "gain" else simulator.joints)[own[0]]
            indices, reference = own, 0.0
            if kind == "mass":
                indices = [int(model.dof_bodyid[simulator.dofs[i]]) for i in own]
            elif kind != "gain":
                indices = [int(simulator.dofs[i]) for i in own]
                scale = {"friction": torque, "damping": torque / speed, "armature": inertia}.get(kind)
                reference = 0.1 * float(scale[own].mean()) if scale is not None else 0.0
            found.append(Parameter(kind, tuple(indices), f"{kind} of {label}", reference))
    return tuple(p for p in dict.fromkeys(found) if p.reference or (_values(model, p) > 0).all())


def _values(model: Any, parameter: Parameter) -> ndarray:
    field = {
        "mass": model.body_mass,
        "damping": model.dof_damping,
        "armature": model.dof_armature,
        "friction": model.dof_frictionloss,
        "stiffness": model.jnt_stiffness,
        "gain": np.abs(model.actuator_gainprm[:, 0]),
    }[parameter.kind]
    indices = list(parameter.indices)
    return field[model.dof_jntid[indices]] if parameter.kind == "stiffness" else field[indices]


def applied(model: mujoco.MjModel, chosen: Sequence[Parameter], theta: Float[ndarray, "p"]) -> mujoco.MjModel:
    """A copy of the model with these values of the parameters."""
    model = copy.copy(model)
    for parameter, value in zip(chosen, theta):
        zero = bool((_values(model, parameter) == 0).any())
        factor = float(np.exp(value))
        for i in parameter.indices:
            match parameter.kind:
                case "mass":
                    model.body_mass[i] *= factor
                    model.body_inertia[i] *= factor
                case "gain":
                    model.actuator_gainprm[i, 0] *= factor
                case "stiffness":
                    model.jnt_stiffness[model.dof_jntid[i]] *= factor
                case kind:
                    field = {
                        "damping": model.dof_damping,
                        "armature": model.dof_armature,
                        "friction": model.dof_frictionloss,
                    }[kind]
                    field[i] = value * parameter.reference if zero else field[i] * factor
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def identify(
    simulator: MujocoSimulator,
    log: Log,
    *,
    limbs: Sequence[Limb],
    kinds: Sequence[str] = KINDS,
    horizon: int,
    windows: int,
    seconds: float | int = math.inf,
) -> tuple[MujocoSimulator, dict[str, float]]:
    """The simulator whose parameters err least over `windows` windows of `horizon` rows, and what was changed.

    It stops when it has converged, or else, at the best so far, after `seconds` of wall time.
    Returns the factor of each parameter (its value where the model had zero). Errors are weighted by each joint's own
    spread, and large ones count linearly (soft L1), so that a jolt or a stop that was hit decides nothing.
    """
    starts = log.windows(horizon, windows)
    if not len(starts):
        raise OffroadError(f"no episode of the log has more than {horizon} rows; lower the horizon")
    chosen = parameters(simulator, log, limbs, kinds)
    rows = starts[:, None] + np.arange(horizon + 1)
    q, qd, u = log.q[rows], log.qd[rows], log.u[rows]
    weight_q, weight_qd = 1 / np.maximum(log.q.std(0), 1e-9), 1 / np.maximum(log.qd.std(0), 1e-9)

    def with_values(theta: ndarray) -> MujocoSimulator:
        return MujocoSimulator(applied(simulator.source, chosen, theta), simulator.joints, substeps=simulator.substeps)

    best: tuple[float, ndarray] = math.inf, np.zeros(len(chosen))
    began = time.monotonic()

    def errors(theta: ndarray) -> ndarray:
        if time.monotonic() - began > seconds and best[0] < math.inf:
            raise TimeoutError
        candidate, x, v = with_values(theta), q[:, 0], qd[:, 0]
        parts = []
        for t in range(horizon):
            x, v = candidate.step(x, v, u[:, t], np.zeros_like(x))
            parts += [(x - q[:, t + 1]) * weight_q, (v - qd[:, t + 1]) * weight_qd]
        return np.nan_to_num(np.clip(np.concatenate(parts).ravel(), -1e3, 1e3), nan=1e3)

    def slopes(theta: ndarray) -> ndarray:
        # Steps well above what MuJoCo's iterative solver of friction leaves unsolved.
        nonlocal best
        here = errors(theta)
        best = min(best, (float(np.sqrt(1 + (here / size) ** 2).sum()), theta.copy()), key=lambda found: found[0])
        inward = np.where(theta > high - 1e-2, -1e-3, 1e-3)
        return np.stack([(errors(theta + step) - here) / step.sum() for step in np.diag(inward)], -1)

    free = np.array([bool((_values(simulator.source, p) == 0).any()) for p in chosen])
    low, high = np.where(free, 0.0, -REACH), np.where(free, 10.0, REACH)
    start = np.where(free, 1.0, 0.0)
    size = max(float(np.median(np.abs(errors(start)))), 1e-9)
    options: dict[str, Any] = {"jac": slopes, "loss": "soft_l1", "f_scale": size}
    try:
        found = least_squares(errors, start, bounds=(low, high), **options).x
    except TimeoutError:
        found = best[1]
    values = {
        p.name: float(theta * p.reference if zero else np.exp(theta)) for p, theta, zero in zip(chosen, found, free)
    }
    return with_values(found), values
