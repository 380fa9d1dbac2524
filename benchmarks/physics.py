"""Environment steps per second with random actions: ours, bare `mujoco.rollout`, Gymnasium and envpool.

    python benchmarks/physics.py --num-envs 16 --seconds 2 --rounds 5

All contenders run in one process, in turn, round after round, so that a noisy machine disturbs all alike; the table
shows the median over the rounds. All get the same actions and return observations, rewards and flags, except for bare
rollout, which only steps the physics: the ceiling. Threads (ours, envpool) or processes (AsyncVectorEnv) may use every
core. "per CPU-s" divides by the CPU time of this process, which does not include AsyncVectorEnv's workers.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from machine import machine
from mujoco import rollout

from offroad.envs.locomotion import ASSETS, make_vector

TASKS = {"HalfCheetah-v5": "half_cheetah.xml", "Ant-v5": "ant.xml"}
FRAME_SKIP = 5
RESULTS = Path(__file__).parent / "results" / "physics.json"

Step = Callable[[np.ndarray], object]


def contenders(task: str, num_envs: int, threads: int, stack: ExitStack) -> dict[str, Step]:
    """For each contender a function that steps all its worlds once. Starts them all; `stack` closes them."""
    ours = make_vector(task, num_envs, max_episode_steps=1000, num_threads=threads)
    sync = SyncVectorEnv([lambda: gym.make(task)] * num_envs)
    processes = AsyncVectorEnv([lambda: gym.make(task)] * num_envs)
    for env in (ours, sync, processes):
        stack.callback(env.close)
        env.reset(seed=0)
    steps: dict[str, Step] = {
        "offroad": ours.step,
        "bare mujoco.rollout": bare_rollout(TASKS[task], num_envs, threads),
        "gymnasium SyncVectorEnv": sync.step,
        "gymnasium AsyncVectorEnv": processes.step,
    }
    try:
        import envpool
    except ImportError as error:
        print(f"envpool is left out: {error}")
    else:
        pool = envpool.make_gymnasium(task, num_envs=num_envs, num_threads=threads, seed=0)
        stack.callback(pool.close)
        pool.reset()
        steps["envpool"] = pool.step
    return steps


def bare_rollout(asset: str, num_envs: int, threads: int) -> Step:
    """Physics only, from state to state, without resets."""
    model = mujoco.MjModel.from_xml_path(str(ASSETS / asset))
    pool = rollout.Rollout(nthread=threads)
    models, data = [model] * num_envs, [mujoco.MjData(model) for _ in range(threads)]
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    state = np.empty((num_envs, mujoco.mj_stateSize(model, full)))
    mujoco.mj_getState(model, data[0], state[0], full)
    state[:] = state[0]
    sensors = np.empty((num_envs, FRAME_SKIP, model.nsensordata))
    states = np.empty((num_envs, FRAME_SKIP, state.shape[1]))

    def step(action: np.ndarray) -> None:
        control = np.repeat(action[:, None].astype(float), FRAME_SKIP, axis=1)
        pool.rollout(
            models,
            data,
            state,
            control,
            skip_checks=True,
            nstep=FRAME_SKIP,
            state=states,
            sensordata=sensors,
            chunk_size=-(-num_envs // threads),
        )
        state[:] = states[:, -1]

    return step


def measure(step: Step, actions: np.ndarray, seconds: float) -> tuple[float, float]:
    """Environment steps per second of wall time and of this process's CPU time."""
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        step(actions[done % len(actions)])
        done += 1
    total = done * actions.shape[1]
    return total / (time.perf_counter() - wall), total / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    report = {
        "machine": machine("mujoco", "gymnasium", "numpy", "envpool"),
        "protocol": vars(arguments),
        "steps_per_second": {},
    }
    for task in TASKS:
        with ExitStack() as stack:
            steps = contenders(task, arguments.num_envs, arguments.threads, stack)
            model = mujoco.MjModel.from_xml_path(str(ASSETS / TASKS[task]))
            actions = np.random.default_rng(0).uniform(-1, 1, (256, arguments.num_envs, model.nu)).astype(np.float32)
            figures = {name: [] for name in steps}
            for step in steps.values():
                measure(step, actions, 0.3)  # warm up
            for _ in range(arguments.rounds):
                for name, step in steps.items():
                    figures[name].append(measure(step, actions, arguments.seconds))
        print(f"\n{task}, {arguments.num_envs} worlds, {arguments.threads} threads: environment steps per second")
        print(f"{'':26}{'median':>10}{'worst':>10}{'best':>10}{'per CPU-s':>11}")
        rows = report["steps_per_second"][task] = {}
        for name, measured in figures.items():
            wall, cpu = zip(*measured)
            row = {
                "median": round(statistics.median(wall)),
                "worst": round(min(wall)),
                "best": round(max(wall)),
                "per_cpu_second": round(statistics.median(cpu)) if "Async" not in name else None,
            }
            rows[name] = row
            print(f"{name:26}" + "".join(f"{row[c] or '-':>10}" for c in ("median", "worst", "best", "per_cpu_second")))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {RESULTS}")


if __name__ == "__main__":
    main()
