"""Traffic simulated by SUMO: any road network of yours, and the ring of `RingRoad`, to see whether policies transfer.

Needs the extra: `pip install "offroad[sumo]"`. SUMO runs inside the process (`libsumo`), which is much faster
than over a socket but allows one simulation for each process: use `gymnasium.vector.AsyncVectorEnv` for several.
"""

import math
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from offroad.envs.ring_road.ring import BUNCHING, CAR, DISTANCE_SCALE, SPEED_SCALE, STEP
from offroad.errors import OffroadError

# (speeds of all vehicles [V], action [controlled], whether vehicles collided) -> reward
Reward = Callable[[np.ndarray, np.ndarray, bool], float]

_running: "SumoEnv | None" = None  # the environment that owns this process's simulation


def ring_reward(speeds: Float[np.ndarray, "V"], action: Float[np.ndarray, "controlled"], collided: bool) -> float:
    """The reward of `RingRoad` with its default weights."""
    effort = float(np.abs(action).mean()) if action.size else 0.0
    return 0.0 if collided or not speeds.size else 4.0 * float(speeds.mean()) / 20 - 4.0 * effort


class SumoEnv(gym.Env):
    """A road network in SUMO in which the vehicles of one type are controlled.

    Observation, for each of `num_controlled` vehicles in the order of their departure, as on the ring: own speed / 15,
    (leader's speed - own speed) / 15, distance from front bumper to front bumper / 270, at most 1. Zeros where fewer
    such vehicles are on the road. Without a leader, its speed counts as the own and its distance as 270 m.

    Args:
        net: SUMO network file, `*.net.xml`.
        routes: file of vehicle types, routes, flows and vehicles, `*.rou.xml`.
        controlled: id of the controlled vehicle type. SUMO's safe-speed checks apply to what it is told to do, with the
            constants of this type.
        num_controlled: how many vehicles of that type one action steers.
        action: what an action means: `"accel"`, m/s^2, or `"speed"`, m/s.
        bound: largest acceleration (m/s^2, either sign) or largest speed (m/s).
        reward: see `Reward`.
        sim_steps: simulator steps of 0.1 s for each decision.
        warmup: seconds before an episode starts, in which SUMO drives the controlled vehicles too.

    Raises:
        OffroadError: SUMO is not installed, a file is missing, or another environment runs in this process.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        net: str | Path,
        routes: str | Path,
        controlled: str,
        *,
        num_controlled: int = 1,
        action: str = "accel",
        bound: float = 1.0,
        reward: Reward = ring_reward,
        sim_steps: int = 5,
        warmup: float = 0.0,
    ):
        if action not in ("accel", "speed"):
            raise OffroadError(f"action is {action!r}; expected 'accel' or 'speed'")
        self.sumo = _libsumo()
        self.net, self.routes, self.controlled, self.num_controlled = (
            Path(net),
            Path(routes),
            controlled,
            num_controlled,
        )
        self.action, self.reward, self.sim_steps, self.warmup = action, reward, sim_steps, warmup
        self.observation_space = spaces.Box(-np.inf, np.inf, (3 * num_controlled,), np.float32)
        self.lowest, self.highest = -bound if action == "accel" else 0.0, bound
        self.action_space = spaces.Box(self.lowest, self.highest, (num_controlled,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._load(self.net, self.routes)
        return self.observation(), self.diagnostics()

    def step(self, action: Float[np.ndarray, "controlled"]):
        if _running is not self:
            raise OffroadError("this SUMO environment is not running; call reset first")
        action = np.clip(np.asarray(action, np.float64), self.lowest, self.highest)
        vehicles, collided = self.sumo.vehicle, False
        for _ in range(self.sim_steps):
            present = set(vehicles.getIDList())
            for name, value in zip(self.controlled_ids(), action):
                if name in present:
                    speed = vehicles.getSpeed(name) + value * STEP if self.action == "accel" else value
                    vehicles.setSpeed(name, max(speed, 0.0))
            self.sumo.simulationStep()
            collided = collided or self.sumo.simulation.getCollidingVehiclesNumber() > 0
        reward = self.reward(self.speeds(), action, collided)
        return self.observation(), float(reward), collided, False, self.diagnostics()

    def close(self) -> None:
        """Ends the simulation, so that another environment can run in this process."""
        global _running
        if _running is self:
            self.sumo.close()
            _running = None

    def speeds(self) -> Float[np.ndarray, "V"]:
        """Speed (m/s) of every vehicle on the road, by its id."""
        return np.array([self.sumo.vehicle.getSpeed(name) for name in sorted(self.sumo.vehicle.getIDList())])

    def controlled_ids(self) -> list[str]:
        """The controlled vehicles on the road, in the order of their departure."""
        vehicles = self.sumo.vehicle
        names = [name for name in vehicles.getIDList() if vehicles.getTypeID(name) == self.controlled]
        return sorted(names, key=lambda name: (vehicles.getDeparture(name), name))[: self.num_controlled]

    def observation(self) -> Float[np.ndarray, "seen"]:
        vehicles, seen = self.sumo.vehicle, np.zeros((self.num_controlled, 3), np.float32)
        for row, name in zip(seen, self.controlled_ids()):
            speed, leader = vehicles.getSpeed(name), vehicles.getLeader(name, DISTANCE_SCALE)
            lead_speed, distance = speed, DISTANCE_SCALE
            if leader is not None and leader[0]:
                # SUMO reports the gap less the follower's minimal gap.
                gap = leader[1] + vehicles.getMinGap(name)
                lead_speed, distance = vehicles.getSpeed(leader[0]), gap + vehicles.getLength(leader[0])
            row[:] = speed / SPEED_SCALE, (lead_speed - speed) / SPEED_SCALE, min(distance / DISTANCE_SCALE, 1.0)
        return seen.reshape(-1)

    def diagnostics(self) -> dict[str, float]:
        speeds = self.speeds()
        return {"mean_speed": float(speeds.mean()), "speed_std": float(speeds.std())} if speeds.size else {}

    def _load(self, net: Path, routes: Path) -> None:
        """Starts the simulation, or starts it anew, up to the end of the warm-up."""
        global _running
        if _running is not None and _running is not self:
            raise OffroadError(
                "another SUMO environment is running in this process, and libsumo allows one; close() it first, "
                "or run each in a process of its own with gymnasium.vector.AsyncVectorEnv"
            )
        for path in (net, routes):
            if not path.exists():
                raise OffroadError(f"SUMO input {str(path)!r} does not exist; expected a file")
        seed = int(self.np_random.integers(2**31 - 1))
        arguments = f"--step-length {STEP} --collision.action warn --collision.mingap-factor 0 --time-to-teleport -1"
        quiet = "--no-step-log --no-warnings --duration-log.disable"
        options = ["-n", str(net), "-r", str(routes), "--seed", str(seed), *arguments.split(), *quiet.split()]
        try:
            if _running is self:
                self.sumo.load(options)
            else:
                self.sumo.start(["sumo", *options])
        except self.sumo.TraCIException as error:
            raise OffroadError(f"SUMO could not load {str(net)!r} with {str(routes)!r}: {error}") from error
        _running = self
        for _ in range(1 + round(self.warmup / STEP)):  # the first step only puts the vehicles on the road
            self.sumo.simulationStep()


class SumoRing(SumoEnv):
    """The ring of `RingRoad` in SUMO: same observation, action and reward, so its policies run here unchanged.

    The humans are SUMO's own intelligent drivers, without noise. Controlled cars obey SUMO's safe-speed check of an
    assertive type, which is the fail-safe of `RingRoad`. Which car is automated is drawn for each episode.

    Args:
        num_vehicles: cars on the ring.
        length: of the ring, m: a number, or (shortest, longest) for a whole number of metres drawn for each episode.
        num_automated: automated cars, spread evenly over the ring; 0 for human traffic.
    """

    def __init__(
        self,
        num_vehicles: int = 22,
        length: float | tuple[float, float] = (220.0, 270.0),
        *,
        num_automated: int = 1,
        sim_steps: int = 5,
        warmup: float = 75.0,
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="offroad-ring-")  # removed with this object
        folder = Path(self._folder.name)
        super().__init__(folder, folder, "automated", num_controlled=num_automated, sim_steps=sim_steps, warmup=warmup)
        self.shortest, self.longest = length if isinstance(length, tuple | list) else (length, length)
        self.num_vehicles = num_vehicles

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        gym.Env.reset(self, seed=seed)
        length = self.shortest
        if self.longest > self.shortest:
            length = float(self.np_random.integers(int(self.shortest), int(self.longest), endpoint=True))
        folder = Path(self._folder.name)
        net = folder / f"{length:g}.net.xml"
        if not net.exists():
            build_ring(net, length)
        routes = folder / "ring.rou.xml"
        routes.write_text(_ring_traffic(self.num_vehicles, length))
        self._load(net, routes)
        first = int(self.np_random.integers(self.num_vehicles))
        for k in range(self.num_controlled):
            index = (first + k * self.num_vehicles // self.num_controlled) % self.num_vehicles
            self.sumo.vehicle.setType(f"car{index:03d}", self.controlled)
        return self.observation(), self.diagnostics() | {"length": length}


def build_ring(net: Path, length: float) -> None:
    """Writes the network of a single-lane ring: four arcs without inner junction edges, so that positions add up."""
    radius, names = length / (2 * math.pi), range(4)

    def at(turn: float) -> str:
        return f"{radius * math.cos(2 * math.pi * turn):.4f},{radius * math.sin(2 * math.pi * turn):.4f}"

    nodes = "".join(f'<node id="n{k}" x="{at(k / 4).split(",")[0]}" y="{at(k / 4).split(",")[1]}"/>' for k in names)
    edges = "".join(
        f'<edge id="e{k}" from="n{k}" to="n{(k + 1) % 4}" numLanes="1" speed="30" length="{length / 4:.6f}" '
        f'shape="{" ".join(at((k + j / 39) / 4) for j in range(40))}"/>'
        for k in names
    )
    with tempfile.TemporaryDirectory() as folder:
        node_file, edge_file = Path(folder, "ring.nod.xml"), Path(folder, "ring.edg.xml")
        node_file.write_text(f"<nodes>{nodes}</nodes>")
        edge_file.write_text(f"<edges>{edges}</edges>")
        command = [
            _netconvert(),
            "-n",
            node_file,
            "-e",
            edge_file,
            "-o",
            net,
            "--no-internal-links",
            "--precision",
            "6",
        ]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise OffroadError(f"netconvert could not build a ring of {length:g} m: {done.stderr.strip()}")


def _ring_traffic(cars: int, length: float) -> str:
    """Everybody at rest, equally spaced but for a hole in front of the last car, on an endless tour."""
    style = (
        'carFollowModel="IDM" length="5" maxSpeed="30" sigma="0" speedDev="0" speedFactor="1" insertionChecks="none"'
    )
    types = (
        f'<vType id="human" accel="1" decel="1.5" tau="1" minGap="2" delta="4" {style}/>'
        f'<vType id="automated" accel="2.6" decel="4.5" tau="1" minGap="2.5" delta="4" {style}/>'
    )
    tours = "".join(
        f'<route id="r{k}" edges="{" ".join(f"e{(k + j) % 4}" for j in range(4))}" repeat="1000"/>' for k in range(4)
    )
    vehicles = []
    for index in range(cars):
        edge, offset = divmod(index * (length - BUNCHING) / cars + CAR, length / 4)
        vehicles.append(
            f'<vehicle id="car{index:03d}" type="human" depart="0" route="r{int(edge)}" departPos="{offset:.6f}" '
            'departSpeed="0" departLane="0" insertionChecks="none"/>'
        )
    return f"<routes>{types}{tours}{''.join(vehicles)}</routes>"


def _libsumo() -> Any:
    try:
        import libsumo
    except ImportError as error:
        raise OffroadError("SUMO is not installed; install it with: pip install 'offroad[sumo]'") from error
    return libsumo


def _netconvert() -> str:
    import sumolib

    return sumolib.checkBinary("netconvert")
