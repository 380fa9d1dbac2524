"""HAMR as the study sees it: logs of the full model, the simple one told what to do, and both on the ground.

Shapes: N worlds, S numbers of MuJoCo's state of the simple model (time, qpos 7 + 8, qvel 6 + 8), T rows. Units are
those of `offroad.envs.hamr.geometry`; inputs are drive voltages as actions in [-1, 1].
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable

import equinox as eqx
import mujoco
import numpy as np
from jaxtyping import Float
from mujoco import rollout
from numpy import ndarray

from offroad.envs.hamr import HamrFull, HamrSimple, drive
from offroad.envs.hamr import models as hamr
from offroad.envs.hamr.geometry import FRONT, LEFT, REST
from offroad.models import Limb, Log, MujocoSimulator, ResidualModel, make_log, simulator
from offroad.models.simulators import PHYSICS

INTERVAL = 0.25  # ms, of the log and of the simple model's steps
POSITION, QUATERNION, LEGS_Q = slice(1, 4), slice(4, 8), slice(8, 16)
BASE_V, LEGS_V = slice(16, 22), slice(22, 30)
"""Where the state of the simple model on the ground has what."""

Step = Callable[[Float[ndarray, "N S"], Float[ndarray, "N 8"]], Float[ndarray, "N S"]]
"""One row of 0.25 ms on the ground: `(state, input) -> state`."""


def hamr_simulator(constants: str = "projected") -> MujocoSimulator:
    """The simple model in air as a simulator of the eight hip angles."""
    found = simulator(HamrSimple(constants=constants))
    assert isinstance(found, MujocoSimulator)
    return found


def hamr_limbs() -> tuple[Limb, ...]:
    """The four legs, mirrored onto the front left one: rotations about z and x, and voltages that make them."""
    limbs = []
    for leg in range(4):
        own = (2 * leg, 2 * leg + 1)
        signs = (float(FRONT[leg] * LEFT[leg]), float(LEFT[leg]))
        volts = tuple(float(s * np.sign(-hamr.hip_constants().torque[i])) for s, i in zip(signs, own))
        limbs.append(Limb(own, own, joint_signs=signs, input_signs=volts, control_signs=volts))
    return tuple(limbs)


def log_of(record: dict[str, ndarray]) -> Log:
    """A record of the full model as a log."""
    return make_log(record["q"], inputs(record), record["qd"], dt=INTERVAL)


def inputs(record: dict[str, ndarray]) -> Float[ndarray, "*worlds T 8"]:
    return (record["u"] - REST) / REST


def air_log(seed: int, seconds: float | int) -> Log:
    """Noise in the air, as the paper's."""
    return log_of(HamrFull.log(drive.noise(np.random.default_rng(seed), 1e3 * seconds), interval=INTERVAL))


# --- on the ground ---------------------------------------------------------------------------------------------------


def states_of(record: dict[str, ndarray], model: mujoco.MjModel) -> Float[ndarray, "*worlds T S"]:
    """The full model's path as states of the simple one, whose hips the full model's joints are mapped to."""
    hips = hamr.hip_matrix(model)
    clock = np.full((*record["q"].shape[:-1], 1), INTERVAL)
    base = record["qpos"][..., :7], record["qvel"][..., :6]
    return np.concatenate([clock, base[0], record["q"] @ hips, base[1], record["qd"] @ hips], -1)


def rest(worlds: int, model: mujoco.MjModel) -> Float[ndarray, "N S"]:
    """The simple model as it starts."""
    state = np.zeros((worlds, mujoco.mj_stateSize(model, PHYSICS)))
    state[:, 0], state[:, 1 : 1 + model.nq] = INTERVAL, model.qpos0
    return state


def stepped(model: mujoco.MjModel, correction: ResidualModel | None = None) -> Step:
    """The simple model on the ground, told by the correction what to do (None: the inputs themselves)."""
    data, hips, substeps = mujoco.MjData(model), hamr.hip_matrix(model), round(INTERVAL / model.opt.timestep)
    told = None if correction is None else eqx.filter_jit(correction)

    def step(state: ndarray, u: ndarray) -> ndarray:
        if told is not None:
            u = np.asarray(told(state[:, LEGS_Q] @ hips.T, state[:, LEGS_V] @ hips.T, u)[0], float)
        held = np.repeat(u[:, None], substeps, axis=1)
        return np.asarray(rollout.rollout(model, data, state, held)[0])[:, -1]

    return step


def walked(step: Step, state: Float[ndarray, "N S"], u: Float[ndarray, "N T 8"]) -> Float[ndarray, "N T S"]:
    """The states after each row."""
    states = []
    for row in range(u.shape[1]):
        state = step(state, u[:, row])
        states.append(state)
    return np.stack(states, 1)


def ground_errors(step: Step, record: dict[str, ndarray], horizon: int = 256) -> Float[ndarray, "H"]:
    """Squared errors of hip angles after each row, set on the full model's path every 4 ms.

    An error counts as at most 1 rad^2, which is also what no number counts as.
    """
    model = hamr.simple()
    hips = hamr.hip_matrix(model)
    starts = np.arange(0, len(record["q"]) - horizon, 16)
    rows = starts[:, None] + np.arange(horizon)
    states = walked(step, states_of(record, model)[starts], inputs(record)[rows])
    wrong = np.nan_to_num(states[..., LEGS_Q] @ hips.T - record["q"][rows + 1], nan=1.0)
    return np.minimum(wrong**2, 1.0).mean((0, 2))


def random_gaits(count: int, seed: int) -> Float[ndarray, "N T 8"]:
    """Drive voltages of sine gaits of 300 ms with random phases, 10 to 60 Hz, 30 to 100 V."""
    random = np.random.default_rng(seed)
    return np.stack(
        [
            drive.sine(
                random.uniform(0, 2 * np.pi, 8),
                300,
                frequency=float(random.uniform(10, 60)),
                amplitude=float(random.uniform(30, 100)),
            )
            for _ in range(count)
        ]
    )


def displacement(path: Float[ndarray, "N T S"]) -> dict[str, Float[ndarray, "N"]]:
    """What a gait is worth: mm along x and along y, and degrees of yaw, from the first row to the last."""
    w, x, y, z = np.moveaxis(path[:, :, QUATERNION], -1, 0)
    yaw = np.unwrap(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)), axis=1)
    moved = path[:, -1, POSITION] - path[:, 0, POSITION]
    return {"x": moved[:, 0], "y": moved[:, 1], "yaw": np.degrees(yaw[:, -1] - yaw[:, 0])}


def physically_like(fitted: MujocoSimulator) -> mujoco.MjModel:
    """The simple model on the ground with the parameters that were identified in the air."""
    found, model = fitted.model, hamr.driven_by_voltage(hamr.simple())
    model.body_mass[:], model.body_inertia[:] = found.body_mass, found.body_inertia
    for name in ("dof_damping", "dof_armature", "dof_frictionloss"):
        getattr(model, name)[6:] = getattr(found, name)
    model.jnt_stiffness[1:] = found.jnt_stiffness
    model.actuator_gainprm[:] = found.actuator_gainprm
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
