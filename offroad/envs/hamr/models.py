"""HAMR in MuJoCo: the full model with its closed chains, and the simple one with rigid legs.

Units are mm, g and ms (see `offroad.envs.hamr.geometry`). The full model follows Doshi et al. (arXiv 1901.09065):
eight links a leg in a tree, tied into loops by `connect` constraints, leave two degrees of freedom a leg, which two
piezo actuators drive. The simple model is a chassis with four rigid legs on universal joints (lift, then swing) whose
masses, springs and dampers are the full model's, lumped at rest; eight hip torques drive it.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.hamr import geometry
from offroad.envs.hamr.geometry import LEGS
from offroad.errors import unknown

# Feet that hardly bounce, as the inelastic contacts of the published simulations: softer ones bounce and slow it down.
CONTACT = {"friction": (1.0, 0.005, 0.0001), "solref": (0.2, 2.0), "solimp": (0.95, 0.999, 0.01, 0.5, 2.0)}
LOOP_SOLIMP = (0.9999, 0.9999, 0.001, 0.5, 2.0)
PIEZO_STIFFNESS = geometry.BIAS * geometry.FREE / geometry.FREE_DEFLECTION  # N/mm, of the drive
FOOT_FROM_HIP = (0.0, 7.58, -13.0)


def full(dt: float | int = 0.05, *, in_air: bool = False) -> mujoco.MjModel:
    """The full model: 32 joints in the legs, of which the loops leave 8 degrees of freedom; 8 drive voltages.

    Args:
        dt: physics step in ms.
        in_air: fixes the chassis and takes gravity away, for recording what legs do that touch nothing.
    """
    spec, chassis = _scene(dt, in_air)
    _inertial(chassis, geometry.CHASSIS_MASS, geometry.CHASSIS_COM, geometry.CHASSIS_INERTIA)
    for leg, side in enumerate(LEGS):
        _linkage(spec, chassis, leg, side, dt)
    push = geometry.ORIENTATION * geometry.BLOCKED
    for index, name in enumerate(f"{side}_{joint}" for side in LEGS for joint in ("qsact", "qlact")):
        # F = push (225 - 2 V) - 225 FREE q / FREE_DEFLECTION
        piezo = _actuator(spec, name, -2 * push[index])
        piezo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
        piezo.biasprm[:2] = geometry.BIAS * push[index], -PIEZO_STIFFNESS
        piezo.ctrllimited, piezo.ctrlrange = mujoco.mjtLimited.mjLIMITED_TRUE, (0.0, geometry.BIAS)
    return spec.compile()


def simple(dt: float | int = 0.25, *, in_air: bool = False, constants: str = "projected") -> mujoco.MjModel:
    """The simple model: a chassis, four rigid legs with two hip angles each; 8 hip torques in N mm, unlimited.

    Args:
        dt, in_air: as in `full`.
        constants: where springs and dampers at the hips come from: a name in `CONSTANTS`.
    """
    spec, chassis = _scene(dt, in_air)
    _inertial(chassis, *_lump(("chassis", *(f"{side}_{link}" for side in LEGS for link in ("S1", "S2", "L1", "L2")))))
    hips = hip_constants(constants)
    for leg, side in enumerate(LEGS):
        hip = geometry.HIP * geometry.mirror(leg)
        body = chassis.add_body(name=f"{side}_L4", pos=hip)
        _inertial(body, *_lump([f"{side}_{link}" for link in ("S3", "S4", "L3", "L4")], tuple(hip)))
        for dof, axis in ((1, geometry.X), (0, geometry.Z)):
            joint = body.add_joint(
                name=f"{side}_{geometry.DOFS[dof]}", type=mujoco.mjtJoint.mjJNT_HINGE, axis=axis,
                stiffness=hips.stiffness[2 * leg + dof], damping=hips.damping[2 * leg + dof],
            )  # fmt: skip
            _limit(joint, geometry.FLEXURE_LIMIT)
        _foot(body, leg, FOOT_FROM_HIP)
    for side in LEGS:
        for dof in geometry.DOFS:
            _actuator(spec, f"{side}_{dof}", 1.0)
    return spec.compile()


class HipConstants(NamedTuple):
    """What the simple model knows of each of the eight hip angles."""

    stiffness: Float[ndarray, "8"]  # N mm/rad
    damping: Float[ndarray, "8"]  # N mm ms/rad
    torque: Float[ndarray, "8"]  # N mm/V, below the rest voltage


CONSTANTS = ("projected", "summed", "published")
"""`projected`: what flexures and actuators of the full model amount to at rest, by its Jacobian. `summed`: as if each
flexure in the chain turned as far as the hip. `published`: those of the public reduced model HAMRSimple."""


@functools.cache
def hip_constants(constants: str = "projected") -> HipConstants:
    """Springs, dampers and torque per volt at the hips, by a name in `CONSTANTS`."""
    if constants not in CONSTANTS:
        raise unknown("set of hip constants", constants, CONSTANTS)
    model, _ = _resting()
    actuators = model.actuator_trnid[:, 0]
    stiffness = model.jnt_stiffness.copy()
    stiffness[actuators] += PIEZO_STIFFNESS
    levers = rest_jacobian()[actuators, np.arange(8)]
    torque = 2 * levers * geometry.ORIENTATION * geometry.BLOCKED
    if constants == "published":
        return HipConstants(np.tile((0.6680, 0.8772), 4), np.tile((0.0745, 0.0122), 4), 0.0013 * np.sign(torque))
    moves = np.square(rest_jacobian())
    if constants == "summed":
        chain = [[0, 1, 2, 7], [4, 5, 6, 3]]  # joints of a leg that turn with swing, and with lift
        moves = np.zeros_like(moves)
        for hip, lever in enumerate(levers):
            moves[8 * (hip // 2) + np.array(chain[hip % 2]), hip] = lever**2, 1.0, 1.0, 1.0
    return HipConstants(stiffness @ moves, model.dof_damping @ moves, torque)


def hip_torques(volts: Float[ndarray, "*batch 8"], constants: str = "projected") -> Float[ndarray, "*batch 8"]:
    """The hip torques in N mm that drive voltages amount to. The stiffness of the drive is in the springs."""
    return hip_constants(constants).torque * (geometry.REST - volts)


def driven_by_voltage(model: mujoco.MjModel, constants: str = "projected") -> mujoco.MjModel:
    """A simple model, whose controls become those of the full one as actions: -1 for 0 V, 1 for 225 V. In place."""
    model.actuator_gainprm[:, 0] = -hip_constants(constants).torque * geometry.REST
    return model


@functools.cache
def rest_jacobian() -> Float[ndarray, "joints 8"]:
    """How the full model's 32 joints move with its hip angles at rest: rad/rad, mm/rad for actuators."""
    model, data = _resting()
    # Loop constraints stay zero, and hip angles are what they are.
    constraints = np.vstack((data.efc_J.reshape(-1, model.nv)[: data.ne], hip_matrix(model)))
    right = np.vstack((np.zeros((data.ne, 8)), np.eye(8)))
    return np.linalg.lstsq(constraints, right, rcond=None)[0]


def hip_matrix(model: mujoco.MjModel) -> Float[ndarray, "8 joints"]:
    """What takes the joints of the legs, the last entries of `qpos` and of `qvel`, to hip angles: exact in either."""
    first = 6 if floats(model) else 0
    matrix = np.zeros((8, model.nv - first))
    parts = (("qfb3",), ("ql1", "ql2")) if model.nv - first > 8 else (("swing",), ("lift",))
    for leg, side in enumerate(LEGS):
        for dof, joints in enumerate(parts):
            for joint in joints:
                matrix[2 * leg + dof, model.joint(f"{side}_{joint}").dofadr[0] - first] = 1.0
    return matrix


def floats(model: mujoco.MjModel) -> bool:
    """Whether the chassis moves, so that `qpos` starts with its 7 numbers and `qvel` with its 6."""
    return bool(model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE)


# Parts of the above.


def _scene(dt: float | int, in_air: bool) -> tuple[Any, Any]:
    spec = mujoco.MjSpec()
    spec.modelname = "hamr"
    spec.compiler.degree = False
    spec.stat.extent = 50.0
    option = spec.option
    option.timestep = dt
    option.gravity = (0.0, 0.0, 0.0 if in_air else -geometry.GRAVITY)
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    # Forces are of millinewtons. The solver's default, 1e-8, leaves loops open by tens of micrometres, and legs that
    # touch the ground with rates that depend on where the solver started.
    option.tolerance = 1e-15
    spec.visual.headlight.ambient = (0.2, 0.2, 0.2)
    spec.worldbody.add_light(pos=(0, -100, 200), dir=(0, 0.4, -1), type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    chassis = spec.worldbody.add_body(name="chassis", pos=(0.0, 0.0, geometry.START_HEIGHT))
    chassis.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(15.5, 9.3, 1.5),
        mass=0,
        contype=0,
        conaffinity=0,
        rgba=(0.3, 0.3, 0.35, 1),
    )
    spec.worldbody.add_camera(
        name="view", mode=mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODY, targetbody="chassis", pos=(60, -70, 50)
    )
    if not in_air:
        chassis.add_freejoint(name="chassis")
        spec.worldbody.add_geom(
            name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(500, 500, 1), rgba=(0.85, 0.83, 0.78, 1), **CONTACT
        )
    return spec, chassis


def _linkage(spec: Any, chassis: Any, leg: int, side: str, dt: float | int) -> None:
    bodies, mirror = {"": chassis}, geometry.mirror(leg)
    for link in geometry.links(leg):
        body = bodies[link.parent].add_body(name=f"{side}_{link.name}", pos=link.origin * mirror)
        bodies[link.name] = body
        _inertial(body, link.mass, link.com * mirror, link.inertia * geometry.mirror_inertia(leg))
        kind = mujoco.mjtJoint.mjJNT_SLIDE if link.slides else mujoco.mjtJoint.mjJNT_HINGE
        joint = body.add_joint(
            name=f"{side}_{link.joint}", type=kind, axis=link.axis, stiffness=link.stiffness, damping=link.damping
        )
        _limit(joint, geometry.ACTUATOR_LIMIT if link.slides else geometry.FLEXURE_LIMIT)
    _foot(bodies["L4"], leg, geometry.FOOT)
    for (one, point), (other, same_point) in geometry.LOOPS:
        loop = spec.add_equality(
            type=mujoco.mjtEq.mjEQ_CONNECT, objtype=mujoco.mjtObj.mjOBJ_SITE,
            name1=_site(bodies[one], mirror * point), name2=_site(bodies[other], mirror * same_point),
        )  # fmt: skip
        loop.solref, loop.solimp = (2 * dt, 1.0), LOOP_SOLIMP


def _site(body: Any, point: Float[ndarray, "3"]) -> str:
    name = f"{body.name}_loop{len(body.sites)}"
    body.add_site(name=name, pos=point)
    return name


def _foot(body: Any, leg: int, tip: Sequence[float]) -> None:
    """A sphere whose lowest point, at rest, is the tip of the leg; and a leg to look at."""
    mirror = geometry.mirror(leg)
    centre = tip * mirror + (0.0, 0.0, geometry.FOOT_RADIUS)
    body.add_geom(
        name=body.name.replace("_L4", "_foot"), type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=(geometry.FOOT_RADIUS, 0, 0), pos=centre, mass=0, rgba=(0.8, 0.3, 0.1, 1), **CONTACT,
    )  # fmt: skip
    hip = centre - FOOT_FROM_HIP * mirror
    knee = hip + mirror * (0.0, FOOT_FROM_HIP[1], 0.0)
    for start, end in ((hip, knee), (knee, centre)):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=(0.4, 0, 0), fromto=np.concatenate((start, end)),
            mass=0, contype=0, conaffinity=0, rgba=(0.6, 0.6, 0.65, 1),
        )  # fmt: skip


def _actuator(spec: Any, joint: str, gain: float) -> Any:
    actuator = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    actuator.gaintype, actuator.gainprm[0] = mujoco.mjtGain.mjGAIN_FIXED, gain
    return actuator


def _limit(joint: Any, limit: float) -> None:
    joint.limited, joint.range = mujoco.mjtLimited.mjLIMITED_TRUE, (-limit, limit)


def _inertial(body: Any, mass: float, com: Any, inertia: Any) -> None:
    body.explicitinertial, body.mass, body.ipos, body.fullinertia = True, mass, com, inertia


@functools.cache
def _resting() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = full(in_air=True)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def _lump(bodies: Sequence[str], about: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[float, ndarray, ndarray]:
    """Mass, centre of mass and inertia of links of the full model at rest, welded; positions from `about`."""
    model, data = _resting()
    parts = [data.body(name) for name in bodies]
    masses = np.array([model.body(name).mass[0] for name in bodies])
    centres = np.array([part.xipos for part in parts]) - data.body("chassis").xpos - about
    mass = masses.sum()
    com = masses @ centres / mass
    total = np.zeros((3, 3))
    for name, part, weight, centre in zip(bodies, parts, masses, centres - com):
        axes = part.ximat.reshape(3, 3)
        total += axes @ np.diag(model.body(name).inertia) @ axes.T
        total += weight * (centre @ centre * np.eye(3) - np.outer(centre, centre))
    return float(mass), com, total[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
