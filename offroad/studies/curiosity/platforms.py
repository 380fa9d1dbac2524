"""The arms in the platformer, D7: trained without reward on some levels, tested on others."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import offroad
from offroad.envs.platformer.platformer import ACTIONS
from offroad.studies.curiosity.exams import Blind, Policy, Trained, columns, stroll, uniform
from offroad.studies.curiosity.settings import CAMERA, CuriosityBudget, curious, require
from offroad.studies.curiosity.training import DISTANCE, learn
from offroad.studies.study import Arm, Context, Metrics

LEVELS: dict[str, dict[str, Any]] = {
    "train": {"levels": "train"},
    "test": {"levels": "test"},
    "night": {"levels": "test", "look": "night"},
}
"""Where policies are examined: where they were trained, on other levels, and on those in other shades."""


def d7_random(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """Random actions."""
    require(budget.platformer)
    exams = {kind: exam(kind, budget) for kind in LEVELS}
    rows = []
    for seed in seeds:
        policy = uniform(len(ACTIONS), seed)
        rows.append({f"{kind}: distance": run(env, policy, budget, seed)[0] for kind, env in exams.items()})
    return columns(rows)


def runner(name: str, about: str) -> Arm:
    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        require(budget.platformer)
        exams = {kind: exam(kind, budget) for kind in LEVELS}
        rows = []
        for seed in context.each(seeds):
            agent = _learnt("platformer", name, "train", budget, seed, context)
            found = {}
            for kind, env in exams.items():
                distance, frequencies = run(env, Trained(agent, seed), budget, seed)
                blind, _ = run(env, Blind(frequencies, seed), budget, seed)
                found |= {f"{kind}: distance": distance, f"{kind}: blind: distance": blind}
            rows.append(found)
        return columns(rows)

    arm.__doc__ = about
    return arm


def d7_finetuned(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """The runner by ICM goes on learning on the test levels at night, with curiosity alone."""
    require(budget.platformer)
    env, rows = exam("night", budget), []
    for seed in context.each(seeds):
        before = _learnt("platformer", "icm", "train", budget, seed, context)
        agent = _learnt("finetuned", "icm", "night", budget, seed, context, before)
        rows.append({"night: distance": run(env, Trained(agent, seed), budget, seed)[0]})
    return columns(rows)


def d7_scratch(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """ICM from scratch on the test levels at night, for as many decisions."""
    require(budget.platformer)
    env, rows = exam("night", budget), []
    for seed in context.each(seeds):
        agent = _learnt("scratch", "icm", "night", budget, seed, context)
        rows.append({"night: distance": run(env, Trained(agent, seed), budget, seed)[0]})
    return columns(rows)


def _learnt(
    run_name: str, name: str, kind: str, budget: CuriosityBudget, seed: int, context: Context, agent: Any = None
) -> Any:
    env = offroad.make_vec("offroad/Platformer-v0", budget.worlds, **LEVELS[kind])
    if agent is None:
        agent = curious(name, env, CAMERA, seed, extrinsic=0.0)
    return learn(f"{run_name}_{name}", agent, env, budget.platformer, seed, context, DISTANCE)[0]


def exam(kind: str, budget: CuriosityBudget) -> VectorEnv:
    options = {"autoreset_mode": AutoresetMode.DISABLED, **LEVELS[kind]}
    return offroad.make_vec("offroad/Platformer-v0", min(budget.episodes, 16), **options)


def run(env: VectorEnv, policy: Policy, budget: CuriosityBudget, seed: int) -> tuple[float, np.ndarray]:
    """How far a policy gets in an episode (tiles; the flag is at 175.5), and its action frequencies."""
    counts, distance = np.zeros(len(ACTIONS)), []
    for now in stroll(env, policy, budget.episodes, seed):
        np.add.at(counts, now.actions[now.counted], 1)
        distance.extend(now.info["distance"][now.ended])
    return float(np.mean(distance)), counts / counts.sum()
