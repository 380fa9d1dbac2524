"""`offroad/PointMaze` and `offroad/AntMaze` beside OGBench's: the same walls, the same physics, and their speed.

    pip install ogbench==1.2.2 "mujoco<3.12"    # the versions that give the figures in results/mazes.json
    python benchmarks/mazes.py --seconds 3

Dynamics: OGBench's environment is driven through the maze in directions that change every 50 steps, often into walls,
with much noise; our environment is put into each of its states in turn, given the same action, and the next states are
compared (`one_step`). Then both run freely from the same state for ten steps (`ten_steps`): contacts amplify rounding,
and OGBench starts the contact solver from its last solution where `mujoco.rollout` starts afresh. Compared are all
positions and velocities, in m, rad and their rates; given are the largest differences of each comparison.

Speed: random actions, one thread. Ours steps 64 worlds in one call, OGBench's Python environment one; CPU time of the
process.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
from machine import machine

from offroad.envs.maze import AntMaze, MazeEnv, PointMaze
from offroad.envs.maze.recipes import push
from offroad.envs.maze.walker import Walker

RESULTS = Path(__file__).parent / "results" / "mazes.json"
BODIES: dict[str, type[MazeEnv]] = {"point": PointMaze, "ant": AntMaze}
WORLDS = 64


def models_differ(ours: mujoco.MjModel, theirs: mujoco.MjModel) -> list[str]:
    """The physical parameters that differ; OGBench's drawing of the goal, a body without contacts, is left out."""
    target = theirs.geom("target").id
    found = []
    for name in dir(ours):
        a, b = getattr(ours, name), getattr(theirs, name)
        if not name.startswith(("body_", "jnt_", "dof_", "geom_", "actuator_")) or not isinstance(a, np.ndarray):
            continue
        if name in ("body_geomnum", "body_geomadr", "body_bvhadr", "body_bvhnum", "body_sameframe"):
            continue  # the target counts as one of the world's shapes
        if name.startswith("geom_"):
            if name in ("geom_matid", "geom_rgba"):
                continue
            b = np.delete(b, target, axis=0)
        if a.shape != b.shape or not np.allclose(a, b):
            found.append(name)
    same = ("timestep", "integrator", "cone", "solver", "iterations", "tolerance", "gravity")
    return found + [name for name in same if not np.allclose(getattr(ours.opt, name), getattr(theirs.opt, name))]


def put(theirs: gym.Env, ours: MazeEnv) -> None:
    """Our worlds into the state of OGBench's one."""
    ours.qpos[:], ours.qvel[:] = theirs.data.qpos, theirs.data.qvel  # pyright: ignore[reportAttributeAccessIssue]


def state_error(theirs: gym.Env, ours: MazeEnv) -> float:
    data = theirs.data  # pyright: ignore[reportAttributeAccessIssue]
    return float(max(np.abs(ours.qpos[0] - data.qpos).max(), np.abs(ours.qvel[0] - data.qvel).max()))


def dynamics(theirs: gym.Env, ours: MazeEnv, steps: int) -> dict[str, object]:
    random = np.random.default_rng(0)
    ours.reset(seed=0)
    width = ours.single_action_space.shape[0]
    apart, contacts = [], 0
    walls = {i for i in range(theirs.model.ngeom) if "block" in (theirs.model.geom(i).name or "")}
    drive = push if isinstance(ours, PointMaze) else Walker()
    observation, far = theirs.reset(seed=0, options={"task_id": 1})[0], np.zeros((1, 2))
    for step in range(steps):
        if step % 50 == 0:
            far = random.normal(0, 1000, (1, 2))
        action = np.clip(drive(observation[None], far)[0] + random.normal(0, 0.4, width), -1, 1)
        put(theirs, ours)
        ours._ended[:] = False
        observation = theirs.step(action)[0]
        ours.step(action[None])
        apart.append(state_error(theirs, ours))
        contact = theirs.data.contact
        contacts += any(int(geom) in walls for geom in contact.geom[: theirs.data.ncon].ravel())
    free = []
    for _ in range(steps // 20):
        far = random.normal(0, 1000, (1, 2))
        for _ in range(10):  # on to another state
            observation = theirs.step(drive(observation[None], far)[0])[0]
        put(theirs, ours)
        for _ in range(10):
            action = np.clip(drive(observation[None], far)[0] + random.normal(0, 0.4, width), -1, 1)
            ours._ended[:] = False
            observation = theirs.step(action)[0]
            ours.step(action[None])
        free.append(state_error(theirs, ours))
    return {
        "steps": steps,
        "steps_touching_a_wall": int(contacts),
        "one_step": {"median": float(np.median(apart)), "worst": max(apart)},
        "ten_steps": {"median": float(np.median(free)), "worst": max(free)},
    }


def speed(step: object, actions: np.ndarray, seconds: float) -> float:
    """Environment steps per second of CPU time; `actions [different, worlds, A]` or `[different, A]`."""
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        step(actions[done % len(actions)])  # pyright: ignore[reportCallIssue]
        done += 1
    worlds = actions.shape[1] if actions.ndim == 3 else 1
    return done * worlds / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of the comparison of dynamics")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time for each contender in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import ogbench  # noqa: F401  (registers its environments)

    warnings.filterwarnings("ignore", module="gymnasium")
    report: dict[str, object] = {
        "machine": machine("ogbench", "gymnasium", "numpy", "mujoco"),
        "protocol": vars(arguments),
    }
    for body, kind in BODIES.items():
        for maze in ("medium", "large"):
            theirs = gym.make(f"{body}maze-{maze}-v0", terminate_at_goal=False).unwrapped
            ours = kind(1, maze=maze, autoreset_mode="Disabled", num_threads=1)
            cells = int((theirs.maze_map.astype(bool) != ours.maze.walls).sum())
            row: dict[str, object] = {
                "cells_that_differ": cells,
                "parameters_that_differ": models_differ(ours.models[0], theirs.model),
                "dynamics": dynamics(theirs, ours, arguments.steps),
            }
            many = kind(WORLDS, maze=maze, num_threads=1)
            many.reset(seed=0)
            theirs.reset(seed=0, options={"task_id": 1})
            width = ours.single_action_space.shape[0]
            actions = np.random.default_rng(0).uniform(-1, 1, (64, WORLDS, width))
            rounds = [
                (speed(many.step, actions, arguments.seconds), speed(theirs.step, actions[:, 0], arguments.seconds))
                for _ in range(arguments.rounds)
            ]
            median = np.median(rounds, axis=0).round().astype(int).tolist()
            row["steps_per_cpu_second"] = {"offroad": median[0], "ogbench": median[1]}
            report[f"{body}maze-{maze}"] = row
            print(f"{body}maze-{maze}", json.dumps(row), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
