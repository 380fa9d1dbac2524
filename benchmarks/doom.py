"""Decisions per second in the Doom maze: our threads against Gymnasium's processes, on the same single environment.

    python benchmarks/doom.py --num-envs 16 --decisions 4000

Both step the same engines with the same random actions, in turns, several times; "training" is what the study of
curiosity does, its learner and its reachability memory included. Writes benchmarks/results/doom.json: wall time, and
the processor time of this program, its worker processes and the engines together (Linux only).
"""

import argparse
import json
import os
import time
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import offroad
from offroad import train
from offroad.studies.curiosity.settings import CAMERA, curious

RESULTS = Path(__file__).parent / "results"
OPTIONS = {"start": "sparse", "actions": "macro"}


def single() -> gym.Env:
    import offroad  # noqa: F401 (registers the environment in the worker process)

    return gym.make("offroad/DoomMaze-v0", **OPTIONS)


def threads(num_envs: int) -> gym.vector.VectorEnv:
    return offroad.make_vec("offroad/DoomMaze-v0", num_envs, **OPTIONS)


def processes(num_envs: int) -> gym.vector.VectorEnv:
    return gym.vector.AsyncVectorEnv([single] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP, context="spawn")


def processor_seconds() -> float:
    """Of this process and all its living descendants."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours, grown = {os.getpid()}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in ours} - ours
        ours, grown = ours | more, bool(more)
    return sum(spent[process] for process in ours)


def training(num_envs: int, decisions: int, seed: int) -> dict[str, float]:
    """Of the second half of a run, in which nothing is compiled any more."""
    seen: list[tuple[int, float, float]] = []
    with closing(threads(num_envs)) as env:
        agent = curious("reachability", env, CAMERA, seed, extrinsic=0.0)
        train.on_policy(
            agent, env, 2 * decisions, seed=seed, progress=False, schedule=train.Schedule(log=decisions // 4),
            callback=lambda metrics: seen.append((metrics["step"], time.perf_counter(), processor_seconds())),
        )  # fmt: skip
    seen = [row for row in seen if row[0] >= decisions]
    made, wall, processor = (last - first for first, last in zip(seen[0], seen[-1]))
    return {"per_s": made / wall, "per_processor_s": made / processor}


def measure(make, num_envs: int, decisions: int, seed: int) -> dict[str, float]:
    env = make(num_envs)
    try:
        env.reset(seed=seed)
        random = np.random.default_rng(seed)
        for _ in range(20):
            env.step(random.integers(0, 5, num_envs))
        wall, processor = time.perf_counter(), processor_seconds()
        for _ in range(decisions // num_envs):
            env.step(random.integers(0, 5, num_envs))
        wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    finally:
        env.close()
    made = decisions // num_envs * num_envs
    return {"per_s": made / wall, "per_processor_s": made / processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--decisions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    arms = {"threads": threads, "processes": processes}
    runs = {name: [] for name in (*arms, "training")}
    for seed in range(options.repeats):
        for name, make in arms.items():
            runs[name].append(measure(make, options.num_envs, options.decisions, seed))
            print(name, {key: round(value) for key, value in runs[name][-1].items()})
        runs["training"].append(training(options.num_envs, 4 * options.decisions, seed))
        print("training", {key: round(value) for key, value in runs["training"][-1].items()})
    found = {
        **vars(options),
        **OPTIONS,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "runs": runs,
    }
    (RESULTS / "doom.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
