"""What a simple simulator must offer: steps of a batch, and the inputs or forces that would have made a given step.

Shapes: N rows, n joints, c controls of the simulator.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from mujoco import rollout
from numpy import ndarray

from offroad.errors import OffroadError

MOST_STEPS = 500
"""Physics steps in a row of the log; a thousand are taken for milliseconds where seconds were meant."""
HELD = 1e9
"""The inertia of what is held, in multiples of the robot's largest."""
SPEC = mujoco.mjtState.mjSTATE_CTRL.value | mujoco.mjtState.mjSTATE_QFRC_APPLIED.value
PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS.value

State = tuple[Float[ndarray, "N n"], Float[ndarray, "N n"]]


class Simulator(abc.ABC):
    """A simple simulator in steps of `dt`, with `joints` and `controls` named."""

    dt: float
    joints: tuple[str, ...]
    controls: tuple[str, ...]

    @abc.abstractmethod
    def with_dt(self, dt: float) -> "Simulator":
        """The same in steps of `dt`; raises `OffroadError` where it cannot."""

    @abc.abstractmethod
    def step(
        self, q: Float[ndarray, "N n"], qd: Float[ndarray, "N n"], u: Float[ndarray, "N c"], f: Float[ndarray, "N n"]
    ) -> State:
        """The joints one step later, under controls `u` and additional generalised forces `f`. Rows do not meet."""

    def inverse(self, q: ndarray, qd: ndarray, q_next: ndarray, qd_next: ndarray, start: ndarray) -> tuple[Any, Any]:
        """Controls `[N, c]` that bring the joints nearest to the velocities of the next row, and forces `[N, n]` that,
        with the controls `start` `[N, c]`, bring them exactly there.

        Here by Gauss-Newton steps on finite differences; simulators that know better override it.
        """
        scale = np.maximum(qd.std(0), 1e-9)
        zero = np.zeros_like(q)

        def solve(value: ndarray, step: Callable[[ndarray], State], size: ndarray) -> ndarray:
            for _ in range(3):
                here = step(value)[1]
                slope = np.stack([(step(value + h)[1] - here) / h.sum() for h in np.diag(size)], -1)  # [N, n, inputs]
                fit = np.linalg.pinv(slope / scale[:, None] * size) @ ((qd_next - here) / scale)[..., None]
                value = value + size * fit[..., 0]
            return value

        units = np.maximum(np.abs(start).max(0), 1e-6) * 1e-2
        controls = solve(start, lambda u: self.step(q, qd, u, zero), units)
        forces = solve(zero, lambda f: self.step(q, qd, start, f), np.full(q.shape[1], 1e-3))
        return controls, forces

    def touches(self, q: Float[ndarray, "N n"]) -> bool:
        """Whether anything is in contact in these positions; simulators that cannot tell say yes."""
        return True

    def limits(self) -> Float[ndarray, "n"]:
        """How far from zero joints can be, infinity where nothing is known to stop them."""
        return np.full(len(self.joints), np.inf)

    def linearise(
        self, q: Float[ndarray, "N n"], qd: Float[ndarray, "N n"], u: Float[ndarray, "N c"], f: Float[ndarray, "N n"]
    ) -> tuple[Float[ndarray, "N s"], Float[ndarray, "N s s"], Float[ndarray, "N s c"], Float[ndarray, "N s n"]]:
        """The next state (s = 2 n numbers: positions, then velocities) and its derivatives by state, controls and
        forces, by forward differences."""
        sizes = [1e-6 * np.maximum(np.abs(x).max(0, initial=0.0), 1e-3) for x in (q, qd, u, f)]
        sizes[3] = np.full(q.shape[1], max(1e-6 * float(np.abs(f).max(initial=0.0)), 1e-9))
        parts, here = [q, qd, u, f], np.concatenate(self.step(q, qd, u, f), -1)
        slopes: list[list[ndarray]] = [[], [], [], []]
        for part, size in enumerate(sizes):
            for column, h in enumerate(size):
                moved = list(parts)
                moved[part] = parts[part].copy()
                moved[part][:, column] += h
                slopes[part].append((np.concatenate(self.step(*moved), -1) - here) / h)
        by_state = np.stack(slopes[0] + slopes[1], -1)
        return here, by_state, np.stack(slopes[2], -1), np.stack(slopes[3], -1)


class FunctionSimulator(Simulator):
    """Any function `step(q, qd, u) -> (q, qd)` of arrays with a leading axis of independent rows.

    Forces are accelerations that are added to what it computes, as it has no other entrance for them.
    """

    def __init__(self, step: Callable[[ndarray, ndarray, ndarray], State], joints: int, controls: int, dt: float | int):
        self._step = step
        self.dt = float(dt)
        self.joints = tuple(f"q_{i}" for i in range(joints))
        self.controls = tuple(f"u_{i}" for i in range(controls))

    def with_dt(self, dt: float) -> "FunctionSimulator":
        if abs(dt - self.dt) > 1e-3 * self.dt:
            raise OffroadError(
                f"the simulator steps {self.dt:g} at a time, the log {dt:g}; give a simulator with the log's interval"
            )
        return self

    def step(self, q: ndarray, qd: ndarray, u: ndarray, f: ndarray) -> State:
        q_next, qd_next = self._step(q, qd, u)
        return q_next + 0.5 * self.dt**2 * f, qd_next + self.dt * f


class MujocoSimulator(Simulator):
    """A MuJoCo model, of which the named hinges and sliders are logged (by default all); every other joint is held.

    The base of a legged robot is held that way: log the legs of a robot that hangs in a stand, then use what was learnt
    in a robot that walks. Controls are not clamped to their ranges, which belong to the real robot's inputs.
    """

    def __init__(self, model: mujoco.MjModel, joints: tuple[str, ...] | None = None, *, substeps: int = 1):
        if model.na:
            raise OffroadError(
                f"the model has {model.na} actuator activations, whose inverse is not known; use actuators without "
                "dyntype"
            )
        self.source = model
        self.model = copy.copy(model)
        self.substeps = substeps
        self.dt = substeps * float(model.opt.timestep)
        scalar = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
        names = [model.joint(i).name or f"joint_{i}" for i in range(model.njnt)]
        usable = {name: i for i, name in enumerate(names) if model.jnt_type[i] in scalar}
        self.joints = tuple(usable) if joints is None else tuple(joints)
        for place, name in enumerate(self.joints):
            if name not in usable:
                raise OffroadError(f"the model has no hinge or slider {name!r}; it has {', '.join(usable)}")
            if name in self.joints[:place]:
                raise OffroadError(f"the joint {name!r} is named twice; name the joint of each column of the log once")
        index = [usable[name] for name in self.joints]
        self.positions = np.array([model.jnt_qposadr[i] for i in index], int)
        self.dofs = np.array([model.jnt_dofadr[i] for i in index], int)
        self.controls = tuple(model.actuator(i).name or f"control_{i}" for i in range(model.nu))
        held = np.setdiff1d(np.arange(model.nv), self.dofs)
        self.model.dof_armature[held] = HELD * max(1.0, float(model.dof_M0.max()))
        self.model.dof_frictionloss[held] = 0.0
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL.value
        self._inverse = copy.copy(self.model)
        self._inverse.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_INVDISCRETE.value
        self._inverse.actuator_forcelimited[:] = 0
        self._data = mujoco.MjData(self.model)
        self._rest = np.zeros(mujoco.mj_stateSize(model, PHYSICS))
        mujoco.mj_getState(self.model, self._data, self._rest, PHYSICS)
        # Of `step`'s rows: time first, then positions, then velocities.
        self._q, self._qd = 1 + self.positions, 1 + model.nq + self.dofs

    def with_dt(self, dt: float) -> "MujocoSimulator":
        """As many physics steps as fit; raises `OffroadError` unless their number is whole."""
        timestep = float(self.model.opt.timestep)
        steps = round(dt / timestep)
        if steps < 1 or abs(steps * timestep - dt) > 1e-2 * dt:
            raise OffroadError(
                f"the rows of the log are {dt:.6g} apart, no multiple of the simulator's timestep of {timestep:.6g}; "
                "set the model's timestep to a fraction of the log's interval, and check that both are in one unit"
            )
        if steps > MOST_STEPS:
            raise OffroadError(
                f"the rows of the log are {dt:.6g} apart, {steps:,} timesteps of the simulator; expected at most "
                f"{MOST_STEPS}: is time in another unit (1,000: ms for s)?"
            )
        return MujocoSimulator(self.source, self.joints, substeps=steps)

    def step(self, q: ndarray, qd: ndarray, u: ndarray, f: ndarray) -> State:
        rows = len(q)
        initial = np.tile(self._rest, (rows, 1))
        initial[:, self._q], initial[:, self._qd] = q, qd
        forces = np.zeros((rows, self.model.nv))
        forces[:, self.dofs] = f
        control = np.concatenate([u, forces], -1)[:, None]
        last = advance(
            self.model, self._data, initial, np.broadcast_to(control, (rows, self.substeps, control.shape[-1]))
        )
        return last[:, self._q], last[:, self._qd]

    def inverse(self, q: ndarray, qd: ndarray, q_next: ndarray, qd_next: ndarray, start: ndarray) -> tuple[Any, Any]:
        """In closed form by MuJoCo's discrete-time inverse dynamics, where a log's interval is one physics step of
        another integrator than RK4, which has none; else by Gauss-Newton steps."""
        if self.substeps > 1 or self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            return super().inverse(q, qd, q_next, qd_next, start)
        model, data = self._inverse, self._data
        mujoco.mj_resetData(model, data)
        rest, nu = data.qpos.copy(), model.nu
        controls, forces = np.zeros((len(q), nu)), np.zeros_like(q)
        slope = np.zeros((model.nv, nu))
        for row in range(len(q)):
            data.qpos[:], data.qpos[self.positions] = rest, q[row]
            data.qvel[self.dofs] = qd[row]
            data.qacc[self.dofs] = (qd_next[row] - qd[row]) / self.dt
            data.ctrl[:] = start[row]
            mujoco.mj_inverse(model, data)
            needed = data.qfrc_inverse[self.dofs].copy()
            mujoco.mj_fwdActuation(model, data)
            forces[row] = needed - data.qfrc_actuator[self.dofs]
            data.ctrl[:] = 0.0
            mujoco.mj_fwdActuation(model, data)
            offset = data.qfrc_actuator.copy()
            for i in range(nu):
                data.ctrl[:] = 0.0
                data.ctrl[i] = 1.0
                mujoco.mj_fwdActuation(model, data)
                slope[:, i] = data.qfrc_actuator - offset
            controls[row] = np.linalg.lstsq(slope[self.dofs], needed - offset[self.dofs], rcond=None)[0]
        return controls, forces

    def limits(self) -> Float[ndarray, "n"]:
        joints = self.model.dof_jntid[self.dofs]
        return np.where(self.model.jnt_limited[joints] > 0, np.abs(self.model.jnt_range[joints]).max(1), np.inf)

    def touches(self, q: ndarray) -> bool:
        """Whether in more than one of a hundred positions something is in contact."""
        data, found = self._data, 0
        mujoco.mj_resetData(self.model, data)
        sample = q[:: max(len(q) // 200, 1)]
        for row in sample:
            data.qpos[self.positions] = row
            mujoco.mj_fwdPosition(self.model, data)
            found += data.ncon > 0
        return found > 0.01 * len(sample)


def advance(
    models: mujoco.MjModel | Sequence[mujoco.MjModel],
    data: mujoco.MjData,
    state: Float[ndarray, "N S"],
    control: Float[ndarray, "N P told"],
) -> Float[ndarray, "N S"]:
    """Full physics states after P physics steps, told controls and forces (`SPEC`) in each of them."""
    return np.asarray(rollout.rollout(models, data, state, control, control_spec=SPEC)[0])[:, -1]


def simulator(simple: Any, joints: tuple[str, ...] | None = None) -> Simulator:
    """A `Simulator` from one, from a MuJoCo model, or from an environment that has one (`model`, `models`, or `envs`
    with a `model`). An environment whose actions are not the controls of its model has a method `driven`, which gives a
    model where they are, and `joints`."""
    if isinstance(simple, Simulator):
        return simple
    if isinstance(simple, mujoco.MjModel):
        return MujocoSimulator(simple, joints)
    inner = getattr(simple, "unwrapped", simple)
    if envs := getattr(inner, "envs", None):
        inner = envs[0].unwrapped
    if hasattr(inner, "driven"):
        return MujocoSimulator(inner.driven(), joints or inner.joints)
    model = getattr(inner, "model", None) or next(iter(getattr(inner, "models", ())), None)
    if isinstance(model, mujoco.MjModel):
        return MujocoSimulator(model, joints)
    raise OffroadError(
        f"no simulator can be made of {type(inner).__name__}; expected a MuJoCo model, an environment that has one, "
        "or a FunctionSimulator"
    )
