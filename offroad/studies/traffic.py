"""One automated car dissolves a traffic jam."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offroad import train
from offroad.agents import PPO, Agent, PPOConfig, ResidualPolicy, stacked
from offroad.data.spaces import Spaces
from offroad.envs import ring_road
from offroad.envs.ring_road.controllers import Controller, FollowerStopper, PISaturation
from offroad.envs.ring_road.ring import RingRoad
from offroad.envs.ring_road.simulation import (
    Trajectory,
    flow_bound,
    simulate,
    summary,
    uniform_flow,
    wave_speed,
)
from offroad.report import plots, video
from offroad.studies.study import (
    Budget,
    Claim,
    Context,
    Figure,
    Published,
    Results,
    Study,
    at_least,
    at_most,
)

SUGIYAMA = "Sugiyama et al. 2008, New Journal of Physics 10, 033001"
STERN = "Stern et al. 2018, Transportation Research C 89, arXiv 1705.01693"
FLOW = "Wu et al. 2017/2021 (Flow), arXiv 1710.05465"

SEEN = (220.0, 230.0, 240.0, 250.0, 260.0, 270.0)  # ring lengths of training, m
UNSEEN = (210.0, 280.0, 290.0)
LENGTHS = tuple(sorted(SEEN + UNSEEN))
SECONDS, WINDOW = 300.0, 100.0  # each ring runs so long; the last part is measured
PICTURE = 260.0  # m, the ring of the pictures: that of Stern et al.'s experiment
TEST_KEY = 20_000  # noise of the evaluation, apart from all training seeds


@dataclass(frozen=True, kw_only=True)
class TrafficBudget(Budget):
    decisions: int  # of each training run, 0.5 s each, summed over its rings
    rings: int  # evaluated for each length and seed
    sumo_seconds: float  # on each of three rings; 0 leaves SUMO out


class Learnt(eqx.Module):
    """A trained agent where a classical controller goes: its deterministic policy."""

    agent: Agent

    def initial_memory(self, num_envs: int, automated: int = 1) -> Any:
        return self.agent.initial_memory(num_envs)

    def __call__(self, observation: Float[Array, "N view"], memory: Any) -> tuple[Float[Array, "N automated"], Any]:
        action, memory = self.agent.act(observation, None, memory)
        return jnp.clip(action, -1.0, 1.0), memory


# --- measuring


def drive(ring: RingRoad, controller: Any, seed: int, rings: int, lengths: tuple[float, ...] = LENGTHS) -> Trajectory:
    """Every length `rings` times, with noise of its own for each ring and seed."""
    repeated = np.repeat(np.asarray(lengths, np.float32), rings)
    return simulate(ring, controller, repeated, jax.random.key(TEST_KEY + seed), SECONDS)


def measures(trajectory: Trajectory) -> dict[str, float]:
    """The numbers of the report. Mean speed alone hides stop-and-go and tailgating."""
    whole, end = summary(trajectory), summary(trajectory.between(SECONDS - WINDOW))
    attainable = np.array([uniform_flow(float(length)) for length in trajectory.length])
    share = end["mean_speed"] / attainable
    seen = np.isin(trajectory.length, SEEN)
    return {
        "share of uniform flow, seen lengths": share[seen].mean(),
        "share of uniform flow, unseen lengths": share[~seen].mean(),
        "worst share, seen lengths": min(share[trajectory.length == x].mean() for x in SEEN),
        "speed at 260 m [m/s]": end["mean_speed"][trajectory.length == 260].mean(),
        "speed std across cars, seen lengths [m/s]": end["speed_std"][seen].mean(),
        "smallest gap of the automated car [m]": whole["min_gap"].min(),
        "braking per km [s]": end["braking_per_km"][seen].mean(),
        "energy [J/(kg m)]": end["energy_per_metre"][seen].mean(),
    }


def by_length(trajectory: Trajectory) -> Float[np.ndarray, " lengths"]:
    speed = summary(trajectory.between(SECONDS - WINDOW))["mean_speed"]
    return np.array([speed[trajectory.length == x].mean() for x in LENGTHS])


def evaluated(
    ring: RingRoad, controllers: list[Any], seeds: list[int], budget: TrafficBudget, context: Context
) -> dict[str, list[float]]:
    """All measures of one controller a seed; keeps the speed at each length, and a trajectory for the pictures."""
    rows, speeds = [], []
    for seed, controller in zip(seeds, controllers):
        trajectory = drive(ring, controller, seed, budget.rings)
        rows.append(measures(trajectory))
        speeds.append(by_length(trajectory))
        context.progress(f"seed {seed} evaluated", (len(rows)) / len(seeds))
    context.keep("speed_by_length", length=np.array(LENGTHS), speed=np.array(speeds))
    return {name: [row[name] for row in rows] for name in rows[0]}


def native(**options: Any) -> RingRoad:
    """The ring as controllers that command speeds expect it: ten commands a second, brakes and engine of a real car."""
    return RingRoad(sim_steps=1, max_acceleration=4.5, **options)


# --- the arms


def human(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """AV off: 22 human drivers (intelligent driver model), nobody automated."""
    found = evaluated(RingRoad(), [None] * len(seeds), seeds, budget, context)
    found.pop("smallest gap of the automated car [m]")
    jams = [
        simulate(RingRoad(warmup=0), None, np.full(8, 230.0, np.float32), jax.random.key(TEST_KEY + s), 600.0, start="bunched")
        for s in seeds
    ]
    found["speed of the formed jam [km/h]"] = [3.6 * wave_speed(t.between(400)).mean() for t in jams]
    starts = [
        simulate(RingRoad(warmup=0), None, np.full(8, 230.0, np.float32), jax.random.key(TEST_KEY + s), 200.0, start="uniform")
        for s in seeds
    ]
    found["speed of the first small wave [km/h]"] = [3.6 * wave_speed(t.between(60, 200)).mean() for t in starts]
    return found


def follower_stopper(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """FollowerStopper at 4.15 m/s, one speed for every density."""
    return evaluated(native(), [FollowerStopper(desired=4.15, period=0.1, limit=4.5)] * len(seeds), seeds, budget, context)


def follower_stopper_told(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """FollowerStopper that is told the attainable speed of each ring (privileged)."""
    told = np.repeat([uniform_flow(x) for x in LENGTHS], budget.rings).astype(np.float32)
    controller = FollowerStopper(desired=jnp.asarray(told), period=0.1, limit=4.5)
    return evaluated(native(), [controller] * len(seeds), seeds, budget, context)


def pi_saturation(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """PI with saturation: holds its own mean speed of the last 38 s."""
    return evaluated(native(), [PISaturation(period=0.1, limit=4.5)] * len(seeds), seeds, budget, context)


# What every learning arm shares; tuned on training seeds 100-102, never on the evaluation's noise.
CONFIG = PPOConfig(
    rollout=256,
    minibatch=8192,
    epochs=6,
    learning_rate=1e-3,
    discount=0.997,  # 0.5 s a decision: looks 170 s ahead, more than three laps of a wave
    gae=0.98,
    hidden=(32, 32),
    critic_hidden=(64, 64),
    initial_std=0.5,
    normalise_reward=False,
)
RINGS = 256  # simulated side by side in training


def learn(
    name: str, make: Callable[[Spaces, jax.Array], Agent], ring: dict[str, Any], seeds: list[int], budget: TrafficBudget,
    context: Context,
) -> list[Agent]:
    """One agent a seed, all trained at once in one compiled loop; keeps the learning curve."""  # fmt: skip
    env = gym.make_vec("offroad/RingRoad-v0", RINGS, vectorization_mode="vector_entry_point", **ring)
    spaces = Spaces.of(env)
    agents = stacked([make(spaces, jax.random.key(seed)) for seed in seeds])
    run = train.on_policy(agents, env, budget.decisions, seed=seeds, progress=False, on_chunk=lambda done: context.progress(
        f"{done:,} of {budget.decisions:,} decisions", 0.9 * done / budget.decisions
    ))  # fmt: skip
    curve = [(row["step"], row["episode/return"]) for row in run.history if "episode/return" in row]
    context.keep("curve", step=np.array([s for s, _ in curve]), score=np.array([r for _, r in curve]))
    return [jax.tree.map(lambda x: x[i], run.agent) for i in range(len(seeds))]


def from_scratch(spaces: Spaces, key: jax.Array) -> Agent:
    return PPO.create(spaces, CONFIG, key)


def ppo(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """RL: PPO from its three local numbers, held by the fail-safe of a car-following model."""
    agents = context.once("ppo", lambda: learn("ppo", from_scratch, {}, seeds, budget, context))
    picture = [
        simulate(RingRoad(), Learnt(agents[0]), np.array([PICTURE]), jax.random.key(TEST_KEY), 600.0, engage=e)
        for e in (300.0, 1e9)
    ]
    for name, t in zip(("on", "off"), picture):
        context.keep(name, position=t.position[:, 0], speed=t.speed[:, 0], time=t.time)
    return evaluated(RingRoad(), [Learnt(agent) for agent in agents], seeds, budget, context)


def residual(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """RL that improves an existing solution: PPO corrects a FollowerStopper at 4.15 m/s."""

    def make(spaces: Spaces, key: jax.Array) -> Agent:
        return ResidualPolicy.create(spaces, CONFIG, key, learner=PPO, base=FollowerStopper(desired=4.15))

    agents = learn("residual", make, {}, seeds, budget, context)
    return evaluated(RingRoad(), [Learnt(agent) for agent in agents], seeds, budget, context)


def ppo_without_failsafe(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """Reward hacking: the same PPO where only the simulator's numerical guard prevents a collision."""
    agents = learn("ppo_without_failsafe", from_scratch, {"failsafe": "guard"}, seeds, budget, context)
    found = evaluated(RingRoad(failsafe="guard"), [Learnt(a) for a in agents], seeds, budget, context)
    bare = [drive(RingRoad(failsafe="none"), Learnt(a), s, budget.rings) for s, a in zip(seeds, agents)]
    found["smallest gap without the guard [m]"] = [float(t.closest.min()) for t in bare]
    return found


def ppo_in_sumo(seeds: list[int], budget: TrafficBudget, context: Context) -> dict[str, list[float]]:
    """The weights of the arm `ppo` drive in SUMO, among its own drivers, with its own safety checks."""
    agents = context.once("ppo", lambda: learn("ppo", from_scratch, {}, seeds, budget, context))
    rows = []
    for agent in agents:
        act = jax.jit(lambda o, agent=agent: Learnt(agent)(o, ())[0])
        row = {}
        for length in (230.0, 260.0, 290.0):
            env = ring_road.SumoRing(length=length)
            try:
                observation, _ = env.reset(seed=0)
                speeds, gaps, collided = [], [], False
                for _ in range(round(budget.sumo_seconds / 0.5)):
                    action = np.asarray(act(observation[None]))[0]
                    observation, _, terminated, _, info = env.step(action)
                    speeds.append(info["mean_speed"])
                    gaps.append(info["min_gap"])
                    collided |= terminated
            finally:
                env.close()
            context.progress(f"SUMO, {length:.0f} m")
            row[f"speed at {length:.0f} m [m/s]"] = float(np.mean(speeds[-round(WINDOW / 0.5) :]))
            row["smallest gap of the automated car [m]"] = min(row.get("smallest gap of the automated car [m]", 99.0), min(gaps))
            row["collisions"] = row.get("collisions", 0.0) + float(collided)
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}
