"""What is measured, on tasks and seeds apart from those of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from offroad.agents import Agent
from offroad.envs.stack import Stack
from offroad.studies.study import Budget, Metrics
from offroad.train.collect import HostPolicy

EXAM_SEED = 2_000_000  # of the evaluation, apart from all training seeds
Act = Callable[[Any], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class StackingBudget(Budget):
    blocks: int  # of the tallest tower of training
    decisions: int  # of each training run, over all of its worlds; 0 leaves reinforcement learning out
    ablation_seeds: int  # of the arms beside the first
    short_steps: int  # of the run with decisions of 40 ms
    episodes: int  # evaluated for each task and seed
    cloning_updates: int


@dataclass(frozen=True)
class Exam:
    """A task of the evaluation."""

    name: str
    blocks: int
    task: str = "tower"


def seen(budget: StackingBudget) -> list[Exam]:
    return [Exam(f"tower of {n}", n) for n in range(1, budget.blocks + 1)]


def unseen(budget: StackingBudget) -> list[Exam]:
    """Tasks that no training shows, for networks that take any number of blocks."""
    taller = [Exam(f"tower of {n}", n) for n in (budget.blocks + 1, budget.blocks + 2)]
    return [*taller, Exam("two towers of 2", 4, "towers"), Exam("pyramid of 3", 3, "pyramid")]


def examine(act: Act, exam: Exam, slots: int, episodes: int, seed: int, decision: str = "long") -> dict[str, float]:
    """Success at the end of an episode, and still a second later; loosely, as in the paper; blocks in place."""
    worlds = min(episodes, 100)
    env = Stack(
        worlds,
        blocks=max(slots, exam.blocks),
        decision=decision,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    rows = []
    for batch in range(-(-episodes // worlds)):
        options = {"blocks": exam.blocks, "task": exam.task}
        observation, info = env.reset(seed=EXAM_SEED + 100_000 * seed + worlds * batch, options=options)
        for _ in range(env.decision.horizon * exam.blocks):
            observation, _, _, _, info = env.step(act(observation))
        rows.append((env.stands(1.0).mean(), info["success_loose"].mean(), info["placed"].mean()))
    strict, loose, placed = np.mean(rows, axis=0)
    return {
        f"{exam.name}: success": float(strict),
        f"{exam.name}: within 5 cm": float(loose),
        f"{exam.name}: blocks in place": float(placed),
    }


def greedy(agent: Agent) -> Act:
    policy = HostPolicy(agent.spaces.action).bind(agent, None)
    return lambda observation: policy(observation, 0, ())[1]


def graded(
    act: Act, which: Sequence[Exam], budget: StackingBudget, seed: int, decision: str = "long"
) -> dict[str, float]:
    found: dict[str, float] = {}
    for exam in which:
        found |= examine(act, exam, budget.blocks, budget.episodes, seed, decision)
    return found


def columns(rows: list[dict[str, float]]) -> Metrics:
    """Metrics with a value for each seed."""
    return {name: [row[name] for row in rows] for name in rows[0]}
