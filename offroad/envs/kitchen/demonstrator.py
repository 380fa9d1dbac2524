"""A scripted demonstrator for the kitchen's seven subtasks, in any order.

Each subtask is a short list of waypoints for the hand, relative to where handles are. A step towards a waypoint is one
of differential inverse kinematics (damped least squares), turned into joint velocities that also make up for gravity.
It sees what an agent sees: D4RL's noisy positions.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.kitchen.kitchen import REACH
from offroad.envs.kitchen.model import FRAME_SKIP, GOALS, OBJECTS, ROBOT, START, satisfied
from offroad.errors import unknown

ARM = 7
TIP = 0.035
"""From the model's site at the hand to between the pads of the fingers, in m."""
TURN = 0.15
"""The hand turns by at most so much in a step, in rad."""
DAMPING = 0.05
"""Of the least squares: singular values much below it are not used."""
FASTEST = 0.08
"""A joint moves by at most so much in a step, in rad: about what full velocity gives."""
MARGIN = 0.95
"""Actions stay within this, off the bounds, where a squashed Gaussian's likelihood is infinite."""


@dataclass(frozen=True)
class Waypoint:
    """Where the tip is to be (m) and with which attitude `[3, 3]` (columns: the hand's axes up, across the fingers and
    forwards), fingers open or not.

    `speed`: m in a step. `near`: how near is there, m. `most`: the next one comes after so many steps anyway.
    `wait`: steps to stay. `until`: the next one comes as soon as this holds of the positions. `joints`: the arm's
    angles there: it goes by joints instead of in a straight line, at full speed.
    """

    point: Float[ndarray, "3"]
    attitude: Float[ndarray, "3 3"]
    opened: bool = False
    speed: float = 0.05
    near: float = 0.03
    most: int = 30
    wait: int = 0
    until: Callable[[ndarray], bool] = lambda positions: False
    joints: Float[ndarray, "7"] | None = None


def attitude(yaw: float | int = 0, pitch: float | int = 0) -> Float[ndarray, "3 3"]:
    """Forwards, into the kitchen, then turned down by pitch and left by yaw, in rad; fingers side by side."""
    c, s = np.cos(pitch), np.sin(pitch)
    level = np.array([[0, 1, 0], [s, 0, c], [c, 0, -s]])
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ level


class Kinematics:
    """Where the hand and the handles are, and which joint velocities bring the hand to a waypoint."""

    def __init__(self, model: mujoco.MjModel):
        self._model, self._data = model, mujoco.MjData(model)
        self._hand = model.site("end_effector").id
        stiffness = -model.actuator_biasprm[:ARM, 1]
        # Joints follow their actuators with this time constant: so much of the way is made in one step.
        self._share = 1 - np.exp(-FRAME_SKIP * model.opt.timestep * stiffness / model.dof_damping[:ARM])
        self._stiffness = stiffness

    def see(self, positions: Float[ndarray, "30"]) -> None:
        self.positions = positions
        self._data.qpos[:] = positions
        mujoco.mj_kinematics(self._model, self._data)

    def site(self, name: str, joint: str | None = None, angle: float | int = 0) -> Float[ndarray, "3"]:
        """Where a site is, or would be if its joint were at `angle`."""
        if joint is not None:
            self._data.qpos[self._model.joint(joint).qposadr[0]] = angle
            mujoco.mj_kinematics(self._model, self._data)
        point = self._data.site(name).xpos.copy()
        if joint is not None:
            self.see(self.positions)
        return point

    def tip(self) -> Float[ndarray, "3"]:
        return self._data.site_xpos[self._hand] + TIP * self._data.site_xmat[self._hand].reshape(3, 3)[:, 2]

    def travel(self, point: Float[ndarray, "3"], attitude: Float[ndarray, "3 3"], opened: bool = False) -> Waypoint:
        """A waypoint that is gone to by joints, always arriving with the same ones: those reached from `START`."""
        waypoint = Waypoint(point, attitude, opened, most=40)
        now, low, high = self.positions, *self._model.jnt_range[:ARM].T
        positions = np.append(START[:ARM], now[ARM:])
        for _ in range(60):
            self.see(positions)
            positions[:ARM] = np.clip(positions[:ARM] + self._motion(waypoint), low + 0.02, high - 0.02)
        self.see(now)
        return replace(waypoint, joints=positions[:ARM])

    def action(self, waypoint: Waypoint) -> Float[ndarray, "9"]:
        """Joint velocities towards a waypoint, and what gravity takes."""
        mujoco.mj_comPos(self._model, self._data)
        gravity = np.zeros(self._model.nv)
        mujoco.mj_rne(self._model, self._data, 0, gravity)
        direct = waypoint.joints is None
        motion = self._motion(waypoint) if direct else waypoint.joints - self.positions[:ARM]
        motion *= min(1.0, FASTEST / max(np.abs(motion).max(), 1e-9))
        arm = (motion / self._share + gravity[:ARM] / self._stiffness) / REACH
        return np.append(arm, [0.8 if waypoint.opened else -0.8] * (ROBOT - ARM))

    def _motion(self, waypoint: Waypoint) -> Float[ndarray, "7"]:
        """One step of damped least squares, near the posture that episodes start with."""
        model, data = self._model, self._data
        mujoco.mj_comPos(model, data)
        linear, angular = np.zeros((2, 3, model.nv))
        mujoco.mj_jac(model, data, linear, angular, self.tip(), model.site_bodyid[self._hand])
        quaternion, turn = np.zeros(4), np.zeros(3)
        now = data.site_xmat[self._hand].reshape(3, 3)
        mujoco.mju_mat2Quat(quaternion, (waypoint.attitude @ now.T).ravel())
        mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        # A radian counts as half a metre.
        task = np.concatenate((_shortened(waypoint.point - self.tip(), waypoint.speed), 0.5 * _shortened(turn, TURN)))
        jacobian = np.concatenate((linear, 0.5 * angular))[:, :ARM]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING**2 * np.eye(6))
        posture = np.clip(0.1 * (START - self.positions)[:ARM], -0.05, 0.05)
        return inverse @ (task - jacobian @ posture) + posture


def _shortened(vector: Float[ndarray, "3"], length: float) -> Float[ndarray, "3"]:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


# --- the seven subtasks ----------------------------------------------------------------------------------------------


def _by(point: Float[ndarray, "3"], right: float, far: float, up: float) -> Float[ndarray, "3"]:
    """Moved by so many metres, as the robot sees it."""
    return point + np.array([right, far, up])


def _grip_and_pull(
    handle: str, joint: str, angles: Sequence[float], yaws: Sequence[float], pitch: float, deep: float
) -> Callable[[Kinematics], Iterator[Waypoint]]:
    """Takes the handle, leads it to each of the joint's angles, lets go and draws back."""

    def script(body: Kinematics) -> Iterator[Waypoint]:
        hand = attitude(yaws[0], pitch)
        grip = body.site(handle) + deep * hand[:, 2]
        yield body.travel(grip - 0.14 * hand[:, 2], hand, opened=True)
        yield Waypoint(grip, hand, opened=True, near=0.015)
        yield Waypoint(grip, hand, wait=4)
        for angle, yaw in zip(angles, yaws[1:]):
            hand = attitude(yaw, pitch)
            point = body.site(handle, joint, angle) + deep * hand[:, 2]
            yield Waypoint(point, hand, speed=0.03, near=0.04, most=16)
        grip = body.site(handle)
        yield Waypoint(grip, hand, opened=True, near=0.1, wait=3, most=4)
        yield Waypoint(grip - 0.12 * hand[:, 2], hand, opened=True, near=0.05, most=8)

    return script


def _knob(site: str, task: str) -> Callable[[Kinematics], Iterator[Waypoint]]:
    """Turns a knob clockwise by its upper end."""
    joints, goal = GOALS[task]

    def turned(positions: ndarray) -> bool:
        return bool(positions[joints][0] < goal[0] + 0.1)

    def script(body: Kinematics) -> Iterator[Waypoint]:
        knob, hand = body.site(site), attitude()
        yield body.travel(_by(knob, -0.06, -0.10, 0.035), hand)
        yield Waypoint(_by(knob, -0.05, 0.0, 0.035), hand, near=0.012)
        for angle in (0.3, 0.6, 0.9, 1.1):
            point = _by(knob, 0.042 * np.sin(angle) - 0.012, 0.0, 0.042 * np.cos(angle))
            yield Waypoint(point, hand, speed=0.03, near=0.01, most=10, until=turned)
        yield Waypoint(_by(body.tip(), -0.02, -0.10, 0.0), hand)

    return script


def _light_switch(body: Kinematics) -> Iterator[Waypoint]:
    switch, hand = body.site("light_site"), attitude()
    yield body.travel(_by(switch, 0.07, -0.12, 0.0), hand)
    yield Waypoint(_by(switch, 0.07, 0.01, 0.0), hand, near=0.015)
    yield Waypoint(_by(switch, -0.09, 0.01, 0.0), hand, speed=0.04, near=0.02, most=12)
    yield Waypoint(_by(switch, -0.06, -0.12, 0.0), hand)


def _slide_cabinet(body: Kinematics) -> Iterator[Waypoint]:
    handle, hand = body.site("slide_site"), attitude()
    yield body.travel(_by(handle, -0.07, -0.12, 0.0), hand)
    yield Waypoint(_by(handle, -0.07, 0.02, 0.0), hand, near=0.02)
    yield Waypoint(_by(handle, 0.32, 0.02, 0.0), hand)
    yield Waypoint(_by(handle, 0.28, -0.12, 0.0), hand)


def _kettle(body: Kinematics) -> Iterator[Waypoint]:
    """Pushed to the far burner: low, so that it does not tip, with both fingers, and where it straightens its yaw.

    Not further than counts as there with some margin: the microwave's corner is in the spout's way.
    """
    kettle, hand = body.positions[23:26].copy(), attitude(pitch=0.6)

    def there(positions: ndarray) -> bool:
        return bool(positions[24] > 0.57)

    yield body.travel(_by(kettle, 0.0, -0.22, 0.20), hand, opened=True)
    yield Waypoint(_by(kettle, 0.0, -0.20, 0.10), hand, opened=True, near=0.02)
    for far in np.arange(0.24, 0.5, 0.04):
        if far > body.tip()[1] and not there(body.positions):
            side = kettle[0] + 0.01 - 0.5 * body.positions[29]
            point = np.array([side, far, kettle[2] + 0.10])
            yield Waypoint(point, hand, opened=True, speed=0.04, most=10, until=there)
    yield Waypoint(_by(body.tip(), 0.0, -0.12, 0.10), hand, opened=True)


SCRIPTS: dict[str, Callable[[Kinematics], Iterator[Waypoint]]] = {
    "bottom burner": _knob("knob2_site", "bottom burner"),
    "top burner": _knob("knob4_site", "top burner"),
    "light switch": _light_switch,
    "slide cabinet": _slide_cabinet,
    "hinge cabinet": _grip_and_pull(
        "hinge_site2", "right_hinge_cabinet", (0.3, 0.6, 0.9, 1.2, 1.5), (0.0,) * 6, pitch=0.0, deep=0.025
    ),
    "microwave": _grip_and_pull(
        "microhandle_site", "microwave", (-0.2, -0.4, -0.6, -0.85), (0.2, 0.14, 0.08, 0.02, -0.05), pitch=0.5, deep=0.03
    ),
    "kettle": _kettle,
}


class Demonstrator:
    """Does subtasks one after another in one world; one that failed is tried a second time.

    `finished` tells that nothing is left to do: `act` then keeps the hand where it is, pointing forwards.

    Args:
        model: the kitchen's, of which it keeps its own data.
        tasks: subtasks, keys of `SCRIPTS`, in the order in which they are to be done.
        random: source of its sloppiness.
        noise: scales it: where waypoints are (deviation 0.3 of how near counts as there; exact for those that it
            goes to by joints), how fast it goes (±15 % in an episode), where it pauses (one waypoint in seven, 1 to 5
            steps), and actions (deviation 0.05). 0: exact.

    Raises `OffroadError` for an unknown subtask.
    """

    def __init__(
        self, model: mujoco.MjModel, tasks: Sequence[str], random: np.random.Generator, noise: float | int = 1
    ):
        for task in tasks:
            if task not in SCRIPTS:
                raise unknown("kitchen task", task, SCRIPTS)
        self._body = Kinematics(model)
        self._random, self._noise = random, noise
        self._pace = 1 + noise * random.uniform(-0.15, 0.15)
        self._left = [task for task in tasks for _ in range(2)]
        self._script: Iterator[Waypoint] = iter(())
        self._waypoint: Waypoint | None = None
        self._steps = self._stayed = 0
        self.finished = False

    def act(self, observation: Float[ndarray, "obs"]) -> Float[ndarray, "9"]:
        """The action after an observation of D4RL's layout, of which it reads the 30 positions."""
        self._body.see(np.asarray(observation[: ROBOT + OBJECTS], float))
        if self._waypoint is None or self._reached(self._waypoint):
            self._waypoint = self._next()
        action = self._body.action(self._waypoint)
        self._steps += 1
        action += 0.05 * self._noise * self._random.standard_normal(ROBOT)
        return np.clip(action, -MARGIN, MARGIN)

    def _reached(self, waypoint: Waypoint) -> bool:
        if self._steps >= waypoint.most + waypoint.wait or waypoint.until(self._body.positions):
            return not self.finished
        if self._stayed or np.linalg.norm(waypoint.point - self._body.tip()) < waypoint.near:
            self._stayed += 1
        return self._stayed > waypoint.wait

    def _next(self) -> Waypoint:
        self._steps = self._stayed = 0
        waypoint = next(self._script, None)
        while waypoint is None and self._left:
            task = self._left.pop(0)
            if not satisfied(self._body.positions, (task,)).all():
                self._script = SCRIPTS[task](self._body)
                waypoint = next(self._script)
        if waypoint is None:
            self.finished = True
            return Waypoint(self._body.tip(), attitude(), most=10**9, near=0.0)
        pause = int(self._random.integers(1, 6)) if self._random.random() < self._noise / 7 else 0
        return replace(
            waypoint,
            point=waypoint.point + 0.3 * self._noise * min(waypoint.near, 0.03) * self._random.standard_normal(3),
            speed=waypoint.speed * self._pace,
            wait=waypoint.wait + pause,
        )
