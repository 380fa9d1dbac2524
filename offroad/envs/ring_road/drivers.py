"""Car-following models: how a human driver accelerates, given the gap and the two speeds."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from offroad.errors import OffroadError, unknown

# A parameter that all drivers share, or one value per car.
Parameter = float | Float[Array, "*cars"]

SMALLEST_GAP = 1e-3  # metres; the models divide by the gap, and SUMO has the same floor


class Driver(eqx.Module):
    """A car-following model. `personal` names the parameters in which people differ."""

    personal: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def acceleration(
        self, gap: Float[Array, "*cars"], speed: Float[Array, "*cars"], lead_speed: Float[Array, "*cars"]
    ) -> Float[Array, "*cars"]:
        """Acceleration (m/s^2) for the bumper-to-bumper gap (m), the own speed and the leader's speed (m/s)."""

    def varied(self, key: PRNGKeyArray, cars: int, spread: float) -> "Driver":
        """`cars` different people: each personal parameter is uniform within a share `spread` of this driver's."""
        factors = jax.random.uniform(key, (len(self.personal), cars), minval=1 - spread, maxval=1 + spread)
        values = [getattr(self, name) * factor for name, factor in zip(self.personal, factors)]
        return eqx.tree_at(lambda driver: [getattr(driver, name) for name in self.personal], self, values)


class IDM(Driver):
    """The intelligent driver model (Treiber, Hennecke and Helbing 2000), with the constants of Flow's ring."""

    personal: ClassVar[tuple[str, ...]] = ("headway", "accel", "decel")

    headway: Parameter = 1.0  # T, s
    accel: Parameter = 1.0  # a, m/s^2
    decel: Parameter = 1.5  # b, m/s^2, comfortable braking
    standstill: Parameter = 2.0  # s0, m
    desired: Parameter = 30.0  # v0, m/s

    def acceleration(self, gap, speed, lead_speed):
        closing = speed * (speed - lead_speed) / (2 * (self.accel * self.decel) ** 0.5)
        wanted = self.standstill + jnp.maximum(0.0, speed * self.headway + closing)
        crowding = wanted / jnp.maximum(gap, SMALLEST_GAP)
        return self.accel * (1 - (speed / self.desired) ** 4 - crowding**2)


class OVM(Driver):
    """The optimal velocity model (Bando et al. 1995) with a term in the relative speed, as in Flow but for `go`, 15 m
    there.
    """

    personal: ClassVar[tuple[str, ...]] = ("gain", "coupling", "go")

    gain: Parameter = 1.0  # 1/s, towards the optimal velocity
    coupling: Parameter = 1.0  # 1/s, towards the leader's speed
    stop: Parameter = 2.0  # m, the gap at which the optimal velocity is zero
    go: Parameter = 35.0  # m, the gap from which it is the desired speed
    desired: Parameter = 30.0  # m/s

    def acceleration(self, gap, speed, lead_speed):
        share = jnp.clip((gap - self.stop) / (self.go - self.stop), 0.0, 1.0)
        optimal = self.desired / 2 * (1 - jnp.cos(jnp.pi * share))
        return self.gain * (optimal - speed) + self.coupling * (lead_speed - speed)


class Gipps(Driver):
    """Gipps's model (1981): the fastest speed from which one could still stop behind a leader that brakes hard.

    The model sets the speed one reaction time later; we take the constant acceleration that leads there.
    """

    personal: ClassVar[tuple[str, ...]] = ("reaction", "accel", "decel")

    reaction: Parameter = 1.0  # tau, s
    accel: Parameter = 1.5  # m/s^2
    decel: Parameter = 1.5  # b, m/s^2
    lead_decel: Parameter = 1.5  # what one believes of the leader's brakes
    standstill: Parameter = 2.0  # m
    desired: Parameter = 30.0  # m/s

    def acceleration(self, gap, speed, lead_speed):
        share = speed / self.desired
        free = speed + 2.5 * self.accel * self.reaction * (1 - share) * jnp.sqrt(0.025 + share)
        brake = self.decel * self.reaction
        room = 2 * (gap - self.standstill) - speed * self.reaction + lead_speed**2 / self.lead_decel
        safe = jnp.sqrt(jnp.maximum(brake**2 + self.decel * room, 0.0)) - brake
        return (jnp.minimum(free, jnp.maximum(safe, 0.0)) - speed) / self.reaction


DRIVERS: dict[str, type[Driver]] = {"idm": IDM, "ovm": OVM, "gipps": Gipps}

# A car that may drive closer and brake harder than people do, and still never hits its leader: the limit that SUMO's
# safe-speed check puts on a commanded car of Flow's ring.
ASSERTIVE = IDM(headway=1.0, accel=2.6, decel=4.5, standstill=2.5)


def named(driver: Driver | str) -> Driver:
    """The driver itself, or the model of that name with its default constants."""
    if isinstance(driver, Driver):
        return driver
    if driver not in DRIVERS:
        raise unknown("driver", driver, DRIVERS)
    return DRIVERS[driver]()


def equilibrium_speed(driver: Driver, gap: float) -> float:
    """The speed (m/s) at which the driver keeps this gap (m) behind a leader of the same speed: uniform flow."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        accelerates = driver.acceleration(jnp.float32(gap), jnp.float32(middle), jnp.float32(middle)) > 0
        low, high = (middle, high) if accelerates else (low, middle)
    if low == 0.0:
        raise OffroadError(f"at a gap of {gap:.2f} m this driver does not move; the ring is too short for its cars")
    return low
