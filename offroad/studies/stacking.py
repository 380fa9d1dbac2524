"""Stacking blocks from sparse reward: a task curriculum, and a network that carries knowledge from task to task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode

import offroad
from offroad import train
from offroad.agents import BC, DDPG, Agent, BCConfig, DDPGConfig
from offroad.agents.imitation import Imitation
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.envs.stack import Stack
from offroad.envs.stack.expert import Expert
from offroad.nets.relational import Relational, Slots
from offroad.report import plots, video
from offroad.studies.study import Budget, Claim, Context, Figure, Metrics, NotRun, Published, Results, Study, at_least
from offroad.tasks.curriculum import Curriculum, CurriculumVectorEnv, Stage, SuccessGated
from offroad.tasks.demonstration_resets import DemonstrationResets
from offroad.tasks.demonstrations import DemonstrationReplay, Demonstrations
from offroad.tasks.entities import CompactReplay
from offroad.tasks.goals import GoalTask, HindsightReplay
from offroad.tasks.record import record
from offroad.train.collect import HostPolicy
from offroad.train.run import Run

LI = "Li, Jabri, Darrell and Agrawal 2020, arXiv 1912.11032"
NAIR = "Nair et al. 2018, arXiv 1709.10089, as quoted in the talk"

WORLDS = 64
UPDATES = 1 / 24  # for each decision
EXAM_SEED = 2_000_000  # of the evaluation, apart from all training seeds
SCALES = (1.0, 10.0, 50.0)  # metres, decimetres and centimetres are all visible
RELATIONAL = Relational(scales=SCALES)
PADDED = Slots(scales=SCALES)
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


def exams(budget: StackingBudget) -> list[Exam]:
    return [Exam(f"tower of {n}", n) for n in range(1, budget.blocks + 1)]


def unseen(budget: StackingBudget) -> list[Exam]:
    """Tasks that no training shows, for networks that take any number of blocks."""
    taller = [Exam(f"tower of {n}", n) for n in (budget.blocks + 1, budget.blocks + 2)]
    return [*taller, Exam("two towers of 2", 4, "towers"), Exam("pyramid of 3", 3, "pyramid")]


# --- measuring


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


def columns(rows: list[dict[str, float]], seeds: list[int]) -> Metrics:
    """Metrics with a value for each seed; NaN for seeds that were not run."""
    missing = dict.fromkeys(rows[0], np.nan)
    rows = rows + [missing] * (len(seeds) - len(rows))
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- learning


def config(encoder: Relational | Slots, **changes: Any) -> DDPGConfig:
    """The learner of all arms; the padded MLP has a layer more where the relational network has its attention."""
    hidden = (256, 256) if isinstance(encoder, Relational) else (256, 256, 256)
    common = DDPGConfig(
        learning_rate=1e-3,
        discount=0.92,
        polyak=0.01,
        batch=512,
        hidden=hidden,
        random_action=0.2,
        exploration_noise=0.2,
        action_penalty=0.1,
        binary=(3,),
        value_range=(-12.5, 0.0),
        encoder=encoder,
    )
    return replace(common, **changes)


def stages(blocks: int) -> list[Stage]:
    """One block, at times held from the start or to be held in the air; then towers, at times built but for one."""
    found = [
        Stage(
            "one block",
            [(0.5, {"blocks": 1}), (0.25, {"blocks": 1, "task": "pick"}), (0.25, {"blocks": 1, "held": True})],
        )
    ]
    for n in range(2, blocks + 1):
        tasks = [(0.5, {"blocks": n}), (0.3, {"blocks": n, "built": n - 1}), (0.2, {"blocks": n, "task": "pick"})]
        found.append(Stage(f"tower of {n}", tasks))
    return found


def learn(
    seed: int,
    budget: StackingBudget,
    context: Context,
    learner: DDPGConfig,
    curriculum: Curriculum,
    *,
    hindsight: float = 0.8,
    shown: Demonstrations | None = None,
    decision: str = "long",
    worlds: int = WORLDS,
) -> tuple[Agent, dict[str, float]]:
    """One training run, which continues if it was interrupted: the agent, and what it cost."""
    bare = offroad.make_vec(
        "offroad/Stack-v0", worlds, blocks=budget.blocks, decision=decision, autoreset_mode=AutoresetMode.DISABLED
    )
    env = CurriculumVectorEnv(bare, curriculum)

    def memory(capacity: int) -> HindsightReplay:
        return HindsightReplay(capacity, GoalTask.of(bare), share=hindsight, moved_share=0.7)

    replay: Replay = memory(300_000)
    if shown is not None:
        apart = memory(int(shown.lengths.sum()))
        shown.fill(apart)
        replay = DemonstrationReplay(replay, apart)
    if isinstance(learner.encoder, Relational):
        replay = CompactReplay(replay)
    steps = budget.decisions if decision == "long" else budget.short_steps

    def report(metrics: dict[str, Any]) -> None:
        stage, success = metrics.get("curriculum/stage", 0), metrics.get("curriculum/success", 0.0)
        context.progress(f"seed {seed}, stage {stage:.0f}, success {success:.2f} in training", metrics["step"] / steps)

    learner = replace(learner, anneal_updates=round(steps * UPDATES))
    run = train.off_policy(
        DDPG.create(Spaces.of(env), learner, jax.random.key(seed)),
        env,
        steps,
        seed=seed,
        replay=replay,
        learning_starts=4 * 15 * worlds,
        train_every=15,
        update_ratio=UPDATES,
        out=context.folder / f"seed_{seed}",
        resume=True,
        schedule=train.Schedule(checkpoint=100_000, log=worlds * 150),
        progress=False,
        callback=report,
    )
    keep_curve(context, seed, run.history)
    times = [row["time"] for row in Run.open(context.folder / f"seed_{seed}").metrics()]
    cost = {
        "decisions [thousands]": run.step / 1e3,
        "updates [thousands]": run.step * UPDATES / 1e3,
        "training [min]": (times[-1] - times[0]) / 60,
        "stage reached": max(row.get("curriculum/stage", 0.0) for row in run.history) + 1,
        "diverged worlds": float(bare.unwrapped.divergences.sum()),  # pyright: ignore[reportAttributeAccessIssue],
    }
    return run.agent, cost


def keep_curve(context: Context, seed: int, history: Sequence[dict[str, Any]]) -> None:
    rows = [row for row in history if "curriculum/success" in row]
    context.keep(
        f"curve_{seed}",
        step=np.array([row["step"] for row in rows]),
        stage=np.array([row["curriculum/stage"] for row in rows]),
        success=np.array([row["curriculum/success"] for row in rows]),
    )


def towers(blocks: int, episodes: int, seed: int, decision: str = "long") -> Demonstrations:
    """Successful episodes of the scripted expert, which build towers of 1 to `blocks` in equal shares."""
    return shown_by_expert([{"blocks": n} for n in range(1, blocks + 1)], blocks, episodes, seed, decision)


def shown_by_expert(
    tasks: list[dict[str, Any]], slots: int, episodes: int, seed: int, decision: str = "long"
) -> Demonstrations:
    bare = offroad.make_vec(
        "offroad/Stack-v0", WORLDS, blocks=slots, decision=decision, autoreset_mode=AutoresetMode.DISABLED
    )
    curriculum = SuccessGated([Stage("all", [(1.0, task) for task in tasks])])
    env = CurriculumVectorEnv(bare, curriculum, deterministic_envs=0)
    return record(env, Expert(decision).act, episodes, seed=1_000_000 + seed)[0]


def clone(
    encoder: Relational | Slots, shown: Demonstrations, seed: int, budget: StackingBudget, context: Context
) -> Agent:
    replay = Replay(int(shown.lengths.sum()))
    shown.fill(replay)
    env = offroad.make_vec("offroad/Stack-v0", 1, blocks=budget.blocks)
    spec = BCConfig(batch=256, hidden=config(encoder).hidden, encoder=encoder)
    agent = BC.create(Spaces.of(env), spec, jax.random.key(seed))

    def report(metrics: dict[str, Any]) -> None:
        context.progress(f"seed {seed}, loss {metrics['loss']:.4f}", metrics["update"] / budget.cloning_updates)

    return train.offline(agent, replay, budget.cloning_updates, seed=seed, progress=False, callback=report)


# --- the arms

HUNDRED = 100  # demonstrations, as in Nair et al.


def expert(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """The scripted expert that the demonstrations come from."""
    act = Expert("long").act
    return columns([graded(act, [*exams(budget), *unseen(budget)], budget, seed) for seed in seeds], seeds)


def cloning_relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning of 128 episodes for each height, relational network."""
    return cloned(RELATIONAL, seeds, budget, context)


def cloning_mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning of the same episodes, MLP on padded slots."""
    return cloned(PADDED, seeds, budget, context)


def cloned(encoder: Relational | Slots, seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    rows = []
    for seed in seeds:
        shown = context.once(f"towers {seed}", lambda: towers(budget.blocks, 128 * budget.blocks, seed))  # noqa: B023
        agent = clone(encoder, shown, seed, budget, context)
        which = exams(budget) + (unseen(budget) if isinstance(encoder, Relational) else [])
        rows.append(graded(greedy(agent), which, budget, seed) | {"parameters [thousands]": size(agent)})
    return columns(rows, seeds)


def relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network and task curriculum, no demonstrations."""
    return reinforced(RELATIONAL, seeds, budget, context)


def no_curriculum(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network, the full tower from the first episode on."""
    only = [Stage("the tower", {"blocks": budget.blocks})]
    return reinforced(RELATIONAL, seeds[: budget.ablation_seeds], budget, context, of=seeds, tasks=only)


def mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """MLP on padded slots, with the same curriculum."""
    return reinforced(PADDED, seeds[: budget.ablation_seeds], budget, context, of=seeds)


def no_hindsight(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Relational network and curriculum, without hindsight relabelling."""
    return reinforced(RELATIONAL, seeds[: budget.ablation_seeds], budget, context, of=seeds, hindsight=0.0)


def demonstrations_relational(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Nair et al. with the relational network: 100 demonstrations, Q-filter, resets; no curriculum."""
    return with_demonstrations(RELATIONAL, seeds, budget, context)


def demonstrations_mlp(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Nair et al. with the padded MLP, on the same 100 demonstrations."""
    return with_demonstrations(PADDED, seeds, budget, context)


def demonstrations_cloned(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """Behaviour cloning alone, relational network, of the same 100 demonstrations of the full tower."""
    rows = []
    for seed in seeds[: budget.ablation_seeds]:
        agent = clone(RELATIONAL, hundred(budget, context, seed), seed, budget, context)
        rows.append(graded(greedy(agent), exams(budget), budget, seed))
    return columns(rows, seeds)


def short_decisions(seeds: list[int], budget: StackingBudget, context: Context) -> Metrics:
    """The first arm with the paper's decisions of 40 ms, for one block."""
    if not budget.short_steps:
        raise NotRun("this profile has no budget for it")
    rows = []
    for seed in seeds[: budget.ablation_seeds]:
        learner = config(RELATIONAL, discount=0.98, value_range=(-50.0, 0.0))
        agent, cost = learn(seed, budget, context, learner, SuccessGated(stages(1)), decision="short")
        rows.append(graded(greedy(agent), exams(budget)[:1], budget, seed, "short") | cost)
    return columns(rows, seeds)


def reinforced(
    encoder: Relational | Slots,
    seeds: list[int],
    budget: StackingBudget,
    context: Context,
    *,
    of: list[int] | None = None,
    tasks: list[Stage] | None = None,
    hindsight: float = 0.8,
) -> Metrics:
    require_learning(budget)
    rows = []
    for seed in seeds:
        curriculum = SuccessGated(tasks or stages(budget.blocks), promote=0.8)
        agent, cost = learn(seed, budget, context, config(encoder), curriculum, hindsight=hindsight)
        which = exams(budget) + (unseen(budget) if isinstance(encoder, Relational) else [])
        rows.append(graded(greedy(agent), which, budget, seed) | cost | {"parameters [thousands]": size(agent)})
        if seed == seeds[0] and tasks is None and hindsight and isinstance(encoder, Relational):
            keep_episode(agent, budget, context)
    return columns(rows, of or seeds)


def with_demonstrations(
    encoder: Relational | Slots, seeds: list[int], budget: StackingBudget, context: Context
) -> Metrics:
    require_learning(budget)
    rows = []
    for seed in seeds[: budget.ablation_seeds]:
        shown = hundred(budget, context, seed)
        curriculum = DemonstrationResets(SuccessGated([Stage("the tower", {"blocks": budget.blocks})]), shown, 0.3)
        learner = config(encoder, imitation=Imitation())
        agent, cost = learn(seed, budget, context, learner, curriculum, shown=shown)
        rows.append(graded(greedy(agent), exams(budget), budget, seed) | cost)
    return columns(rows, seeds)


def hundred(budget: StackingBudget, context: Context, seed: int) -> Demonstrations:
    tower = [{"blocks": budget.blocks}]
    return context.once(f"hundred {seed}", lambda: shown_by_expert(tower, budget.blocks, HUNDRED, seed))


def require_learning(budget: StackingBudget) -> None:
    if not budget.decisions:
        raise NotRun("this profile has no budget for reinforcement learning")


def size(agent: Agent) -> float:
    """Thousands of parameters of the policy."""
    return sum(leaf.size for leaf in jax.tree.leaves(agent.policy)) / 1e3  # pyright: ignore[reportAttributeAccessIssue]


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

    def success(arm: str, blocks: int) -> float:
        values = np.array(r.values(arm, f"tower of {blocks}: success"))
        return float(np.mean(values[np.isfinite(values)]))

    def ahead(arm: str, other: str, blocks: int) -> float:
        return success(arm, blocks) - success(other, blocks)

    def claim(what: str, required: float, measure: Callable[[], float]) -> Claim:
        return r.claim(what, f"at least {required:.2f}", lambda: at_least(measure(), required))

    reinforced = [
        claim(
            "From sparse reward, with curriculum and relational network: one block",
            0.9,
            lambda: success("relational", 1),
        ),
        *(
            claim(f"... a tower of {n}", required, lambda n=n: success("relational", n))
            for n, required in ((2, 0.8), (3, 0.6), (4, 0.5), (5, 0.5), (6, 0.5))
            if n <= top
        ),
        *(
            claim(f"... ahead of {what}: tower of {top}", 0.3, lambda arm=arm: ahead("relational", arm, top))
            for arm, what in (
                ("no_curriculum", "the same without curriculum"),
                ("mlp", "an MLP on padded slots with the curriculum"),
                ("no_hindsight", "the same without hindsight"),
            )
        ),
        claim(
            f"100 demonstrations instead of a curriculum: tower of {top}",
            0.6,
            lambda: success("demonstrations_relational", top),
        ),
        claim(f"Without training: a tower of {top + 1}", 0.01, lambda: success("relational", top + 1)),
    ]
    cloning = [
        claim("Cloning the expert, relational: one block", 0.95, lambda: success("cloning_relational", 1)),
        claim("... a tower of 2", 0.75, lambda: success("cloning_relational", 2)),
        claim("... a tower of 3", 0.45, lambda: success("cloning_relational", 3)),
        claim("... ahead of the padded MLP: tower of 3", 0.3, lambda: ahead("cloning_relational", "cloning_mlp", 3)),
    ]
    return reinforced + cloning


# --- the pictures


def by_height(r: Results, folder: Path) -> Figure:
    curves: dict[str, np.ndarray] = {}
    heights = np.arange(1, r.config["blocks"] + 3)
    for arm in r.arms:
        rows = [r[arm].get(f"tower of {n}: success") for n in heights]
        found = [row for row in rows if row is not None]
        curves[arm] = np.array(found + [[np.nan] * len(found[0])] * (len(rows) - len(found)))
    path = plots.lines(folder / "by_height.png", heights.astype(float), curves, "blocks in the tower", "success")
    caption = (
        f"Strict success, a second after the last decision. Training goes up to {r.config['blocks']} blocks; taller "
        "towers are built without further training."
    )
    return Figure("Success by height", path, caption)


def stages_reached(r: Results, folder: Path) -> Figure:
    curves = {}
    for arm in ("relational", "mlp", "no_hindsight"):
        if arm not in r.arms:
            continue
        runs = []
        for seed in r.arms[arm]["seeds"]:
            try:
                runs.append(r.artefact(arm, f"curve_{seed}"))
            except NotRun:
                continue
        if not runs:
            continue
        steps = np.linspace(0, max(run["step"][-1] for run in runs), 100)
        height = [np.interp(steps, run["step"], run["stage"] + run["success"]) for run in runs]
        curves[arm] = (steps, np.array(height).T)
    if not curves:
        raise NotRun("no arm with a curriculum was run")
    path = plots.learning_curves(folder / "stages.png", curves, "stages passed + success in the present one")
    return Figure("The curriculum", path, "Stage n is the tower of n + 1; graded episodes act without exploration.")


def animation(r: Results, folder: Path) -> Figure:
    kept = r.artefact("relational", "episode")
    env = Stack(1, blocks=r.config["blocks"], render_mode="rgb_array", width=320, height=320)
    env.reset(seed=0)
    saved, frames = env.get_state(), []
    for state in kept["physics"]:
        env.set_state({**saved, "physics": state[None]})
        frames.extend(env.render() or ())
    path = video.write(folder / "tower.gif", frames + frames[-1:] * 5, fps=5, limit_mb=0.8)
    return Figure("The tower", path, "One evaluated episode of the first seed; a frame for each decision.")


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
            seeds=3, minutes=170, blocks=3, decisions=650_000, ablation_seeds=1, short_steps=1_400_000, episodes=200,
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
