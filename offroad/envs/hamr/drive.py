"""What drives HAMR: leg angles by PD, sine gaits, band-limited noise; and records of a model under them.

Units are those of the models (see `offroad.envs.hamr.geometry`): V, mm, ms, rad, N mm; frequencies are in Hz.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.hamr.geometry import BIAS, REST
from offroad.envs.hamr.models import hip_constants, hip_matrix
from offroad.envs.physics import PHYSICS, RolloutPhysics, cores
from offroad.errors import OffroadError, unknown

PROPORTIONAL = 2000.0  # V/rad
DERIVATIVE = 2000.0  # V ms/rad


def leg_position_controller(
    target: Float[ndarray, "*batch 8"], angle: Float[ndarray, "*batch 8"], velocity: Float[ndarray, "*batch 8"]
) -> Float[ndarray, "*batch 8"]:
    """Drive voltages that pull hip angles to their targets: PD about the rest voltage, within what amplifiers give."""
    pull = PROPORTIONAL * (target - angle) - DERIVATIVE * velocity
    return np.clip(REST - np.sign(hip_constants().torque) * pull, 0.0, BIAS)


class FeedbackPhysics:
    """`RolloutPhysics` with controls that a law finds anew in every physics step.

    The law is arithmetic on the batch of worlds: it costs tens of microseconds a physics step however many there are,
    and results do not depend on how many steps MuJoCo makes at once otherwise.

    Args:
        law: `(state [N, S], command [N, A]) -> controls [N, U]`.
        models, frame_skip, num_threads: as in `RolloutPhysics`.
    """

    def __init__(
        self,
        models: Sequence[mujoco.MjModel],
        frame_skip: int,
        num_threads: int,
        law: Callable[[ndarray, ndarray], ndarray],
    ):
        self._single = RolloutPhysics(models, 1, num_threads)
        self._substeps, self._law = frame_skip, law

    def step(self, state: Float[ndarray, "N S"], control: Float[ndarray, "N A"]) -> None:
        """Advances `state` in place."""
        for _ in range(self._substeps):
            self._single.step(state, self._law(state, control))

    def close(self) -> None:
        self._single.close()


class Gait(NamedTuple):
    """Phases of the four legs, FL, RL, FR, RR, in units of pi."""

    swing: tuple[float, float, float, float]
    lift: tuple[float, float, float, float]


GAITS = {
    "trot": Gait(swing=(1.5, 0.5, 1.5, 0.5), lift=(1.0, 1.0, 1.0, 1.0)),
    "pronk": Gait(swing=(1.5, 0.5, 0.5, 1.5), lift=(1.0, 0.0, 0.0, 1.0)),
}


def sine(
    gait: str | Float[ndarray, "8"],
    duration: float | int,
    *,
    frequency: float | int,
    amplitude: float | int = 50.0,
    ramp: float | int | None = None,
    interval: float | int = 0.25,
) -> Float[ndarray, "T 8"]:
    """Drive voltages of a gait: sines about the rest voltage that grow linearly at first.

    Args:
        gait: a name in `GAITS`, or eight phases in rad.
        duration, interval: of the whole and of one row, in ms.
        frequency: in Hz.
        amplitude: in V, at most 112.5.
        ramp: ms of growth; None takes two cycles.
    """
    if isinstance(gait, str):
        if gait not in GAITS:
            raise unknown("gait", gait, GAITS)
        phases = np.pi * np.stack(GAITS[gait], axis=1).ravel()
    else:
        phases = gait
    if not 0 <= amplitude <= REST:
        raise OffroadError(f"a gait's amplitude is {amplitude} V; expected 0 to {REST}, half the bias")
    time = np.arange(round(duration / interval)) * interval
    growth = np.minimum(time / (2e3 / frequency if ramp is None else max(ramp, interval)), 1.0)
    return REST + amplitude * growth[:, None] * np.sin(2e-3 * np.pi * frequency * time[:, None] + phases)


def noise(
    random: np.random.Generator,
    duration: float | int,
    *,
    band: float | int = 40.0,
    deviation: float | int = BIAS / 3.5,
    ramp: float | int = 500.0,
    interval: float | int = 0.25,
) -> Float[ndarray, "T 8"]:
    """Drive voltages of band-limited Gaussian noise about the rest voltage, clipped to what amplifiers give.

    Args:
        random: where the noise comes from.
        duration, interval: of the whole and of one row, in ms.
        band: highest frequency in Hz.
        deviation: standard deviation in V, before clipping.
        ramp: ms of linear growth at the start.
    """
    steps = round(duration / interval)
    spectrum = np.fft.rfft(random.standard_normal((steps, 8)), axis=0)
    kept = np.fft.rfftfreq(steps, interval * 1e-3) <= band
    if kept.sum() < 2:
        raise OffroadError(
            f"{duration} ms of noise up to {band} Hz has no frequency but zero; make it longer than {1e3 / band:.0f} ms"
        )
    spectrum[~kept] = 0.0
    wave = np.fft.irfft(spectrum, steps, axis=0) / np.sqrt(kept.mean())
    growth = np.minimum(np.arange(steps) * interval / max(ramp, interval), 1.0)
    return np.clip(REST + deviation * growth[:, None] * wave, 0.0, BIAS)


def record(
    model: mujoco.MjModel, controls: Float[ndarray, "*worlds T 8"], *, interval: float | int = 0.25
) -> dict[str, ndarray]:
    """What a model does from rest under a sequence of controls, each held for `interval` ms.

    Args:
        model: `full` (controls are drive voltages) or `simple` (hip torques in N mm).
        controls: for one world, or for N at once.
        interval: a whole multiple of the model's physics step.

    Returns:
        `time [T]` in ms, hip angles `q [*worlds, T, 8]` in rad and their rates `qd` in rad/ms, the controls `u`; row t
        is the state in which `u[t]` starts to act. Also `qpos` and `qvel`, the whole of MuJoCo's state.

    Raises `OffroadError` where the interval is no multiple of the step, or where the physics diverges.
    """
    step = model.opt.timestep
    substeps = round(interval / step)
    if substeps < 1 or abs(substeps * step - interval) > 1e-9:
        raise OffroadError(f"an interval of {interval} ms is no whole number of physics steps of {step} ms")
    batch = controls[None] if controls.ndim == 2 else controls
    worlds, steps = batch.shape[:2]
    physics = RolloutPhysics([model] * worlds, substeps, min(worlds, cores()))
    state = np.zeros((worlds, mujoco.mj_stateSize(model, PHYSICS)))
    state[:, 0], state[:, 1 : 1 + model.nq] = step, model.qpos0
    states = np.empty((worlds, steps, state.shape[1]))
    for row in range(steps):
        states[:, row] = state
        physics.step(state, batch[:, row])
    physics.close()
    if not np.isfinite(state).all() or (state[:, 0] < (steps - 0.5) * interval).any():
        raise OffroadError(f"the physics diverged with steps of {step} ms; take shorter ones, or milder controls")
    qpos, qvel = states[..., 1 : 1 + model.nq], states[..., 1 + model.nq : 1 + model.nq + model.nv]
    hips = hip_matrix(model)
    joints = hips.shape[1]
    log = {
        "q": qpos[..., -joints:] @ hips.T,
        "qd": qvel[..., -joints:] @ hips.T,
        "u": batch,
        "qpos": qpos,
        "qvel": qvel,
    }
    if controls.ndim == 2:
        log = {name: value[0] for name, value in log.items()}
    return log | {"time": np.arange(steps) * float(interval)}
