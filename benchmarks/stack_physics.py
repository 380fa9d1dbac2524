"""Environment steps per second and core of `offroad/Stack-v0`, beside Gymnasium-Robotics' Fetch with one block.

    python benchmarks/stack_physics.py --num-envs 16 --seconds 2 --rounds 5

Random actions, one thread, resets included. All contenders run in one process, in turn, round after round, so that a
noisy machine disturbs all alike. "per CPU-s" divides by the CPU time of the process, which other work on the machine
disturbs less than wall time. A short decision lasts 40 ms, as Fetch's step does; a long one 184 ms. Fetch moves an arm
of seven joints and knows one block, so it is a yardstick of what a user would use otherwise, not the same task.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from machine import machine

from offroad.envs.stack import Stack

BLOCKS = (1, 2, 4, 6, 9)
RESULTS = Path(__file__).parent / "results" / "stack_physics.json"

Step = Callable[[np.ndarray], object]


def fetch(num_envs: int) -> Step | None:
    """Steps `num_envs` copies of FetchPickAndPlace, or None with the reason printed."""
    try:
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        env = gym.make_vec("FetchPickAndPlace-v4", num_envs, vectorization_mode="sync")
        env.reset(seed=0)
    except (ImportError, gym.error.Error, AssertionError) as error:
        print(f"FetchPickAndPlace-v4 is left out: {type(error).__name__} {error}")
        return None
    return env.step


def measure(step: Step, actions: np.ndarray, seconds: float) -> tuple[float, float]:
    """Environment steps per second of wall time and of CPU time."""
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        step(actions[done % len(actions)])
        done += 1
    total = done * actions.shape[1]
    return total / (time.perf_counter() - wall), total / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    steps: dict[str, Step] = {}
    divergences = []
    for decision in ("short", "long"):
        for blocks in BLOCKS:
            env = Stack(arguments.num_envs, blocks=blocks, decision=decision, num_threads=1)
            env.reset(seed=0)
            steps[f"{decision} {blocks}"] = env.step
            divergences.append(env.divergences)
    if fetched := fetch(arguments.num_envs):
        steps["FetchPickAndPlace-v4"] = fetched

    report = {
        "machine": machine("mujoco", "gymnasium", "numpy", "gymnasium-robotics"),
        "protocol": vars(arguments),
        "steps_per_second": {},
    }
    actions = np.random.default_rng(0).uniform(-1, 1, (256, arguments.num_envs, 4)).astype(np.float32)
    figures = {name: [] for name in steps}
    for step in steps.values():
        measure(step, actions, 0.3)  # warm up
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            figures[name].append(measure(step, actions, arguments.seconds))

    print(f"{arguments.num_envs} worlds, one thread: environment steps per second")
    print(f"{'decision, blocks':26}{'median':>10}{'worst':>10}{'best':>10}{'per CPU-s':>11}")
    for name, measured in figures.items():
        wall, cpu = zip(*measured)
        row = {
            "median": round(statistics.median(wall)),
            "worst": round(min(wall)),
            "best": round(max(wall)),
            "per_cpu_second": round(statistics.median(cpu)),
        }
        report["steps_per_second"][name] = row
        print(f"{name:26}{row['median']:>10}{row['worst']:>10}{row['best']:>10}{row['per_cpu_second']:>11}")
    report["divergences"] = int(np.sum(divergences))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['divergences']} worlds diverged; written to {RESULTS}")


if __name__ == "__main__":
    main()
