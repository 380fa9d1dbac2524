"""Learning to walk with a reward to move right: PPO on HalfCheetah and Ant, evaluated on Gymnasium's own environments.

    python benchmarks/walking.py --tasks HalfCheetah-v5 Ant-v5 --steps 2000000 --seeds 0

Writes benchmarks/results/walking.json and walking.png: the return of the deterministic policy (10 episodes, seeds that
training never saw) every tenth of the run; the last point is the last agent, not the best.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

import offroad
from offroad import train
from offroad.agents import PPO, PPOConfig
from offroad.data.spaces import Spaces
from offroad.report import plots

RESULTS = Path(__file__).parent / "results"
CONFIG = PPOConfig(rollout=128, minibatch=512, epochs=5, hidden=(256, 256), learning_rate=3e-4, initial_std=0.6)
COPIES = 32


def learn(task: str, steps: int, seed: int) -> dict:
    env = offroad.make_vec(f"offroad/{task}", COPIES)
    judge = offroad.make_vec(task, 10)  # Gymnasium's, not ours
    agent = PPO.create(Spaces.of(env), CONFIG, jax.random.key(seed))
    untrained = train.evaluate(agent, judge, 10, seed=10_000 + seed).returns.mean()
    start = time.perf_counter()
    schedule = train.Schedule(evaluate=steps // 10, log=steps)
    run = train.on_policy(agent, env, steps, seed=seed, eval_env=judge, schedule=schedule)
    curve = [(0, float(untrained))] + [(row["step"], row["eval/return"]) for row in run.history if "eval/return" in row]
    return {"task": task, "seed": seed, "steps": run.step, "wall_s": time.perf_counter() - start, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["HalfCheetah-v5", "Ant-v5"])
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    runs = [learn(task, options.steps, seed) for task in options.tasks for seed in options.seeds]
    found = {"config": {k: v for k, v in vars(CONFIG).items() if k != "encoder"}, "copies": COPIES, "runs": runs}
    (RESULTS / "walking.json").write_text(json.dumps(found, indent=1) + "\n")
    curves = {}
    for task in options.tasks:
        each = [np.array(run["curve"]) for run in runs if run["task"] == task]
        curves[task] = (each[0][:, 0], np.stack([c[:, 1] for c in each], 1))
        print(task, "return after", int(each[0][-1, 0]), "steps:", [round(float(c[-1, 1])) for c in each])
    plots.learning_curves(RESULTS / "walking.png", curves, "return of the deterministic policy")


if __name__ == "__main__":
    main()
