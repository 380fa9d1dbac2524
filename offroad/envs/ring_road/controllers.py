"""Controllers that people wrote for the automated car, as policies of the ring: observation in, acceleration out.

They are the baselines of the learnt policy, and controllers that a residual policy can start from. All act on any
number of rings at once, and on each automated car of a ring by itself.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from offroad.envs.ring_road.drivers import Driver, named
from offroad.envs.ring_road.ring import CAR, DISTANCE_SCALE, SPEED_SCALE

Speeds = Float[Array, "N automated"]


class Controller(eqx.Module):
    """A policy with a memory: `action, memory = controller(observation, memory)`.

    Observations are those of `RingRoad`, `[N, 3 * automated]`, actions accelerations `[N, automated]` in m/s^2.
    """

    limit: float = 1.0  # m/s^2, bound of the action

    def initial_memory(self, num_envs: int, automated: int = 1) -> PyTree[Array]:
        """What the controller remembers before its first decision; most remember nothing."""
        return ()

    def __call__(
        self, observation: Float[Array, "N seen"], memory: PyTree[Array]
    ) -> tuple[Float[Array, "N automated"], PyTree[Array]]:
        local = observation.reshape(observation.shape[0], -1, 3)
        speed = SPEED_SCALE * local[..., 0]
        lead_speed = speed + SPEED_SCALE * local[..., 1]
        gap = DISTANCE_SCALE * local[..., 2] - CAR
        acceleration, memory = self.acceleration(gap, speed, lead_speed, memory)
        return jnp.clip(acceleration, -self.limit, self.limit), memory

    @abc.abstractmethod
    def acceleration(
        self, gap: Speeds, speed: Speeds, lead_speed: Speeds, memory: PyTree[Array]
    ) -> tuple[Speeds, PyTree[Array]]:
        """Wanted acceleration (m/s^2) from the gap (m), own speed and leader's speed (m/s)."""


class Human(Controller):
    """Drives as a car-following model does: the intelligent driver model unless told otherwise."""

    driver: Driver = named("idm")

    def acceleration(self, gap, speed, lead_speed, memory):
        return self.driver.acceleration(gap, speed, lead_speed), memory


class ConstantSpeed(Controller):
    """Drives at one speed (m/s), whatever its leader does: only the fail-safe keeps it from a collision."""

    desired: float | Float[Array, "N"] = 4.15
    period: float = 0.5  # s between decisions

    def acceleration(self, gap, speed, lead_speed, memory):
        return (_per_ring(self.desired) - speed) / self.period, memory


class ACC(Controller):
    """Adaptive cruise control with a constant time gap (Liang and Peng 1999): feedback of gap and relative speed."""

    headway: float = 1.2  # s
    standstill: float = 2.0  # m
    gap_gain: float = 0.3  # 1/s^2
    speed_gain: float = 0.7  # 1/s

    def acceleration(self, gap, speed, lead_speed, memory):
        wanted = self.standstill + self.headway * speed
        return self.gap_gain * (gap - wanted) + self.speed_gain * (lead_speed - speed), memory


class FollowerStopper(Controller):
    """Holds the desired speed, and falls back to its leader's speed and to a stop as the gap closes.

    The velocity controller of Stern et al. 2018: three bands of the gap, whose borders are parabolas in
    the relative speed. In the third band the command runs from the leader's speed to the desired one, as in the
    article; Flow's code takes the own speed there. `desired` (m/s) may be one number for each ring.
    """

    desired: float | Float[Array, "N"] = 4.15
    period: float = 0.5  # s between decisions

    def acceleration(self, gap, speed, lead_speed, memory):
        desired = _per_ring(self.desired)
        closing = jnp.minimum(lead_speed - speed, 0.0) ** 2
        near, middle, far = (start + closing / (2 * brake) for start, brake in ((4.5, 1.5), (5.25, 1.0), (6.0, 0.5)))
        follow = jnp.minimum(jnp.maximum(lead_speed, 0.0), desired)
        command = jnp.where(
            gap <= near,
            0.0,
            jnp.where(
                gap <= middle,
                follow * (gap - near) / (middle - near),
                jnp.where(gap <= far, follow + (desired - follow) * (gap - middle) / (far - middle), desired),
            ),
        )
        return (command - speed) / self.period, memory


class PISaturation(Controller):
    """Holds its own mean speed of the last 38 s, a little faster with room ahead: Stern et al. 2018."""

    period: float = 0.5  # s between decisions
    window: float = 38.0  # s

    def initial_memory(self, num_envs: int, automated: int = 1) -> PyTree[Array]:
        """The speeds of the window (newest first, so far unknown), and the commanded speed."""
        unknown = jnp.full((num_envs, automated, round(self.window / self.period)), jnp.nan)
        return unknown, jnp.zeros((num_envs, automated))

    def acceleration(self, gap, speed, lead_speed, memory):
        history, command = memory
        first = jnp.isnan(history[..., 0])
        history = jnp.concatenate([speed[..., None], history[..., :-1]], axis=-1)
        command = jnp.where(first, speed, command)
        target = jnp.nanmean(history, axis=-1) + jnp.clip((gap - 7.0) / 23.0, 0.0, 1.0)
        safe = jnp.maximum(2.0 * (lead_speed - speed), 4.0)
        alpha = jnp.clip((gap - safe) / 2.0, 0.0, 1.0)
        beta = 1 - alpha / 2
        command = beta * (alpha * target + (1 - alpha) * lead_speed) + (1 - beta) * command
        return (command - speed) / self.period, (history, command)


def _per_ring(value: float | Float[Array, ""] | Float[Array, "N"]) -> Float[Array, "#N 1"]:
    return jnp.reshape(jnp.asarray(value), (-1, 1))
