"""Runs of many rings at once for tables and figures, and what traffic engineers read from them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from offroad.envs.ring_road.drivers import Driver, equilibrium_speed, named
from offroad.envs.ring_road.ring import CAR, RingRoad, tractive_power
from offroad.errors import OffroadError


class Trajectory(eqx.Module):
    """What happened on `N` rings in `T` decisions. Car `i + 1` drives in front of car `i`."""

    time: Float[np.ndarray, "T"]  # s, at the end of the decision
    length: Float[np.ndarray, "N"]  # of each ring, m
    position: Float[np.ndarray, "T N cars"]  # fronts, m, in [0, length)
    speed: Float[np.ndarray, "T N cars"]  # m/s
    gap: Float[np.ndarray, "T N cars"]  # bumper to bumper, m
    action: Float[np.ndarray, "T N automated"]  # as commanded, m/s^2
    closest: Float[np.ndarray, "T N"]  # smallest gap of an automated car during the decision, m
    guards: Float[np.ndarray, "T N 2"]  # uses of the numerical guard: automated cars, all cars

    def between(self, start: float, end: float = np.inf) -> "Trajectory":
        """The part with `start <= time <= end` (s)."""
        keep = (self.time >= start - 1e-6) & (self.time <= end + 1e-6)
        cut = {name: value[keep] for name, value in vars(self).items() if name != "length"}
        return Trajectory(length=self.length, **cut)


def simulate(
    ring: RingRoad,
    controller: Any,
    lengths: Float[Array | np.ndarray, "N"],
    key: PRNGKeyArray,
    seconds: float | int,
    *,
    start: str = "warm",
    engage: float | int = 0.0,
) -> Trajectory:
    """Drives one ring of each length, all in one compiled call.

    Args:
        ring: the setting; its own lengths are not used.
        controller: of the automated cars: a `Controller`, or any `eqx.Module` that is called like one and has its
            `initial_memory`, such as a trained policy. None: everybody is human.
        lengths: of the rings, m. Repeat one for several seeds: each ring has its own noise.
        start: `"warm"`: after the ring's warm-up; `"bunched"`: at rest with a hole in front of one car; `"uniform"`: at
            rest and equally spaced.
        engage: seconds for which the automated cars still drive as humans while the controller watches.
    """
    if start not in ("warm", "bunched", "uniform"):
        raise OffroadError(f"start is {start!r}; expected 'warm', 'bunched' or 'uniform'")
    lengths = jnp.asarray(lengths, jnp.float32)
    return Trajectory(*jax.tree.map(np.asarray, _simulate(ring, controller, lengths, key, seconds, start, engage)))


@eqx.filter_jit
def _simulate(ring, controller, lengths, key, seconds: float, start: str, engage: float) -> tuple[Array, ...]:
    count, automated = lengths.shape[0], ring.num_automated
    first, key = jax.random.split(key)
    first = jax.random.split(first, count)
    match start:
        case "warm":
            state = jax.vmap(ring.warmed_up)(lengths, first)
        case "bunched":
            state = jax.vmap(ring.start)(lengths, first)
        case _:
            state = jax.vmap(lambda length, key: ring.start(length, key, bunching=0.0))(lengths, first)
    memory = () if controller is None else controller.initial_memory(count, automated)
    time = ring.period * (1 + jnp.arange(round(seconds / ring.period)))

    def step(carry, time_key):
        (state, memory), (time, key) = carry, time_key
        action, on = jnp.zeros((count, automated)), jnp.array(False)
        if controller is not None:
            action, memory = controller(jax.vmap(ring.observation)(state, first), memory)
            on = time > engage
        state = jax.vmap(ring.drive, (0, 0, 0, None))(state, action, jax.random.split(key, count), on)
        position = jax.vmap(lambda state: state.positions)(state)
        return (state, memory), (position, state.speed, state.gap, action, state.closest, state.guards)

    _, rest = jax.lax.scan(step, (state, memory), (time, jax.random.split(key, time.shape[0])))
    return time, lengths, *rest


def summary(trajectory: Trajectory) -> dict[str, Float[np.ndarray, "N"]]:
    """One number for each ring and question; mean speed alone hides stop-and-go and tailgating."""
    speed, period = trajectory.speed, trajectory.time[1] - trajectory.time[0]
    acceleration = np.diff(speed, axis=0) / period
    power = np.asarray(tractive_power(jnp.asarray(speed[1:]), jnp.asarray(acceleration)))
    metres = (speed[1:] * period).sum((0, 2))
    return {
        "mean_speed": speed.mean((0, 2)),
        "speed_std": speed.std(2).mean(0),  # across cars
        "speed_std_over_time": speed.std(0).mean(1),
        "min_gap": trajectory.closest.min(0),  # of automated cars
        "guard_uses": trajectory.guards[..., 1].sum(0),
        "braking_per_km": 1000 * (acceleration < -1.0).sum((0, 2)) * period / metres,  # seconds of it
        "energy_per_metre": (power * period).sum((0, 2)) / metres,  # J/(kg m) at the wheels
    }


def wave_speed(trajectory: Trajectory) -> Float[np.ndarray, "N"]:
    """How fast the strongest speed wave of each ring travels along the road (m/s, negative: backwards).

    The phase of the Fourier component of the speeds over the ring turns once while the wave travels one wave length.
    """
    deviation = trajectory.speed - trajectory.speed.mean(2, keepdims=True)
    modes = np.arange(1, trajectory.speed.shape[2] // 2)
    angle = 2 * np.pi * trajectory.position / trajectory.length[:, None]
    waves = np.stack([(deviation * np.exp(-1j * mode * angle)).sum(2) for mode in modes])  # [mode, T, N]
    strongest = (np.abs(waves) ** 2).mean(1).argmax(0)
    phase = np.unwrap(np.angle(waves[strongest, :, np.arange(waves.shape[2])]), axis=1)  # [N, T]
    slope = np.polyfit(trajectory.time, phase.T, 1)[0]
    return -slope * trajectory.length / (2 * np.pi * modes[strongest])


def uniform_flow(length: float, num_vehicles: int = 22, driver: Driver | str = "idm") -> float:
    """Speed (m/s) at which all cars can drive at equal gaps: what is attainable without a jam."""
    return equilibrium_speed(named(driver), length / num_vehicles - CAR)


def flow_bound(length: float, num_vehicles: int = 22, driver: Driver | str = "idm") -> float:
    """The bound that Flow prints: the automated car leaves no gap at all, the others share it. Not attainable."""
    return equilibrium_speed(named(driver), (length - num_vehicles * CAR) / (num_vehicles - 1))
