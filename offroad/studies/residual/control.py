"""Arms that act: PPO learns to walk in each model and is graded in the full one, which it has not met.

Every arm has the same learner, the same budget and the same leg controller; they differ in what stands for the robot.
Larger budgets have arms that turn, too.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Float
from numpy import ndarray

from offroad import train
from offroad.agents import PPO, Agent
from offroad.agents.ppo import PPOConfig
from offroad.data.spaces import Spaces
from offroad.envs.hamr import HamrFull, HamrSimple
from offroad.envs.hamr.drive import FeedbackPhysics
from offroad.envs.hamr.geometry import REST
from offroad.envs.hamr.hamr import DECISIONS
from offroad.envs.hamr.models import hip_constants
from offroad.models import Randomization, RandomizedVectorEnv, ResidualEnv
from offroad.studies.residual import endtoend
from offroad.studies.residual.robots import Step
from offroad.studies.residual.tables import ResidualBudget, residual_model, trial, whole_robot
from offroad.studies.study import Context, Metrics, NotRun
from offroad.train.collect import HostPolicy

EXAM_SEED = 2_000_000  # of the evaluation, apart from all training seeds
BODY = 45.0  # mm
TORQUE_NOISE = 0.01  # N mm: the paper's N(0, 0.01); the unit is ours
TURNING = 1_000_000  # decisions of a run from which on a budget has turning, too
RANGES = Randomization(inertia=(0.7, 1.3), stiffness=(0.7, 1.3))
SPEED, RATE = "speed in the full model [body lengths/s]", "turning in the full model [rad/s]"
Make = Callable[..., VectorEnv]
"""`make(num_envs, **kwargs)` of the robot that an arm learns in."""


# --- what stands for the robot ---------------------------------------------------------------------------------------


class NetworkHamr(HamrSimple):
    """A network in the place of the simple model's physics."""

    def __init__(self, num_envs: int = 1, *, model: endtoend.WholeRobot, **kwargs: Any):
        super().__init__(num_envs, **kwargs)
        self._physics.close()
        self._physics = NetworkPhysics(endtoend.stepped(model), round(self.dt / self.models[0].opt.timestep), self._law)

    def _command(self, volts: ndarray, angle: ndarray, velocity: ndarray) -> Float[ndarray, "N 8"]:
        return (volts - REST) / REST


class NetworkPhysics(FeedbackPhysics):
    """Rows of the network under controls that a law finds anew in each of them."""

    def __init__(self, step: Step, rows: int, law: Callable[[ndarray, ndarray], ndarray]):
        self._step, self._rows, self._chosen = step, rows, law

    def step(self, state: Float[ndarray, "N S"], control: Float[ndarray, "N A"]) -> None:
        """Advances `state` in place."""
        for _ in range(self._rows):
            state[:] = self._step(state, self._chosen(state, control))

    def close(self) -> None:
        """Nothing is held open."""


def noisy(num_envs: int, *, seed: int, constants: str, **kwargs: Any) -> HamrSimple:
    """The simple model with noise on its hip torques, drawn anew in every physics step."""
    env, random = HamrSimple(num_envs, constants=constants, **kwargs), np.random.default_rng(seed)
    size = TORQUE_NOISE / np.abs(hip_constants(constants).torque) / REST
    env.correct(lambda angle, velocity, u, begun: u + size * random.standard_normal(u.shape))
    return env


def randomised(num_envs: int, *, seed: int, **kwargs: Any) -> VectorEnv:
    return RandomizedVectorEnv(HamrSimple(num_envs, **kwargs), RANGES, seed)


# --- arms ------------------------------------------------------------------------------------------------------------


def simple(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: HamrSimple(worlds, constants="summed", **kwargs)


def projected(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: HamrSimple(worlds, **kwargs)


def noise(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: noisy(worlds, seed=seed, constants="summed", **kwargs)


def randomisation(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: randomised(worlds, seed=seed, constants="summed", **kwargs)


def oracle(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: randomised(worlds, seed=seed, **kwargs)


def linear(seed: int, budget: ResidualBudget, context: Context) -> Make:
    correction = trial(seed, budget, context).tuned
    return lambda worlds, **kwargs: ResidualEnv(HamrSimple(worlds, **kwargs), correction)


def residual(seed: int, budget: ResidualBudget, context: Context) -> Make:
    correction = residual_model(seed, budget, context)
    return lambda worlds, **kwargs: ResidualEnv(HamrSimple(worlds, **kwargs), correction)


def network(seed: int, budget: ResidualBudget, context: Context) -> Make:
    model = whole_robot(seed, budget, context)
    return lambda worlds, **kwargs: NetworkHamr(worlds, model=model, **kwargs)


def full(seed: int, budget: ResidualBudget, context: Context) -> Make:
    return lambda worlds, **kwargs: HamrFull(worlds, **kwargs)


def learner(budget: ResidualBudget) -> PPOConfig:
    """The same for every arm; a rollout is an episode of each world."""
    return PPOConfig(rollout=DECISIONS, minibatch=5 * budget.worlds, initial_std=0.5)


def arm(prepare: Callable[[int, ResidualBudget, Context], Make], about: str, task: str = "walk") -> Any:
    def run(seeds: list[int], budget: ResidualBudget, context: Context) -> Metrics:
        if not budget.decisions or (task == "turn" and budget.decisions < TURNING):
            raise NotRun("this profile has no budget for it")
        rows = []
        for seed in context.each(seeds):
            make = prepare(seed, budget, context)
            env = make(budget.worlds, task=task)
            agent, cost = learn(env, seed, budget, context)
            env.close()
            exam = {"task": task, "autoreset_mode": AutoresetMode.DISABLED}
            learnt_in, with_full = make(budget.rollouts, **exam), HamrFull(budget.rollouts, **exam)
            before, after = (examine(agent, robot, seed, budget.rollouts) for robot in (learnt_in, with_full))
            rows.append(
                {"return in its own model": before["return"], "return in the full model": after["return"]}
                | ({SPEED: after["speed"]} if task == "walk" else {RATE: after["rate"]})
                | {"spread of returns over roll-outs": after["spread"]}
                | cost
            )
        return {name: [row[name] for row in rows] for name in rows[0]}

    run.__doc__ = about
    return run


def learn(env: VectorEnv, seed: int, budget: ResidualBudget, context: Context) -> tuple[Agent, dict[str, float]]:
    """The last policy of a run that goes on where it was interrupted."""

    def say(metrics: dict[str, Any]) -> None:
        gained = metrics.get("episode/return", float("nan"))
        context.progress(f"seed {seed}, return {gained:.1f} in training", metrics["step"] / budget.decisions)

    began = time.process_time()
    run = train.on_policy(
        PPO.create(Spaces.of(env), learner(budget), jax.random.key(seed)),
        env,
        budget.decisions,
        seed=seed,
        out=context.folder / f"seed_{seed}",
        resume=True,
        schedule=train.Schedule(checkpoint=max(budget.decisions // 10, 1), log=DECISIONS * budget.worlds),
        progress=False,
        callback=say,
    ).complete()
    context.keep(
        f"curve_{seed}",
        step=np.array([row["step"] for row in run.history if "episode/return" in row]),
        gained=np.array([row["episode/return"] for row in run.history if "episode/return" in row]),
    )
    return run.agent, {
        "decisions [thousands]": run.step / 1e3,
        "CPU of this call [min]": (time.process_time() - began) / 60,
    }


def examine(agent: Agent, env: VectorEnv, seed: int, rollouts: int) -> dict[str, float]:
    """The mean return of the deterministic policy, its spread over roll-outs, its speed along x, its rate of yaw."""
    act = HostPolicy(agent.spaces.action).bind(agent, None)
    observation, _ = env.reset(seed=EXAM_SEED + rollouts * seed)
    gained, alive = np.zeros(rollouts), np.ones(rollouts, bool)
    distance, turned = np.zeros(rollouts), np.zeros(rollouts)
    for _ in range(DECISIONS):
        observation, reward, terminated, truncated, info = env.step(act(observation, 0, ())[1])
        gained += np.where(alive, reward, 0.0)
        distance += np.where(alive, info["x_velocity"], 0.0)
        turned += np.where(alive, info["yaw_velocity"], 0.0)
        over = terminated | truncated
        alive &= ~over
        if over.any() and alive.any():  # a robot whose physics diverged is started anew and no longer counted
            observation, _ = env.reset(options={"reset_mask": over})
    env.close()
    speed = 1e3 / BODY * distance.mean() / DECISIONS
    rate = float(turned.mean() / DECISIONS)
    return {"return": float(gained.mean()), "spread": float(gained.std()), "speed": float(speed), "rate": rate}


PREPARED: dict[str, tuple[Callable[[int, ResidualBudget, Context], Make], str]] = {
    "simple": (simple, "the simple model, summed springs"),
    "noise": (noise, "the same with noise on its torques"),
    "randomisation": (randomisation, "the same with other inertias and springs in every episode"),
    "projected": (projected, "the simple model, springs projected from the full one"),
    "oracle": (oracle, "that one, randomised: an oracle, as its centre was derived from the full model"),
    "linear": (linear, "the simple model told by linear identification, tuned on windows"),
    "residual": (residual, "the simple model told by the residual model"),
    "network": (network, "the network of the whole robot"),
    "full": (full, "the full model itself: the upper bound"),
}
ARMS = {f"control_{name}": arm(make, f"PPO walks in {about}.") for name, (make, about) in PREPARED.items()}
ARMS |= {f"turn_{name}": arm(make, f"PPO turns in {about}.", "turn") for name, (make, about) in PREPARED.items()}
