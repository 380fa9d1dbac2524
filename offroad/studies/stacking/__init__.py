"""Stacking blocks from sparse reward: a task curriculum, and a network that carries knowledge from task to task."""

import numpy as np
from gymnasium.vector import AutoresetMode

from offroad.agents import Agent
from offroad.agents.imitation import Imitation
from offroad.envs.stack import Stack
from offroad.envs.stack.expert import Expert
from offroad.nets.relational import Relational, Slots
from offroad.report.statistics import proportion
from offroad.studies.stacking.exams import EXAM_SEED, StackingBudget, columns, graded, greedy, seen, unseen
from offroad.studies.stacking.pictures import animation, by_height, stages_reached
from offroad.studies.stacking.training import PADDED, RELATIONAL, clone, config, hundred, learn, size, stages, towers
from offroad.studies.study import Claim, Context, Metrics, NotRun, Published, Results, Study
from offroad.tasks.curriculum import Stage

LI = "Li, Jabri, Darrell and Agrawal 2020, arXiv 1912.11032"
NAIR = "Nair et al. 2018, arXiv 1709.10089, as quoted in the talk"
# OpenAI's weight of the policy's own loss, 1e-3, ended at 0.17 on three blocks. This one was chosen from 0.03 and 1
# on a seed that is not graded, in towers of two (results/stacking/log.md).
IMITATION = Imitation(weight_policy=1.0)

# --- the arms


def expert(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """The scripted expert that the demonstrations come from."""
    act = Expert("long").act
    return columns([graded(act, [*seen(budget), *unseen(budget)], budget, seed) for seed in seeds])


def cloning_relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning of 128 episodes for each height, relational network."""
    return cloned(RELATIONAL, seeds, budget, context)


def cloning_mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning of the same episodes, MLP on padded slots."""
    return cloned(PADDED, seeds, budget, context)


def cloned(encoder: Relational | Slots, seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    rows = []
    for seed in context.each(seeds):
        shown = context.once(f"towers {seed}", lambda: towers(budget.blocks, 128 * budget.blocks, seed))  # noqa: B023
        agent = clone(encoder, shown, seed, budget, context)
        which = seen(budget) + (unseen(budget) if isinstance(encoder, Relational) else [])
        rows.append(graded(greedy(agent), which, budget, seed) | {"parameters [thousands]": size(agent)})
    return columns(rows)


def relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network and task curriculum, no demonstrations."""
    return reinforced(RELATIONAL, seeds, budget, context)


def no_curriculum(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network, the full tower from the first episode on."""
    return reinforced(RELATIONAL, few(seeds, budget, context), budget, context, tasks=only_tower(budget))


def mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """MLP on padded slots, with the same curriculum."""
    return reinforced(PADDED, few(seeds, budget, context), budget, context)


def no_hindsight(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network and curriculum, without hindsight relabelling."""
    return reinforced(RELATIONAL, few(seeds, budget, context), budget, context, hindsight=0.0)


def demonstrations_relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Nair et al. with the relational network: 100 demonstrations, Q-filter, resets; no curriculum."""
    return with_demonstrations(RELATIONAL, seeds, budget, context)


def demonstrations_mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Nair et al. with the padded MLP, on the same 100 demonstrations."""
    return with_demonstrations(PADDED, seeds, budget, context)


def demonstrations_cloned(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning alone, relational network, of the same 100 demonstrations of the full tower."""
    rows = []
    for seed in context.each(few(seeds, budget, context)):
        agent = clone(RELATIONAL, hundred(budget, context, seed), seed, budget, context)
        rows.append(graded(greedy(agent), seen(budget), budget, seed))
    return columns(rows)


def short_decisions(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """The first arm with the paper's decisions of 40 ms, for one block."""
    if not budget.short_steps:
        raise NotRun("this profile has no budget for it")
    rows = []
    for seed in context.each(few(seeds, budget, context)):
        learner = config(RELATIONAL, discount=0.98, value_range=(-50.0, 0.0))
        agent, cost = learn(seed, budget, context, learner, stages(1), decision="short")
        rows.append(graded(greedy(agent), seen(budget)[:1], budget, seed, "short") | cost)
    return columns(rows)


def reinforced(
    encoder: Relational | Slots,
    seeds: list[int],
    budget: StackingBudget,
    context: Context,
    *,
    tasks: list[Stage] | None = None,
    hindsight: float = 0.8,
) -> Metrics:
    require_learning(budget)
    rows = []
    for seed in context.each(seeds):
        agent, cost = learn(seed, budget, context, config(encoder), tasks or stages(budget.blocks), hindsight=hindsight)
        which = seen(budget) + (unseen(budget) if isinstance(encoder, Relational) else [])
        rows.append(graded(greedy(agent), which, budget, seed) | cost | {"parameters [thousands]": size(agent)})
        if seed == seeds[0] and tasks is None and hindsight and isinstance(encoder, Relational):
            keep_episode(agent, budget, context)
    return columns(rows)


def with_demonstrations(
    encoder: Relational | Slots, seeds: list[int], budget: StackingBudget, context: Context
) -> Metrics:
    require_learning(budget)
    rows = []
    for seed in context.each(few(seeds, budget, context)):
        shown = hundred(budget, context, seed)
        learner = config(encoder, imitation=IMITATION)
        agent, cost = learn(seed, budget, context, learner, only_tower(budget), shown=shown)
        rows.append(graded(greedy(agent), seen(budget), budget, seed) | cost)
    return columns(rows)


def few(seeds: list[int], budget: StackingBudget, context: Context) -> list[int]:
    """The seeds of an arm beside the first, as many as the profile can afford."""
    context.seeds = seeds[: budget.ablation_seeds]
    return context.seeds


def only_tower(budget: StackingBudget) -> list[Stage]:
    return [Stage("the tower", {"blocks": budget.blocks})]


def require_learning(budget: StackingBudget) -> None:
    if not budget.decisions:
        raise NotRun("this profile has no budget for reinforcement learning")


def keep_episode(agent: Agent, budget: StackingBudget, context: Context) -> None:
    """The states of one evaluated episode, for the picture: the first that succeeds."""
    env = Stack(16, blocks=budget.blocks, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=EXAM_SEED)
    act, states = greedy(agent), []
    for _ in range(env.decision.horizon * budget.blocks):
        states.append(env.get_state()["physics"])
        observation, _, _, _, info = env.step(act(observation))
        if info["success"].any():
            break
    states.append(env.get_state()["physics"])
    world = int(np.argmax(env.compute_success(observation)))
    context.keep("episode", physics=np.array(states)[:, world])


# --- the verdict


def verdict(r: Results) -> list[Claim]:
    top = r.config["blocks"]

    def success(arm: str, blocks: int) -> list[float]:
        return r.values(arm, f"tower of {blocks}: success")

    def claim(what: str, required: float, arm: str, blocks: int) -> Claim:
        def measure() -> tuple[str, bool]:
            rates = success(arm, blocks)
            found = proportion(float(np.mean(rates)), r.config["episodes"] * len(rates))
            return f"{found} ({len(rates)} x {r.config['episodes']} episodes)", found.value >= required

        return r.claim(what, f"at least {required:.2f}", measure)

    def ahead(what: str, required: float, arm: str, other: str, blocks: int) -> Claim:
        def measure() -> tuple[str, bool]:
            ours, theirs = (float(np.mean(success(name, blocks))) for name in (arm, other))
            return f"{ours:.2f} against {theirs:.2f}", ours - theirs >= required

        return r.claim(what, f"{required:.2f} more", measure)

    headline = "From sparse reward, with curriculum and relational network: "
    towers_of = {1: ("one block", 0.9), 2: ("a tower of 2", 0.8), 3: ("a tower of 3", 0.6)}
    towers_of |= {n: (f"a tower of {n}", 0.5) for n in range(4, top + 1)}
    ablations = {
        "no_curriculum": "without curriculum",
        "mlp": "with an MLP on padded slots",
        "no_hindsight": "without hindsight",
    }
    return [
        *(claim(headline + name, required, "relational", n) for n, (name, required) in towers_of.items() if n <= top),
        *(ahead(f"... more than {how}: tower of {top}", 0.3, "relational", arm, top) for arm, how in ablations.items()),
        claim(f"100 demonstrations instead of a curriculum: tower of {top}", 0.6, "demonstrations_relational", top),
        claim(f"Without training: a tower of {top + 1}", 0.01, "relational", top + 1),
        claim("Cloning the expert: one block", 0.95, "cloning_relational", 1),
        claim("Cloning the expert: a tower of 2", 0.75, "cloning_relational", 2),
        claim("Cloning the expert: a tower of 3", 0.45, "cloning_relational", 3),
        ahead("... more than an MLP on padded slots: tower of 3", 0.3, "cloning_relational", "cloning_mlp", 3),
    ]


STUDY = Study(
    name="stacking",
    title="Stacking blocks from sparse reward",
    claim=(
        "With a reward only for blocks in place, a curriculum of towers of growing height teaches stacking if the "
        "network can carry knowledge from few blocks to many. A relational network can, an ordinary one cannot; and "
        "without the curriculum neither learns anything."
    ),
    source=LI,
    published=(
        Published("tower of 4, demonstrations, 850 million steps", 91, "%", NAIR),
        Published("tower of 5, demonstrations, 1000 million steps", 50, "%", NAIR),
        Published("tower of 6, demonstrations, 2300 million steps", 32, "%", NAIR),
        Published("tower of 6, relational network and curriculum", 75, "%", LI),
    ),
    arms={
        arm.__name__: arm
        for arm in (
            expert,
            cloning_relational,
            cloning_mlp,
            relational,
            no_curriculum,
            mlp,
            no_hindsight,
            demonstrations_relational,
            demonstrations_mlp,
            demonstrations_cloned,
            short_decisions,
        )
    },
    shares={"relational": 30, "no_curriculum": 12, "mlp": 10, "no_hindsight": 8, "demonstrations_relational": 12,
            "demonstrations_mlp": 10, "short_decisions": 5, "cloning_relational": 3},
    profiles={
        "quick": StackingBudget(
            seeds=1, minutes=4, blocks=3, decisions=0, ablation_seeds=1, short_steps=0, episodes=100,
            cloning_updates=4000,
        ),
        "cpu": StackingBudget(
            seeds=3, minutes=170, blocks=3, decisions=800_000, ablation_seeds=1, short_steps=1_400_000, episodes=200,
            cloning_updates=4000,
        ),
        "paper": StackingBudget(
            seeds=5, minutes=2000, blocks=6, decisions=6_000_000, ablation_seeds=5, short_steps=9_000_000, episodes=200,
            cloning_updates=20_000,
        ),
    },
    verdict=verdict,
    figures=(by_height, stages_reached, animation),
)  # fmt: skip
