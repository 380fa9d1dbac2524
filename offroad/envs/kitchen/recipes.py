"""Scripted data sets of the kitchen, in the likeness of D4RL's; their scores are not comparable with D4RL's.

D4RL's kitchen data are people's demonstrations; these are a script's (`Demonstrator`), with D4RL's layout. In every
episode four of the seven subtasks are done, in one of 24 sequences. **partial**: some sequences are the four target
subtasks. **mixed**: the same episodes with other targets, all four of which no episode does; those that did by accident
are left out. Rewards are D4RL's: how many target subtasks are satisfied after the step. No row is terminal: an episode
is cut off when the demonstrator has finished or after 280 steps, and its final observation is kept.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, count

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs import KITCHEN_STEPS
from offroad.envs.kitchen.demonstrator import Demonstrator
from offroad.envs.kitchen.kitchen import Kitchen
from offroad.envs.kitchen.model import GOALS, OBJECTS, ROBOT, SETS, goal, satisfied
from offroad.envs.made import Made, require_rows
from offroad.errors import unknown

NAMES = tuple(f"kitchen-{tasks}" for tasks in SETS)
WORLDS = 24


def _sequences() -> list[tuple[str, ...]]:
    random = np.random.default_rng(0)
    targets = [set(tasks) for tasks in SETS.values()]
    others = [four for four in combinations(GOALS, 4) if set(four) not in targets]
    chosen = [SETS["partial"]] * 4 + [others[i] for i in random.permutation(len(others))[:20]]
    sequences = []
    for four in (chosen[i] for i in random.permutation(len(chosen))):
        order = [four[i] for i in random.permutation(4)]
        if {"slide cabinet", "hinge cabinet"} <= set(order):  # the open hinged door is in the way of the slide's handle
            slide, hinge = order.index("slide cabinet"), order.index("hinge cabinet")
            order[min(slide, hinge)], order[max(slide, hinge)] = "slide cabinet", "hinge cabinet"
        sequences.append(tuple(order))
    return sequences


SEQUENCES = _sequences()
"""The orders in which subtasks are done; episodes go through this list again and again."""


@dataclass(frozen=True)
class Episode:
    """One demonstration: `seen` `[T + 1, 30]` are the noisy positions, `actions` `[T, 9]`, and `done` `[T, 7]` which of
    all subtasks (in the order of `GOALS`) are satisfied after each step."""

    sequence: tuple[str, ...]
    seen: Float[ndarray, "T1 30"]
    actions: Float[ndarray, "T 9"]
    done: Bool[ndarray, "T 7"]

    def of(self, tasks: tuple[str, ...]) -> Bool[ndarray, "T tasks"]:
        return self.done[:, [list(GOALS).index(task) for task in tasks]]


def make(
    name: str,
    steps: int,
    seed: int = 0,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """The scripted data set `name` (one of `NAMES`) with `steps` rows, the same for the same seed.

    `progress` is told how many rows are done. Raises `OffroadError` for an unknown name, a useless number of steps, and
    without gymnasium-robotics.
    """
    if name not in NAMES:
        raise unknown("kitchen data set", name, NAMES)
    require_rows(steps)
    tasks = SETS[name.removeprefix("kitchen-")]
    episodes: list[Episode] = []
    rows = left_out = 0
    for episode in demonstrations(seed, num_threads, worlds=min(WORLDS, -(-steps // KITCHEN_STEPS))):
        if name == "kitchen-mixed" and episode.of(tasks).any(axis=0).all():
            left_out += 1
            continue
        episodes.append(episode)
        rows += len(episode.actions)
        progress(min(rows, steps))
        if rows >= steps:
            break
    every = int(sum(episode.of(tasks).any(axis=0).all() for episode in episodes))
    planned = np.mean([episode.of(episode.sequence)[-1].mean() for episode in episodes])
    summary = (
        f"scripted kitchen data: {len(episodes)} episodes, {every} with all four targets, {left_out} left out; "
        f"{planned:.0%} of the subtasks that were tried are done at the end"
    )
    provenance = {
        "recipe": f"{name} (scripted demonstrations, not D4RL's)",
        "tasks": tasks,
        "steps": steps,
        "seed": seed,
        "episodes": len(episodes),
        "episodes with all targets": every,
        "episodes left out": left_out,
        "offroad": importlib.metadata.version("offroad"),
        "mujoco": mujoco.__version__,
        "gymnasium-robotics": importlib.metadata.version("gymnasium-robotics"),
        "numpy": np.__version__,
    }
    return Made(_columns(episodes, tasks, steps), provenance, summary)


def demonstrations(seed: int = 0, num_threads: int | None = None, worlds: int = WORLDS) -> Iterator[Episode]:
    """Episodes without end, the same for the same seed; `worlds` of them, which changes nothing, are made at a time."""
    env = Kitchen(
        worlds,
        tasks=tuple(GOALS),
        terminate=False,
        max_episode_steps=KITCHEN_STEPS,
        autoreset_mode=AutoresetMode.DISABLED,
        num_threads=num_threads,
    )
    for first in count(0, worlds):
        streams = [np.random.SeedSequence((seed, first + world)) for world in range(worlds)]
        randoms = [np.random.default_rng(stream) for stream in streams]
        sequences = [SEQUENCES[(first + world) % len(SEQUENCES)] for world in range(worlds)]
        drivers = [Demonstrator(env.models[0], four, random) for four, random in zip(sequences, randoms)]
        holds = [int(random.integers(5, 16)) for random in randoms]  # steps that it stays when all is done
        observation, _ = env.reset(seed=[int(stream.generate_state(1)[0]) for stream in streams])
        seen, actions, done = [observation[:, : ROBOT + OBJECTS]], [], []
        lengths = np.zeros(worlds, int)
        for _ in range(KITCHEN_STEPS):
            goes_on = [not driver.finished or hold > 0 for driver, hold in zip(drivers, holds)]
            if not any(goes_on):
                break
            action = np.zeros((worlds, ROBOT), np.float32)
            for world in np.flatnonzero(goes_on):
                action[world] = drivers[world].act(observation[world])
                holds[world] -= drivers[world].finished
                lengths[world] += 1
            observation, *_ = env.step(action)
            seen.append(observation[:, : ROBOT + OBJECTS])
            actions.append(action)
            done.append(satisfied(env.qpos, tuple(GOALS)))
        for world, length in enumerate(lengths):
            yield Episode(
                sequences[world],
                np.stack([x[world] for x in seen[: length + 1]]),
                np.stack([x[world] for x in actions[:length]]),
                np.stack([x[world] for x in done[:length]]),
            )


def _columns(episodes: list[Episode], tasks: tuple[str, ...], steps: int) -> dict[str, ndarray]:
    """The episodes one after another, cut to `steps` rows."""
    lengths = np.array([len(episode.actions) for episode in episodes])
    lengths[-1] -= lengths.sum() - steps
    parts = list(zip(episodes, lengths.tolist()))
    truncated = np.zeros(steps, bool)
    truncated[np.cumsum(lengths) - 1] = True

    def observed(seen: list[ndarray]) -> Float[ndarray, "rows 60"]:
        positions = np.concatenate(seen)
        goals = np.broadcast_to(goal(tasks), positions.shape)
        return np.concatenate((positions, goals), axis=1, dtype=np.float32)

    return {
        "observations": observed([episode.seen[:length] for episode, length in parts]),
        "actions": np.concatenate([episode.actions[:length] for episode, length in parts]),
        "rewards": np.concatenate([episode.of(tasks)[:length].sum(axis=1) for episode, length in parts]).astype("f4"),
        "terminated": np.zeros(steps, bool),
        "truncated": truncated,
        "final_observations": observed([episode.seen[length, None] for episode, length in parts]),
    }
