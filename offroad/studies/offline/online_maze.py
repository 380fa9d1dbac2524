"""Learning in a maze itself, where only the goal pays: over primitives from a log of that maze, and without them."""

from typing import Any

import jax
from gymnasium.vector import AutoresetMode, VectorEnv

import offroad
from offroad import train
from offroad.agents import SAC, Agent, SACConfig
from offroad.data.spaces import Spaces
from offroad.skills import LatentActions
from offroad.studies.offline.domains import DOMAINS, OfflineBudget, examine
from offroad.studies.offline.methods import primitives_of
from offroad.studies.study import Context, Metrics, NotRun

DOMAIN = DOMAINS["pointmaze-umaze"]
DISCOUNT = 0.995  # for each of the maze's steps
WORLDS = 16


def online(seeds: list[int], budget: OfflineBudget, context: Context) -> Metrics:
    """SAC in the small point maze itself, from nothing."""
    return _scores(seeds, budget, context, primitives=False)


def online_opal(seeds: list[int], budget: OfflineBudget, context: Context) -> Metrics:
    """The same SAC over primitives of ten steps that were learnt from a log of that maze."""
    return _scores(seeds, budget, context, primitives=True)


def _scores(seeds: list[int], budget: OfflineBudget, context: Context, *, primitives: bool) -> Metrics:
    if not any(name.startswith("pointmaze") for name in budget.domains):
        raise NotRun("this profile has no point maze")
    learn = _over_primitives if primitives else _flat
    agents = ((seed, learn(seed, budget, context)) for seed in context.each(seeds))
    returns = [examine(agent, DOMAIN, budget.episodes, seed)[0].returns.mean() for seed, agent in agents]
    return {f"{DOMAIN.name}: score": [100 * float(value) / DOMAIN.best for value in returns]}


def _flat(seed: int, budget: OfflineBudget, context: Context) -> Agent:
    return _trained(offroad.make_vec(DOMAIN.env, WORLDS), 1, seed, budget, context)


def _over_primitives(seed: int, budget: OfflineBudget, context: Context) -> Agent:
    primitives = primitives_of(DOMAIN, seed, budget, context)
    maze = offroad.make_vec(DOMAIN.env, WORLDS, autoreset_mode=AutoresetMode.DISABLED)
    env = LatentActions(maze, primitives, discount=DISCOUNT)
    return primitives.wrap(_trained(env, primitives.config.length, seed, budget, context))


def _trained(env: VectorEnv, length: int, seed: int, budget: OfflineBudget, context: Context) -> Any:
    """With as many of the maze's steps, and updates, whatever the `length` of a decision in steps."""
    config = SACConfig(
        discount=DISCOUNT**length, learning_rate=1e-3, polyak=0.02, hidden=(128, 128), normalise_observation=True
    )
    agent, decisions = SAC.create(Spaces.of(env), config, jax.random.key(seed)), 5 * budget.latent_updates // length

    def report(metrics: dict[str, Any]) -> None:
        context.progress(f"{DOMAIN.name} {seed}", metrics["step"] / decisions)

    try:
        return (
            train.off_policy(
                agent,
                env,
                decisions,
                learning_starts=decisions // 10,
                train_every=640 // length,
                update_ratio=0.05 * length,
                seed=seed,
                out=context.folder / f"{DOMAIN.name}_{seed}",
                resume=True,
                progress=False,
                callback=report,
            )
            .complete()
            .agent
        )
    finally:
        env.close()
