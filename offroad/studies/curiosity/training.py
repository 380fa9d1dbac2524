"""One training run, which continues if it was interrupted, and which arms that need the same one share."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import TransformReward

import offroad
from offroad import train
from offroad.agents import Agent
from offroad.rewards import IntrinsicReward
from offroad.studies.curiosity import settings
from offroad.studies.curiosity.settings import ROLLOUT, CuriosityBudget, Eyes, bonus, curious, random_rollouts
from offroad.studies.study import Context

CELLS, RETURN, DISTANCE = "coverage/cells", "episode/return", "env/distance"
"""What is drawn of a run, as the trainers log it."""


def maze(budget: CuriosityBudget, **options: Any) -> closing[VectorEnv]:
    """Worlds of the Doom maze to learn in; each is a process, which ends with the `with` block."""
    return closing(offroad.make_vec("offroad/DoomMaze-v0", budget.worlds, **options))


def learn(
    name: str, agent: Agent, env: VectorEnv, decisions: int, seed: int, context: Context, curve: str = RETURN
) -> tuple[Any, dict[str, float]]:
    """The agent at the end of the run `name`, and what it cost. Leaves `curve` in the results.

    The run lies beside the arms' folders: whoever asks for the same name and seed gets the same run.
    """

    def report(metrics: dict[str, Any]) -> None:
        shown = f", {curve} {metrics[curve]:.2f}" if curve in metrics else ""
        context.progress(f"{name}, seed {seed}{shown}", metrics["step"] / decisions)

    run = train.on_policy(
        agent,
        env,
        decisions,
        seed=seed,
        out=context.folder.parent / "runs" / f"{name}_{seed}",
        resume=True,
        schedule=train.Schedule(checkpoint=max(decisions // 10, 1), log=max(decisions // 200, 1)),
        progress=False,
        callback=report,
    )
    if run.interrupted:
        raise KeyboardInterrupt  # the policy of half a run is not what was asked for
    rows = [row for row in run.history if curve in row]
    values = [row[curve] for row in rows]
    context.curve(f"{name}_{seed}", [row["step"] for row in rows], values)
    return run.agent, {
        "decisions [thousands]": run.step / 1e3,
        "mean of the curve": float(np.mean(values)) if values else 0.0,  # no episode ended
    }


def taught(env: VectorEnv, eyes: Eyes, seed: int) -> dict[str, IntrinsicReward]:
    """Every bonus as a policy would first be paid by it: after the warm-up, on the same random actions."""
    rollouts, key = random_rollouts(env, eyes, seed), jax.random.key(seed)
    update = jax.jit(lambda reward, now, key: reward.update(now.transitions, now.mask, key)[0])
    rewards = {name: bonus(name, env, eyes, seed) for name in settings.BONUSES}
    for i, rollout in enumerate(rollouts):
        rewards = {name: update(reward, rollout, jax.random.fold_in(key, i)) for name, reward in rewards.items()}
    return rewards


def differing(make: Callable[[], closing[VectorEnv]], eyes: Eyes, seed: int) -> dict[str, float]:
    """ICM without reward learns beside a reward, and beside a thousand times that reward. **Returns:** how many of the
    agent's arrays differ then, and how much reward there was to be met."""
    agents, met = [], 0.0
    for factor in (1.0, 1000.0):
        with make() as bare:
            env = TransformReward(bare, lambda reward: factor * reward)  # noqa: B023
            decisions = (settings.WARM_UP + 3) * ROLLOUT * env.num_envs
            agent = curious("icm", env, eyes, seed, extrinsic=0.0)
            run = train.on_policy(agent, env, decisions, seed=seed, progress=False)
        if run.interrupted:
            raise KeyboardInterrupt
        agents.append([np.asarray(leaf) for leaf in jax.tree.leaves(run.agent)])
        met = sum(row.get("episode/return", 0.0) * row["episode/count"] for row in run.history) / factor
    return {"arrays that differ": float(sum(a.tobytes() != b.tobytes() for a, b in zip(*agents))), "reward met": met}
