"""The arms in the Doom maze: D1 coverage without reward, D2 starts, D3 noise, D4 textures."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offroad.agents import PPO, Agent
from offroad.agents.ppo import make_optimiser
from offroad.envs.doom import ACTIONS
from offroad.nets.normalise import ReturnNorm
from offroad.rewards import Curious
from offroad.rewards.diagnostics import rank_on_episodes
from offroad.studies.curiosity.claims import CELLS as CELLS_SEEN
from offroad.studies.curiosity.claims import LEAD
from offroad.studies.curiosity.exams import (
    Blind,
    Journey,
    Trained,
    Wanderer,
    columns,
    explore,
    record,
    uniform,
)
from offroad.studies.curiosity.rooms import EASY, rooms
from offroad.studies.curiosity.settings import CAMERA, GRID, CuriosityBudget, curious, ppo, require
from offroad.studies.curiosity.training import CELLS, differing, learn, maze, taught
from offroad.studies.study import Arm, Context, Metrics

PLACES: Mapping[str, dict[str, Any]] = {
    "home": {"start": "sparse", "actions": "macro"},
    "elsewhere": {"start": "very-sparse", "actions": "macro", "textures": "train"},
    "held-out": {"start": "very-sparse", "actions": "macro", "textures": "held-out"},
    "paper": {"start": "sparse", "actions": "paper"},
    "dense": {"start": "dense", "actions": "paper"},
}
"""Where D1 and D4 explore. The bonus was chosen at home, in the prototype."""
EXTRINSIC, INTRINSIC = 1.0, 0.1  # weights where there is a reward: the vest is worth more than a walk
NOISE = 0.4  # share of the view, as in the paper
RECURRENT = 256  # width of the policy's memory


LADDER = {
    "plain": ("PPO; the bonus (ICM) has weight 0", "icm", 0.0),
    "icm": ("PPO and ICM", "icm", INTRINSIC),
    "rnd": ("PPO and RND", "rnd", INTRINSIC),
    "reachability": ("PPO and reachability", "reachability", INTRINSIC),
}
"""What climbs the ladder of starts: about, bonus, its weight."""


@dataclass(frozen=True)
class Explorer:
    """A method of D1, and where it is trained and examined. `bonus` is one of `BONUSES`, or:

    `"cells"`, the ceiling, which is paid for what no agent can know; `"nothing"`.
    """

    about: str
    bonus: str
    place: str = "home"
    recurrent: bool = False
    main: bool = False  # with all seeds


EXPLORERS = {
    "d1_ceiling": Explorer("PPO, paid for each true cell that is new in its episode.", "cells", main=True),
    "d1_nothing": Explorer("PPO without any reward.", "nothing"),
    "d1_reachability": Explorer("Reachability: a memory of places for each episode.", "reachability", main=True),
    "d1_elsewhere": Explorer(
        "The same, where its settings were not chosen: another start, other textures.", "reachability", "elsewhere",
        main=True,
    ),
    "d1_icm": Explorer("ICM: prediction error in features of an inverse model.", "icm", main=True),
    "d1_rnd": Explorer("Random network distillation.", "rnd", main=True),
    "d1_icm_pixels": Explorer("Prediction error in pixels.", "icm_pixels"),
    "d1_icm_random": Explorer("Prediction error in fixed random features.", "icm_random"),
    "d1_disagreement": Explorer("Disagreement of an ensemble of forward models.", "disagreement", main=True),
    "d1_e3b": Explorer("Episodic novelty in features of an inverse model.", "e3b"),
    "d1_icm_paper": Explorer("ICM with a recurrent policy and the paper's actions.", "icm", "paper", recurrent=True),
    "d1_icm_dense": Explorer("The same from any of 17 starts.", "icm", "dense", recurrent=True),
}  # fmt: skip


def d1_random(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """Random actions in every place, with the actions and the repeat of the methods there."""
    require(budget.coverage, "doom", "vizdoom")
    rows = []
    for seed in seeds:
        found = {}
        for place, options in PLACES.items():
            context.progress(f"random, {place}, seed {seed}")
            journey = explore(_uniform(options, seed), options, budget.episodes, seed)
            found |= {f"{place}: {name}": value for name, value in journey.metrics().items()}
            if place == "home" and seed == seeds[0]:
                _keep_map(context, random=journey)
        rows.append(found)
    return columns(rows)


def d1_ranking(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """No training: what every bonus, taught by random actions, would pay for wandering, circling and spinning."""
    require(budget.coverage, "doom", "vizdoom")
    options, forward_left, left = PLACES["home"], 1, 3
    once = np.eye(len(ACTIONS["macro"][1]))
    rows = []
    for seed in seeds:
        context.progress(f"recording, seed {seed}")
        policies = {
            "random": _uniform(options, seed),
            "wandering": Wanderer(seed),
            "circling": Blind(once[forward_left], seed),
            "spinning": Blind(once[left], seed),
        }
        found = {name: record(policy, options, min(budget.episodes, 16), seed) for name, policy in policies.items()}
        with maze(budget, **options) as env:
            table = rank_on_episodes(taught(env, CAMERA, seed), {name: steps for name, (steps, _) in found.items()})
        row = {f"{name}: {CELLS_SEEN}": cells for name, (_, cells) in found.items()}
        rows.append(row | {f"{name}: {LEAD}": paid["wandering"] - max(paid["circling"], paid["spinning"])
                           for name, paid in table.items()})  # fmt: skip
    return columns(rows)


def explorer(method: Explorer) -> Arm:
    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        decisions = budget.recurrent if method.recurrent else budget.coverage
        require(decisions, "doom", "vizdoom")
        context.seeds = seeds if method.main else seeds[: budget.ablation_seeds]
        rows = []
        for seed in context.each(context.seeds):
            agent, cost = _without_reward(method, decisions, seed, budget, context)
            rows.append(_graded(agent, method.place, seed, budget, context) | cost)
        return columns(rows)

    arm.__doc__ = method.about
    return arm


def d1_scaled(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """ICM without reward beside a reward and beside a thousand times that reward (in MiniGrid if there is no maze)."""
    if budget.coverage:
        require(budget.coverage, "doom", "vizdoom")
        options = PLACES["home"] | {"reward": "cells"}
        return columns([differing(lambda: maze(budget, **options), CAMERA, seed) for seed in seeds])
    require(budget.balance, "minigrid", "minigrid")
    return columns([differing(lambda: closing(rooms(EASY, budget.worlds)), GRID, seed) for seed in seeds])


def rung(method: str, start: int) -> Arm:
    """A method of the ladder D2, trained from one start with sparse reward."""
    about, bonus, intrinsic = LADDER[method]

    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        require(budget.ladder, "doom", "vizdoom")
        options = {"start": start, "actions": "macro"}
        run = f"d2_{method}_{start}"
        each = context.each(seeds)
        return {"success": [_rewarded(run, bonus, intrinsic, options, seed, budget, context) for seed in each]}

    arm.__doc__ = f"{about}, from start {start}."
    return arm


def noise(name: str, about: str, bonus: str) -> Arm:
    def arm(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
        require(budget.ladder, "doom", "vizdoom")
        rows = []
        for seed in context.each(seeds):
            found = {}
            for kind, share in context.each((("clean", 0.0), ("noise", NOISE))):
                options = {"start": budget.noise_start, "actions": "macro", "noise": share}
                success = _rewarded(f"{name}_{kind}", bonus, INTRINSIC, options, seed, budget, context)
                found[f"{kind}: success"] = success
            rows.append(found)
        return columns(rows)

    arm.__doc__ = about
    return arm


def d4_as_is(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """The explorer of the training textures, as it is, in sets of textures that it has not seen."""
    require(budget.coverage, "doom", "vizdoom")
    rows = []
    for seed in context.each(seeds):
        agent, _ = _without_reward(EXPLORERS["d1_elsewhere"], budget.coverage, seed, budget, context)
        rows.append(_graded(agent, "held-out", seed, budget, context))
    return columns(rows)


def d4_finetuned(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """The same explorer, which goes on learning in the new textures, with curiosity and reward."""
    return _transferred("d4_finetuned", True, seeds, budget, context)


def d4_scratch(seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    """The same learner with the same reward and curiosity in the new textures, from scratch."""
    return _transferred("d4_scratch", False, seeds, budget, context)


def _transferred(name: str, pretrained: bool, seeds: list[int], budget: CuriosityBudget, context: Context) -> Metrics:
    require(budget.coverage and budget.ladder, "doom", "vizdoom")
    options = PLACES["held-out"] | {"start": budget.transfer_start}
    rows = []
    for seed in context.each(seeds):
        explorer = None
        if pretrained:
            explorer, _ = _without_reward(EXPLORERS["d1_elsewhere"], budget.coverage, seed, budget, context)
        with maze(budget, **options) as env:
            if explorer is None:
                agent = curious("reachability", env, CAMERA, seed, EXTRINSIC, INTRINSIC)
            else:
                agent = reweighed(explorer, EXTRINSIC, INTRINSIC)
            agent, cost = learn(name, agent, env, budget.ladder, seed, context)
        success = explore(Trained(agent, seed), options, budget.episodes, seed).metrics()["success"]
        rows.append({"success": success, "mean success in training": cost["mean of the curve"]})
    return columns(rows)


def reweighed(explorer: Curious, extrinsic: float, intrinsic: float) -> Curious:
    """The same policy, values and bonus, paid with other weights.

    What PPO knew of the sizes of returns and gradients belongs to the old ones: ten times the old bonus would go on
    shrinking the vest for hundreds of updates.
    """
    agent = explorer.agent
    assert isinstance(agent, PPO)
    state = make_optimiser(agent.config).init(agent.network)  # pyright: ignore[reportArgumentType]
    anew = replace(agent, optimiser_state=state, return_norm=ReturnNorm.create(agent.spaces.num_envs))
    return replace(explorer, agent=anew, extrinsic=extrinsic, intrinsic=intrinsic)


def _without_reward(
    method: Explorer, decisions: int, seed: int, budget: CuriosityBudget, context: Context
) -> tuple[Any, dict[str, float]]:
    """Trains a method of D1; only the ceiling looks at a reward."""
    options = PLACES[method.place] | ({"reward": "cells"} if method.bonus == "cells" else {})
    memory = {"recurrent": RECURRENT} if method.recurrent else {}
    with maze(budget, **options) as env:
        match method.bonus:
            case "cells":
                agent = ppo(env, CAMERA, seed)
            case "nothing":
                agent = curious("icm", env, CAMERA, seed, 0.0, 0.0)
            case name:
                agent = curious(name, env, CAMERA, seed, 0.0, **memory)
        return learn(f"{method.place}_{method.bonus}", agent, env, decisions, seed, context, CELLS)


def _graded(agent: Agent, place: str, seed: int, budget: CuriosityBudget, context: Context) -> dict[str, float]:
    """Coverage of the policy, and of its own action frequencies drawn blindly."""
    options = PLACES[place]
    context.progress(f"exam, {place}, seed {seed}")
    journey = explore(Trained(agent, seed), options, budget.episodes, seed)
    blind = explore(Blind(journey.frequencies, seed), options, budget.episodes, seed)
    if seed == context.seeds[0]:
        _keep_map(context, policy=journey, blind=blind)
        context.keep("film", frames=journey.film)
    return journey.metrics() | {f"blind: {name}": value for name, value in blind.metrics().items()}


def _rewarded(
    name: str, bonus: str, intrinsic: float, options: dict[str, Any], seed: int, budget: CuriosityBudget,
    context: Context,
) -> float:  # fmt: skip
    """Success after training with the vest as reward and this weight of the bonus."""
    with maze(budget, **options) as env:
        agent = curious(bonus, env, CAMERA, seed, EXTRINSIC, intrinsic)
        agent, _ = learn(name, agent, env, budget.ladder, seed, context)
    return explore(Trained(agent, seed), options, budget.episodes, seed).metrics()["success"]


def _uniform(options: dict[str, Any], seed: int) -> Blind:
    return uniform(len(ACTIONS[options["actions"]][1]), seed)


def _keep_map(context: Context, **journeys: Journey) -> None:
    first = next(iter(journeys.values()))
    occupancy = {name: journey.occupancy for name, journey in journeys.items()}
    context.keep("map", walls=first.walls, extent=np.array(first.extent), **occupancy)
