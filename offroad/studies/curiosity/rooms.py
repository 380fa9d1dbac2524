"""The arms in MiniGrid: D5 when not to explore, D6 a television with a remote control."""

from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import offroad
from offroad.agents import Agent
from offroad.data.spaces import Spaces
from offroad.envs.television import Television
from offroad.rewards import EIPO, EIPOConfig, TwoValuePPO, TwoValuePPOConfig
from offroad.studies.curiosity import settings
from offroad.studies.curiosity.exams import Blind, Policy, Trained, columns, stroll, uniform
from offroad.studies.curiosity.settings import GRID, CuriosityBudget, bonus, curious, ppo_config, require
from offroad.studies.curiosity.training import learn
from offroad.studies.study import Arm, Context, Metrics

EASY, HARD = "Empty-8x8", "DoorKey-8x8"
WEIGHTS = (0.0, 0.01, 0.1, 1.0)  # of the bonus, beside a task whose weight is 1
TELEVISION = "Empty-8x8"  # where the only thing that cannot be foretold is on the television
IDLE = 6  # MiniGrid's action that does nothing


def rooms(task: str, worlds: int, **options: Any) -> VectorEnv:
    return offroad.make_vec(f"offroad/MiniGrid-{task}-v0", worlds, **options)


# --- D5


def fixed_weight(weight: float) -> Arm:
    def create(env: VectorEnv, seed: int) -> Agent:
        config = TwoValuePPOConfig(ppo_config(env, GRID), extrinsic=1.0, intrinsic=weight, warm_up=settings.WARM_UP)
        reward = bonus("rnd", env, GRID, seed)
        return TwoValuePPO.create(Spaces.of(env), config, jax.random.key(seed), reward=reward)

    return _balanced(f"A fixed weight of the bonus (RND): {weight:g}." if weight else "No bonus.", create)


def eipo() -> Arm:
    def create(env: VectorEnv, seed: int) -> Agent:
        config = EIPOConfig(ppo_config(env, GRID), warm_up=settings.WARM_UP)
        reward = bonus("rnd", env, GRID, seed)
        return EIPO.create(Spaces.of(env), config, jax.random.key(seed), reward=reward)

    return _balanced("EIPO, which weighs the same bonus by itself.", create)


def _balanced(about: str, create: Any) -> Arm:
    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        require(budget.balance, "minigrid", "minigrid")
        rows = []
        for seed in context.each(seeds):
            found = {}
            for kind, task in context.each((("easy", EASY), ("hard", HARD))):
                env = rooms(task, budget.worlds)
                agent, _ = learn(f"{context.folder.name}_{kind}", create(env, seed), env, budget.balance, seed, context)
                scores = solve(agent.for_task() if isinstance(agent, EIPO) else agent, task, budget.episodes, seed)
                found |= {f"{kind}: {name}": value for name, value in scores.items()}
            rows.append(found)
        return columns(rows)

    arm.__doc__ = about
    return arm


def solve(agent: Agent, task: str, episodes: int, seed: int) -> dict[str, float]:
    """MiniGrid pays 1 - 0.9 x the share of the time limit that it took."""
    env = rooms(task, min(episodes, 16), autoreset_mode=AutoresetMode.DISABLED)
    returns = [r for now in stroll(env, Trained(agent, seed), episodes, seed) for r in now.rewards[now.ended]]
    return {"return": float(np.mean(returns)), "success": float(np.mean(np.array(returns) > 0))}


# --- D6


def television(worlds: int, **options: Any) -> Television:
    return Television(rooms(TELEVISION, worlds, **options), "switch", idle=IDLE)


def d6_random(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """Random actions, the switch among them."""
    require(budget.television, "minigrid", "minigrid")
    actions = television(1).switch + 1
    return columns([watch(uniform(actions, seed), budget.episodes, seed)[0] for seed in seeds])


def viewer(name: str, about: str) -> Arm:
    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        require(budget.television, "minigrid", "minigrid")
        rows = []
        for seed in context.each(seeds):
            env = television(budget.worlds)
            agent = curious(name, env, GRID, seed, extrinsic=0.0)
            agent, _ = learn(f"television_{name}", agent, env, budget.television, seed, context)
            found, frequencies = watch(Trained(agent, seed), budget.episodes, seed)
            blind, _ = watch(Blind(frequencies, seed), budget.episodes, seed)
            rows.append(found | {"blind: tiles per episode": blind["tiles per episode"]})
        return columns(rows)

    arm.__doc__ = about
    return arm


def watch(policy: Policy, episodes: int, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """How much of its time a policy switches, how many tiles it is seen on in an episode, and its frequencies."""
    env = television(min(episodes, 16), autoreset_mode=AutoresetMode.DISABLED)
    counts = np.zeros(env.switch + 1)
    places: list[set[tuple[int, int]]] = [set() for _ in range(env.num_envs)]
    tiles = []
    for now in stroll(env, policy, episodes, seed):
        np.add.at(counts, now.actions[now.counted], 1)
        for world in np.flatnonzero(now.counted):
            places[world].add((int(now.info["x"][world]), int(now.info["y"][world])))
        for world in np.flatnonzero(now.ended):
            tiles.append(len(places[world]))
            places[world] = set()
    share = counts / counts.sum()
    return {"share of switching": float(share[env.switch]), "tiles per episode": float(np.mean(tiles))}, share
