"""Cars on a circular road, of which one or a few are automated: stop-and-go waves appear by themselves.

The setting of Sugiyama et al. 2008 and of Flow's single-lane ring (Wu et al. 2017-2021): 22 human drivers form a jam
that travels backwards; one automated car, which sees only its leader, can dissolve it.
"""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from offroad.envs.ring_road.drivers import ASSERTIVE, Driver, named
from offroad.errors import OffroadError

STEP = 0.1  # seconds, one step of the simulator
CAR = 5.0  # metres
BUNCHING = 50.0  # metres of road left free in front of one car of a bunched start: the seed of the wave
SPEED_SCALE, DISTANCE_SCALE = 15.0, 270.0  # of the observation
TOUCH = -1e-3  # metres; below this gap two cars have collided. Not 0: rounding is no accident
LONGEST_TTC = 100.0  # seconds; a larger time to collision is reported as this


class RingState(NamedTuple):
    """One ring. Car `i + 1` drives in front of car `i`; the first automated car is car 0."""

    gap: Float[Array, "cars"]  # bumper to bumper, to the leader, m
    speed: Float[Array, "cars"]  # m/s
    position: Float[Array, ""]  # of the front of car 0, m, in [0, length)
    length: Float[Array, ""]  # of the ring, m
    seen: Float[Array, "delay automated 3"]  # observations that are on their way, newest first
    drivers: Driver | None  # one set of constants per car; None if all share the environment's
    closest: Float[Array, ""]  # smallest gap of an automated car during the last decision, m
    guards: Float[Array, "2"]  # uses of the numerical guard during the last decision: automated cars, all cars

    @property
    def positions(self) -> Float[Array, "cars"]:
        """Front of each car (m) in [0, length)."""
        ahead = jnp.cumsum(self.gap + CAR)
        return (self.position + jnp.concatenate([jnp.zeros(1), ahead[:-1]])) % self.length


class RingRoad(FuncEnv):
    """The ring as pure functions of one ring's state; `JaxVectorEnv` makes a Gymnasium environment of it.

    Observation, 3 numbers for each automated car: own speed / 15, (leader's speed - own speed) / 15, distance from
    front bumper to front bumper / 270. Action: one acceleration (m/s^2) for each automated car, held for one decision.
    Reward: `speed_weight` * mean speed of all cars / 20 - `action_weight` * mean |action|; 0 on a collision, which ends
    the episode. The functions' `params` are not used: the constructor says what a ring is.

    Args:
        num_vehicles: cars on the ring, humans and automated ones.
        length: of the ring, m: a number, or (shortest, longest) for a whole number of metres drawn for each episode.
        num_automated: automated cars, spread evenly over the ring.
        driver: the humans' car-following model: `"idm"`, `"ovm"`, `"gipps"` or a `Driver`.
        heterogeneity: share by which each person's constants may deviate from the driver's, for instance 0.2.
        noise: standard deviation of the humans' acceleration noise, m/s^2 times sqrt(second), as in Flow.
        failsafe: what keeps an automated car from its leader. `"car_following"`: it accelerates at most as an assertive
            driver would (`ASSERTIVE`). `"guard"`: only the simulator's own limit, which all human cars have too: no
            further in one step than the gap. `"none"`: nothing, cars can collide. Policies learn to exploit the last
            two, see the field `closest` of the diagnostics.
        sim_steps: simulator steps of 0.1 s for each decision.
        max_acceleration: bound of the action, m/s^2.
        delay: decisions by which observations arrive late.
        warmup: seconds for which everybody drives as a human before an episode starts.
        privileged: observe `{"view": the above, "ring": length / 270, mean and standard deviation of all speeds / 15}`,
            for critics: no car can measure what `ring` holds.
        pool: how many rings to warm up; episodes start from one of them, drawn at random, with any car automated.
    """

    def __init__(
        self,
        num_vehicles: int = 22,
        length: float | tuple[float, float] = (220.0, 270.0),
        *,
        num_automated: int = 1,
        driver: Driver | str = "idm",
        heterogeneity: float = 0.0,
        noise: float = 0.2,
        failsafe: str = "car_following",
        sim_steps: int = 5,
        delay: int = 0,
        max_acceleration: float = 1.0,
        speed_weight: float = 4.0,
        action_weight: float = 4.0,
        warmup: float = 75.0,
        pool: int = 1024,
        privileged: bool = False,
    ):
        super().__init__()
        shortest, longest = length if isinstance(length, tuple | list) else (length, length)
        if not 1 <= num_automated <= num_vehicles:
            raise OffroadError(f"num_automated is {num_automated}; expected 1 to num_vehicles = {num_vehicles}")
        if not num_vehicles * CAR + BUNCHING < shortest <= longest:
            raise OffroadError(
                f"length is {length!r}; {num_vehicles} cars of {CAR:g} m with a hole of {BUNCHING:g} m need more than "
                f"{num_vehicles * CAR + BUNCHING:g} m, and the shortest length comes first"
            )
        if failsafe not in ("car_following", "guard", "none"):
            raise OffroadError(f"failsafe is {failsafe!r}; expected 'car_following', 'guard' or 'none'")
        if sim_steps < 1 or delay < 0 or not 0 <= heterogeneity < 1:
            raise OffroadError(
                f"sim_steps, delay and heterogeneity are {sim_steps}, {delay} and {heterogeneity}; "
                "expected at least 1, at least 0, and a share in [0, 1)"
            )
        self.num_vehicles, self.num_automated = num_vehicles, num_automated
        self.shortest, self.longest = float(shortest), float(longest)
        self.driver, self.heterogeneity, self.noise, self.failsafe = named(driver), heterogeneity, noise, failsafe
        self.sim_steps, self.delay, self.period = sim_steps, delay, sim_steps * STEP
        self.max_acceleration = max_acceleration
        self.speed_weight, self.action_weight = speed_weight, action_weight
        self.warmup, self.pool_size = warmup, pool
        self.automated = tuple(k * num_vehicles // num_automated for k in range(num_automated))
        self.is_automated = np.isin(np.arange(num_vehicles), self.automated)
        view = spaces.Box(-np.inf, np.inf, (3 * num_automated,), np.float32)
        ring = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = spaces.Dict({"view": view, "ring": ring}) if privileged else view
        self.privileged = privileged
        self.action_space = spaces.Box(-max_acceleration, max_acceleration, (num_automated,), np.float32)

    # Gymnasium's functional interface

    def initial(self, rng: PRNGKeyArray, params: None = None) -> RingState:
        """A warmed-up ring from the pool, seen from a car drawn at random."""
        which, turn = jax.random.split(rng)
        index = jax.random.randint(which, (), 0, self.pool_size)
        order = (jnp.arange(self.num_vehicles) + jax.random.randint(turn, (), 0, self.num_vehicles)) % self.num_vehicles
        pool = self.pool
        drivers = jax.tree.map(lambda leaf: leaf[index, order] if leaf.ndim == 2 else leaf[index], pool.drivers)
        state = pool._replace(
            gap=pool.gap[index, order],
            speed=pool.speed[index, order],
            position=pool.position[index],
            length=pool.length[index],
            drivers=drivers,
            closest=jnp.float32(jnp.inf),
            guards=jnp.zeros(2),
            seen=jnp.zeros((self.delay + 1, self.num_automated, 3)),
        )
        return state._replace(seen=jnp.broadcast_to(self._view(state), state.seen.shape))

    def transition(
        self, state: RingState, action: Float[Array, "automated"], rng: PRNGKeyArray, params: None = None
    ) -> RingState:
        """One decision: `sim_steps` steps of the simulator under one acceleration, clipped to its bounds."""
        return self.drive(state, action, rng, jnp.array(True))

    def observation(self, state: RingState, rng: PRNGKeyArray, params: None = None) -> Any:
        view = state.seen[-1].reshape(-1)
        if not self.privileged:
            return view
        ring = [state.length / DISTANCE_SCALE, state.speed.mean() / SPEED_SCALE, state.speed.std() / SPEED_SCALE]
        return {"view": view, "ring": jnp.stack(ring)}

    def reward(
        self,
        state: RingState,
        action: Float[Array, "automated"],
        next_state: RingState,
        rng: PRNGKeyArray,
        params: None = None,
    ) -> Float[Array, ""]:
        effort = jnp.abs(jnp.clip(action, -self.max_acceleration, self.max_acceleration)).mean()
        reward = self.speed_weight * next_state.speed.mean() / 20 - self.action_weight * effort
        return jnp.where(self.terminal(next_state, rng), 0.0, reward)

    def terminal(self, state: RingState, rng: PRNGKeyArray, params: None = None) -> Bool[Array, ""]:
        return state.closest < TOUCH

    def state_info(self, state: RingState, params: None = None) -> dict[str, Array]:
        return {"length": state.length, "mean_speed": state.speed.mean(), "speed_std": state.speed.std()}

    def transition_info(
        self, state: RingState, action: Float[Array, "automated"], next_state: RingState, params: None = None
    ) -> dict[str, Array]:
        """Diagnostics of one decision. Gaps and times to collision are those of the automated cars."""
        speed = next_state.speed
        closing = (speed - jnp.roll(speed, -1))[np.array(self.automated)]
        gap = next_state.gap[np.array(self.automated)]
        ttc = jnp.where(closing > 0, gap / jnp.maximum(closing, 1e-6), LONGEST_TTC)
        acceleration = (speed - state.speed) / self.period
        return self.state_info(next_state) | {
            "min_gap": next_state.closest,
            "min_time_to_collision": jnp.clip(ttc, 0.0, LONGEST_TTC).min(),
            "braking": (acceleration < -1.0).sum().astype(jnp.float32),
            "guard_uses_automated": next_state.guards[0],
            "guard_uses": next_state.guards[1],
            "tractive_power": tractive_power(speed, acceleration).mean(),
        }

    # The simulator

    def drive(
        self, state: RingState, action: Float[Array, "automated"], key: PRNGKeyArray, on: Bool[Array, ""]
    ) -> RingState:
        """One decision with the automation switched on, or off: then everybody drives as a human."""
        driver = self.driver if state.drivers is None else state.drivers
        automated = jnp.asarray(self.is_automated) & on
        command = (
            jnp.zeros(self.num_vehicles)
            .at[np.array(self.automated)]
            .set(jnp.clip(action, -self.max_acceleration, self.max_acceleration))
        )
        noise = self.noise * STEP**0.5 * jax.random.normal(key, (self.sim_steps, self.num_vehicles))

        def step(carry, noise):
            gap, speed, travelled, closest, guards = carry
            lead_speed = jnp.roll(speed, -1)
            allowed = command
            if self.failsafe == "car_following":
                allowed = jnp.minimum(command, ASSERTIVE.acceleration(gap, speed, lead_speed))
            human = driver.acceleration(gap, speed, lead_speed) + noise
            wanted = jnp.maximum(speed + jnp.where(automated, allowed, human) * STEP, 0.0)
            limit = jnp.maximum(gap, 0.0) / STEP
            if self.failsafe == "none":
                limit = jnp.where(automated, jnp.inf, limit)
            speed = jnp.minimum(wanted, limit)
            gap = gap + (jnp.roll(speed, -1) - speed) * STEP
            return (gap, speed, travelled + speed[0] * STEP, jnp.minimum(closest, gap), guards + (wanted > limit)), None

        zeros = jnp.zeros(self.num_vehicles)
        start = (state.gap, state.speed, jnp.zeros(()), jnp.full(self.num_vehicles, jnp.inf), zeros)
        (gap, speed, travelled, closest, guards), _ = jax.lax.scan(step, start, noise)
        state = state._replace(
            gap=gap,
            speed=speed,
            position=(state.position + travelled) % state.length,
            closest=jnp.where(self.is_automated, closest, jnp.inf).min(),
            guards=jnp.stack([jnp.where(self.is_automated, guards, 0).sum(), guards.sum()]),
        )
        return state._replace(seen=jnp.concatenate([self._view(state)[None], state.seen[:-1]]))

    def start(self, length: Float[Array, ""], key: PRNGKeyArray, *, bunching: float = BUNCHING) -> RingState:
        """Everybody at rest, equally spaced but for a hole of `bunching` metres in front of the last car."""
        cars = self.num_vehicles
        gap = jnp.full(cars, (length - bunching) / cars - CAR).at[-1].add(bunching)
        drivers = None
        if self.heterogeneity:
            drivers = jax.tree.map(jnp.asarray, self.driver.varied(key, cars, self.heterogeneity))
        state = RingState(
            gap=gap,
            speed=jnp.zeros(cars),
            position=jnp.zeros(()),
            length=length,
            seen=jnp.zeros((self.delay + 1, self.num_automated, 3)),
            drivers=drivers,
            closest=jnp.array(jnp.inf),
            guards=jnp.zeros(2),
        )
        return state._replace(seen=jnp.broadcast_to(self._view(state), state.seen.shape))

    def warmed_up(self, length: Float[Array, ""], key: PRNGKeyArray) -> RingState:
        """A bunched start after `warmup` seconds in which everybody drove as a human."""
        keys = jax.random.split(key, 1 + round(self.warmup / self.period))
        off, nothing = jnp.array(False), jnp.zeros(self.num_automated)

        def step(state, key):
            return self.drive(state, nothing, key, off), None

        return jax.lax.scan(step, self.start(length, keys[0]), keys[1:])[0]

    @cached_property
    def pool(self) -> Any:
        """Warmed-up rings, computed once: a reset in a compiled rollout then costs a look-up, not 75 s of traffic."""
        with jax.ensure_compile_time_eval():
            lengths_key, key = jax.random.split(jax.random.key(0))
            whole = jax.random.randint(lengths_key, (self.pool_size,), int(self.shortest), int(self.longest) + 1)
            lengths = jnp.clip(whole.astype(jnp.float32), self.shortest, self.longest)
            return jax.jit(jax.vmap(self.warmed_up))(lengths, jax.random.split(key, self.pool_size))

    def _view(self, state: RingState) -> Float[Array, "automated 3"]:
        own = np.array(self.automated)
        speed, lead_speed = state.speed[own], jnp.roll(state.speed, -1)[own]
        distance = state.gap[own] + CAR
        scaled = [speed / SPEED_SCALE, (lead_speed - speed) / SPEED_SCALE, distance / DISTANCE_SCALE]
        return jnp.stack(scaled, axis=-1)


def tractive_power(speed: Float[Array, "*cars"], acceleration: Float[Array, "*cars"]) -> Float[Array, "*cars"]:
    """Power at the wheels (W per kg of car), a proxy of fuel: inertia, rolling and air drag, nothing for braking."""
    rolling, drag = 9.81 * 0.005, 0.5 * 1.225 * 0.3 * 2.6 / 1200.0
    return jnp.maximum(acceleration + rolling + drag * speed**2, 0.0) * speed
