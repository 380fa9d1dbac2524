"""How the arms learn: reinforcement with curriculum, hindsight and demonstrations, and cloning."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode

import offroad
from offroad import train
from offroad.agents import BC, DDPG, Agent, BCConfig, DDPGConfig
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.envs.stack.expert import Expert
from offroad.nets.relational import Relational, Slots
from offroad.studies.stacking.exams import StackingBudget
from offroad.studies.study import Context
from offroad.tasks.curriculum import Curriculum, CurriculumVectorEnv, Stage, SuccessGated
from offroad.tasks.demonstration_resets import DemonstrationResets
from offroad.tasks.demonstrations import DemonstrationReplay, Demonstrations
from offroad.tasks.entities import CompactReplay
from offroad.tasks.goals import GoalTask, HindsightReplay
from offroad.tasks.record import record
from offroad.train.run import Run

WORLDS = 64
UPDATES = 1 / 24  # for each decision
ANNEALED = 1 / 2  # of a run: the learning rate falls in it
PROMOTE = 0.5  # success at which the next stage begins: what is half mastered goes on being rehearsed
SCALES = (1.0, 10.0, 50.0)  # metres, decimetres and centimetres are all visible
RELATIONAL = Relational(scales=SCALES)
PADDED = Slots(scales=SCALES)
HUNDRED = 100  # demonstrations, as in Nair et al.
PAUSE = 600.0  # s between two rows of the log: the run had been interrupted


def config(encoder: Relational | Slots, **changes: Any) -> DDPGConfig:
    """The learner of all arms; the padded MLP has a layer more where the relational network has its attention."""
    hidden = (256, 256) if isinstance(encoder, Relational) else (384, 256, 256)
    common = DDPGConfig(
        learning_rate=1e-3,
        anneal_to=0.3,
        discount=0.92,
        polyak=0.01,
        batch=512,
        hidden=hidden,
        random_action=0.2,
        exploration_noise=0.15,
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
    tasks: Sequence[Stage],
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

    def memory(capacity: int) -> HindsightReplay:
        return HindsightReplay(capacity, GoalTask.of(bare), share=hindsight, moved_share=0.7)

    replay: Replay = memory(300_000)
    if shown is not None:
        apart = memory(int(shown.lengths.sum()))
        shown.fill(apart)
        replay = DemonstrationReplay(replay, apart)
    if isinstance(learner.encoder, Relational):
        replay = CompactReplay(replay)
    curriculum: Curriculum = SuccessGated(tasks, promote=PROMOTE, demote=0.2, on_change=replay.clear)
    if shown is not None:
        curriculum = DemonstrationResets(curriculum, shown, share=0.3)
    env = CurriculumVectorEnv(bare, curriculum)
    steps = budget.decisions if decision == "long" else budget.short_steps

    def report(metrics: dict[str, Any]) -> None:
        stage, success = metrics.get("curriculum/stage", 0), metrics.get("curriculum/success", 0.0)
        context.progress(f"seed {seed}, stage {stage:.0f}, success {success:.2f} in training", metrics["step"] / steps)

    learner = replace(learner, anneal_updates=round(steps * UPDATES * ANNEALED))
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
    ).complete()
    keep_curve(context, seed, run.history)
    gaps = np.diff([row["time"] for row in Run.open(context.folder / f"seed_{seed}").metrics()])
    cost = {
        "decisions [thousands]": run.step / 1e3,
        "updates [thousands]": run.step * UPDATES / 1e3,
        "training [min]": gaps[gaps < PAUSE].sum() / 60,
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
        context.progress(f"seed {seed}, loss {metrics['loss']:.4f}", metrics["step"] / budget.cloning_updates)

    run = train.offline(agent, replay, budget.cloning_updates, seed=seed, progress=False, callback=report)
    return run.complete().agent


def hundred(budget: StackingBudget, context: Context, seed: int) -> Demonstrations:
    tower = [{"blocks": budget.blocks}]
    return context.once(f"hundred {seed}", lambda: shown_by_expert(tower, budget.blocks, HUNDRED, seed))


def size(agent: Agent) -> float:
    """Thousands of parameters of the policy."""
    return sum(leaf.size for leaf in jax.tree.leaves(agent.policy)) / 1e3  # pyright: ignore[reportAttributeAccessIssue]
