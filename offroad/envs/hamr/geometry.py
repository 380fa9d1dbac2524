"""Constants of HAMR, a quadruped of 4.5 cm and 1.475 g with eight piezo actuators.

**Units** here and inside MuJoCo are mm, g and ms, so that force comes in N, torque in N mm, stiffness in N/mm or
N mm/rad, frequency in kHz, and a speed of 1 mm/ms is 1 m/s. SI units would put the inertias of the links at
1e-13 kg m^2, where MuJoCo takes numbers for zero. The environments convert at their edge: they show SI units.

**Legs** come in the order FL, RL, FR, RR (front, rear; left, right); each has two degrees of freedom in the order swing
(about z), lift (about x). Eight numbers are (FL swing, FL lift, RL swing, ..., RR lift).

Values are those of the public URDF of the full model (`HarvardAgileRoboticsLab/drake`, branch `Variational-Hamr`,
`drake/examples/HAMR-URDF/urdf/HAMR_scaledV2.urdf`, BSD-3-Clause), given for the front left leg; the others are its
mirror images. The URDF mirrors a few products of inertia and one centre of mass of the right legs with the wrong sign,
which is not copied.
"""

import math
from dataclasses import dataclass

import numpy as np

LEGS = ("FL", "RL", "FR", "RR")
DOFS = ("swing", "lift")
FRONT = np.array([1, -1, 1, -1])  # sign of x
LEFT = np.array([1, 1, -1, -1])  # sign of y

GRAVITY = 9.81e-3
CHASSIS_MASS = 1.2066
CHASSIS_COM = (0.0, 0.0, -0.3796576)
CHASSIS_INERTIA = (49.0722, 68.1039, 99.7537, 0.0, 0.2372, 0.0)  # xx yy zz xy xz yz; the last digits of CAD left out
START_HEIGHT = 12.69  # of the chassis' origin, in the published simulations: the feet 0.15 above ground

HIP = (12.75465981539, 9.79, 0.46)  # where swing and lift axes cross, in the chassis
FOOT = (0.0, 7.58, -11.35)  # the tip, in the frame of link L4
FOOT_RADIUS = 0.25

# Piezo bimorphs: a bias of 225 V, a drive between 0 and 225 V, rest at 112.5 V.
BIAS = 225.0
REST = BIAS / 2
BLOCKED, FREE = 1.44126e-3, 4.8042e-4  # N/V: force without motion, and what 0.28063 mm of motion takes away of it
FREE_DEFLECTION = 0.28063
ACTUATOR_STIFFNESS = 1.1556  # N/mm, passive
# Which way each of the eight bends: the force pushes along +y below rest in rear legs, along -y in front legs.
ORIENTATION = np.repeat(-FRONT, 2)

ACTUATOR_LIMIT = 0.3  # mm
FLEXURE_LIMIT = math.pi / 4


@dataclass(frozen=True)
class Link:
    """A link of the front left leg and the joint that ties it to its parent."""

    name: str
    parent: str
    joint: str
    slides: bool
    axis: tuple[float, float, float]
    origin: tuple[float, float, float]  # in the parent
    stiffness: float
    damping: float
    mass: float
    com: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]  # xx yy zz xy xz yz about the centre of mass


X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
FRONT_LINKS = (
    Link(
        "S1", "", "qsact", True, Y, (13.28465981539, 1.45668412658, -0.47825042921), ACTUATOR_STIFFNESS, 0.01,
        8.9854e-4, (0.0, 0.0, 0.0), (4.0531e-4, 1.8583e-4, 2.281e-4, 0.0, 0.0, -1.1771e-5),
    ),
    Link(
        "S2", "S1", "qs1", False, Z, (0.0, 0.77116874934, 0.12648211488), 0.092, 0.02804,
        7.2648e-3, (0.0, 3.8176, 1.3953), (3.894e-2, 8.899e-3, 3.0111e-2, 0.0, 0.0, -9.1382e-3),
    ),
    Link(
        "S3", "S2", "qs2", False, Z, (0.0, 7.44214712409, 2.06176831433), 0.034, 0.01657,
        3.889e-3, (0.70289, -0.086332, 0.10242), (2.6158e-3, 4.7809e-3, 3.1897e-3, -5.7753e-4, -3.2642e-4, -8.2188e-5),
    ),
    Link(
        "S4", "S3", "qfb1", False, X, (1.52236486487, 0.12, -1.25), 0.06, 0.01914,
        1.4269e-2, (1.4605, 1.8371, 3.0882), (0.1206, 8.3598e-2, 9.8829e-2, 3.2785e-2, -2.9892e-2, 2.1738e-2),
    ),
    Link(
        "L1", "", "qlact", True, Y, (10.50465981539, 3.15177982148, -0.50168853124), ACTUATOR_STIFFNESS, 0.01,
        4.5174e-3, (-0.2102, 2.5512, -0.057375), (1.0604e-2, 2.5227e-3, 1.0642e-2, 9.467e-4, 4.1692e-4, -2.6756e-4),
    ),
    Link(
        "L2", "L1", "ql1", False, X, (0.0, 4.57322017852, 0.38168853124), 0.2, 0.06366,
        1.6211e-3, (0.0, 0.95907, 0.0), (9.976e-4, 2.561e-3, 3.5431e-3, 0.0, 0.0, 0.0),
    ),
    Link(
        "L3", "L2", "ql2", False, X, (0.0, 1.945, 0.0), 0.034, 0.01657,
        4.2308e-3, (0.11652, -0.072167, -0.5651), (2.4566e-3, 5.8098e-3, 4.4079e-3, -9.4738e-5, 3.1854e-4, 4.7676e-4),
    ),
    Link(
        "L4", "L3", "qfb3", False, Z, (2.25, 0.12, -1.07), 0.034, 0.01657,
        3.0948e-2, (-1.0887, 3.2212, -3.5924), (0.453879, 0.325606, 0.34257, 0.072379, -0.03886, -0.144657),
    ),
)  # fmt: skip

# Rear legs differ in the link behind the lift actuator, and a little in the leg. Written as in a front leg: mirror x.
_REAR = {
    "L1": {
        "origin": (10.50465981539, 4.79177982148, -0.50168853124),
        "mass": 3.4357e-3,
        "com": (-0.27638, 1.552, 0.013427),
        "inertia": (3.8161e-3, 2.1069e-3, 4.1339e-3, 3.3823e-4, 3.5123e-4, -1.4678e-4),
    },
    "L2": {"origin": (0.0, 2.93322017852, 0.38168853124)},
    "L4": {"inertia": (0.479144, 0.352764, 0.34257, 0.071618, -0.048644, -0.155393)},
}
REAR_LINKS = tuple(Link(**{**vars(link), **_REAR.get(link.name, {})}) for link in FRONT_LINKS)

# Points that closed chains hold together: (link, point) and (link, point); "" is the chassis.
LOOPS = (
    (("", (12.75465981539, 9.79, 1.71)), ("S3", (-0.53, 0.12, 0.0))),
    (("", (10.50465981539, 9.79, 0.46)), ("L3", (0.0, 0.12, 0.58))),
    (("S4", (-2.05236472111, 5.98079552649, 0.0)), ("L4", (0.0, 5.98079552649, 1.64999985615))),
)


def links(leg: int) -> tuple[Link, ...]:
    """The links of leg 0 to 3, still written as if it stood front left."""
    return FRONT_LINKS if FRONT[leg] > 0 else REAR_LINKS


def mirror(leg: int) -> np.ndarray:
    """What points of a front left leg are multiplied with to stand in a leg: `[3]` of +-1."""
    return np.array([FRONT[leg], LEFT[leg], 1])


def mirror_inertia(leg: int) -> np.ndarray:
    """The same for inertias xx yy zz xy xz yz."""
    x, y, z = mirror(leg)
    return np.array([1, 1, 1, x * y, x * z, y * z])
