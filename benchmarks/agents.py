"""PPO and SAC beside Stable-Baselines3 and SBX: same task, hyper-parameters, seeds and machine, in one go.

Every contender runs in a process of its own, one at a time. Two speeds are measured: "all in", from the creation of the
agent to the end of learning, so that compilation counts, and "steady", over the last part of the run (from a fifth of
it on; for SAC from the first gradient steps on), which is what a long run sees. Returns are those of the final
deterministic policy, over whole episodes of separate environments whose seeds training never saw; the code that
evaluates is the same for all.

    python benchmarks/agents.py --tasks Pendulum-v1 --agents SAC --steps 5000 --seeds 0 1
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from machine import machine

RESULTS = Path(__file__).parent / "results" / "agents.json"
CONTENDERS = ("offroad", "sbx", "sb3")
OURS = {
    "HalfCheetah-v5": "offroad/HalfCheetah-v5"
}  # the same task, batched; evaluated on Gymnasium's own like the others
EPISODES = 10
STEPS = {
    ("PPO", "HalfCheetah-v5"): 100_000,
    ("PPO", "Pendulum-v1"): 65_000,
    ("SAC", "HalfCheetah-v5"): 5_000,
    ("SAC", "Pendulum-v1"): 5_000,
}
TRIAL_STEPS = {"PPO": 16_384, "SAC": 768}  # after learning has started; to choose the number of threads

# The defaults of Stable-Baselines3 and SBX, but for the sixteen environments and the normalisation of PPO. SAC collects
# and learns in chunks of 64 steps, as many gradient steps as steps of the environment, which helps compiled contenders.
PPO = {
    "num_envs": 16,
    "rollout": 128,
    "batch": 64,
    "epochs": 10,
    "hidden": (64, 64),
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "lambda": 0.95,
    "clip": 0.2,
    "entropy": 0.0,
    "value_weight": 0.5,
    "max_grad_norm": 0.5,
}
SAC = {
    "num_envs": 1,
    "chunk": 64,
    "batch": 256,
    "hidden": (256, 256),
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
    "replay": 1_000_000,
    "learning_starts": {"HalfCheetah-v5": 2_000, "Pendulum-v1": 1_000},
}

Policy = Callable[[np.ndarray], np.ndarray]  # [episodes, observation] -> [episodes, action]
Ticks = list[tuple[float, int]]  # (seconds since the start, environment steps done), once for each collection


def train_offroad(agent: str, task: str, steps: int, seed: int) -> tuple[int, Ticks, Policy]:
    """This library. Returns steps, how they went by and the deterministic policy."""
    import jax

    import offroad
    from offroad import train
    from offroad.agents import ppo, sac
    from offroad.data.replay import Replay
    from offroad.data.spaces import Spaces

    settings = PPO if agent == "PPO" else SAC
    env = offroad.make_vec(OURS.get(task, task), num_envs=settings["num_envs"])
    start, ticks = time.perf_counter(), []

    def tick(metrics: dict[str, Any]) -> None:
        ticks.append((time.perf_counter() - start, metrics["step"]))

    if agent == "PPO":
        config = ppo.PPOConfig(
            rollout=PPO["rollout"],
            minibatch=PPO["batch"],
            epochs=PPO["epochs"],
            hidden=PPO["hidden"],
            learning_rate=PPO["learning_rate"],
            discount=PPO["gamma"],
            gae=PPO["lambda"],
            clip=PPO["clip"],
            entropy=PPO["entropy"],
            value_weight=PPO["value_weight"],
            max_grad_norm=PPO["max_grad_norm"],
        )
        learner = ppo.PPO.create(Spaces.of(env), config, jax.random.key(seed))
        result = train.on_policy(learner, env, steps, seed=seed, progress=False, callback=tick)
    else:
        config = sac.SACConfig(
            batch=SAC["batch"],
            hidden=SAC["hidden"],
            learning_rate=SAC["learning_rate"],
            discount=SAC["gamma"],
            polyak=SAC["tau"],
        )
        learner = sac.SAC.create(Spaces.of(env), config, jax.random.key(seed))
        result = train.off_policy(
            learner,
            env,
            steps,
            seed=seed,
            replay=Replay(SAC["replay"]),
            learning_starts=SAC["learning_starts"][task],
            train_every=SAC["chunk"],
            progress=False,
            callback=tick,
        )
    trained = jax.block_until_ready(result.agent)
    tick({"step": result.step})
    act = jax.jit(lambda observation: trained.act(observation)[0])
    return result.step, ticks, lambda observation: np.asarray(act(observation))


def train_peer(library: str, agent: str, task: str, steps: int, seed: int, threads: int) -> tuple[int, Ticks, Policy]:
    """Stable-Baselines3 or SBX, which share an interface. Returns as `train_offroad`."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(threads)
    if library == "sb3":
        algorithm, tanh = getattr(sb3, agent), torch.nn.Tanh
    else:
        import flax.linen
        import sbx

        algorithm, tanh = getattr(sbx, agent), flax.linen.tanh
    settings = PPO if agent == "PPO" else SAC
    env = make_vec_env(task, settings["num_envs"], seed=seed)  # DummyVecEnv, as the documentation recommends here
    if agent == "PPO":
        env = VecNormalize(env, gamma=PPO["gamma"])
        options = {
            "n_steps": PPO["rollout"],
            "batch_size": PPO["batch"],
            "n_epochs": PPO["epochs"],
            "gae_lambda": PPO["lambda"],
            "clip_range": PPO["clip"],
            "ent_coef": PPO["entropy"],
            "vf_coef": PPO["value_weight"],
            "max_grad_norm": PPO["max_grad_norm"],
            "policy_kwargs": {"net_arch": list(PPO["hidden"]), "activation_fn": tanh, "ortho_init": True},
        }
    else:
        options = {
            "buffer_size": SAC["replay"],
            "learning_starts": SAC["learning_starts"][task],
            "batch_size": SAC["batch"],
            "tau": SAC["tau"],
            "train_freq": SAC["chunk"],
            "gradient_steps": SAC["chunk"],
            "ent_coef": "auto",
            "policy_kwargs": {"net_arch": list(SAC["hidden"])},
        }
    start, ticks = time.perf_counter(), []

    class Tick(BaseCallback):
        def _on_rollout_start(self) -> None:
            ticks.append((time.perf_counter() - start, self.model.num_timesteps))

        def _on_step(self) -> bool:
            return True

    model = algorithm(
        "MlpPolicy",
        env,
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        seed=seed,
        device="cpu",
        **options,
    )
    model.learn(steps, callback=Tick())
    ticks.append((time.perf_counter() - start, model.num_timesteps))

    def policy(observation: np.ndarray) -> np.ndarray:
        if agent == "PPO":
            observation = env.normalize_obs(observation)
        return model.predict(observation, deterministic=True)[0]

    return model.num_timesteps, ticks, policy


def evaluate(policy: Policy, task: str, seed: int) -> list[float]:
    """The returns of `EPISODES` first episodes, one from each of as many environments."""
    env = gym.make_vec(task, num_envs=EPISODES, vectorization_mode="sync")
    observation, _ = env.reset(seed=100_000 + 1_000 * seed)
    total, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    low, high = env.single_action_space.low, env.single_action_space.high
    while running.any():
        observation, reward, terminated, truncated, _ = env.step(np.clip(policy(observation), low, high))
        total += reward * running
        running &= ~(terminated | truncated)
    return total.tolist()


def contend(contender: str, agent: str, task: str, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """One contender's run in this process."""
    if contender == "offroad":
        done, ticks, policy = train_offroad(agent, task, steps, seed)
    else:
        done, ticks, policy = train_peer(contender, agent, task, steps, seed, threads)
    wall, last = ticks[-1]
    warm = done / 5 if agent == "PPO" else SAC["learning_starts"][task] + 5 * SAC["chunk"]
    since, first = next(tick for tick in ticks if tick[1] >= warm)
    return {
        "steps": done,
        "wall_s": wall,
        "steps_per_s": done / wall,
        "steady_steps_per_s": (last - first) / (wall - since),
        "returns": evaluate(policy, task, seed),
    }


def apart(**run: Any) -> dict[str, Any]:
    """`contend` in a fresh process with its own number of threads for PyTorch, BLAS and XLA."""
    threads = {k: str(run["threads"]) for k in ("OMP_NUM_THREADS", "NPROC")}
    command = [sys.executable, __file__, "--contend", json.dumps(run)]
    before = os.getloadavg()[0]
    done = subprocess.run(
        command, env=os.environ | threads | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{run['contender']} failed on {run['task']}; its own message stands above")
    return run | json.loads(done.stdout.splitlines()[-1]) | {"load_before": round(before, 2)}


def best_threads(contender: str, agent: str, task: str) -> tuple[int, dict[str, float]]:
    """Tries one thread and one for each core for a short time: more is not always faster for small networks."""
    steps = TRIAL_STEPS[agent] + (SAC["learning_starts"][task] if agent == "SAC" else 0)
    tried = {
        n: apart(contender=contender, agent=agent, task=task, steps=steps, seed=0, threads=n)["steady_steps_per_s"]
        for n in sorted({1, len(os.sched_getaffinity(0))})
    }
    return max(tried, key=lambda n: tried[n]), {str(n): speed for n, speed in tried.items()}


def grouped(runs: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, list[dict[str, Any]]]]:
    """`{(task, agent): {contender: runs}}`."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        found.setdefault((run["task"], run["agent"]), {}).setdefault(run["contender"], []).append(run)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: median and range over seeds of the speeds, and of each seed's mean return."""
    head = "task, agent, steps, seeds, contender, threads, steady steps/s, of sb3, all in steps/s, of sb3, return"
    lines = ["| " + " | ".join(head.split(", ")) + " |", "|" + " --- |" * 11]
    for (task, agent), contenders in grouped(runs).items():
        for contender, found in contenders.items():
            cells = [task, agent, f"{found[0]['steps']:,}", str(len(found)), contender, str(found[0]["threads"])]
            for kind in ("steady_steps_per_s", "steps_per_s"):
                base = np.median([r[kind] for r in contenders.get("sb3", [])] or np.nan)
                speed = np.array([r[kind] for r in found])
                middle = np.median(speed)
                cells += [f"{middle:,.0f} ({speed.min():,.0f} to {speed.max():,.0f})", f"{middle / base:.1f} x"]
            score = np.array([np.mean(r["returns"]) for r in found])
            cells.append(f"{np.median(score):,.0f} ({score.min():,.0f} to {score.max():,.0f})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Speed above, return below, one column for each task and agent, one dot for each seed."""
    groups = grouped(runs)
    figure, axes = plt.subplots(2, len(groups), figsize=(3.2 * len(groups), 5), squeeze=False, layout="constrained")
    for column, ((task, agent), contenders) in zip(axes.T, groups.items(), strict=True):
        for ax, label, value in (
            (column[0], "steady env steps/s", lambda r: r["steady_steps_per_s"]),
            (column[1], "return", lambda r: np.mean(r["returns"])),
        ):
            for i, (contender, found) in enumerate(contenders.items()):
                values = [value(r) for r in found]
                ours = contender == "offroad"
                ax.plot([i] * len(values), values, "o", color="tab:orange" if ours else "tab:gray", alpha=0.6)
                ax.plot([i - 0.25, i + 0.25], [np.median(values)] * 2, color="tab:orange" if ours else "tab:gray", lw=2)
            ax.set_xticks(range(len(contenders)), contenders)
            ax.set_xlim(-0.5, len(contenders) - 0.5)
            ax.set_ylabel(label)
            ax.spines[["top", "right"]].set_visible(False)
        column[0].set_ylim(bottom=0)
        column[0].set_title(f"{agent}, {task}\n{next(iter(contenders.values()))[0]['steps']:,} steps", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO and SAC beside Stable-Baselines3 and SBX.")
    parser.add_argument(
        "--tasks", nargs="+", default=["Pendulum-v1", "HalfCheetah-v5"], choices=sorted({t for _, t in STEPS})
    )
    parser.add_argument("--agents", nargs="+", default=["PPO", "SAC"], choices=["PPO", "SAC"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--steps", type=int, help="environment steps of every run; default: by task and agent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--contend", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        print(json.dumps(contend(**options.contend)))
        return

    found: dict[str, Any] = {
        "machine": machine("jax", "gymnasium", "mujoco", "numpy", "torch", "stable-baselines3", "sbx-rl", "offroad"),
        "settings": {"PPO": PPO, "SAC": SAC},
        "threads": {},
        "runs": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        for agent in options.agents:
            steps = options.steps or STEPS[agent, task]
            threads = {}
            for contender in options.contenders:
                threads[contender], tried = best_threads(contender, agent, task)
                found["threads"][f"{task} {agent} {contender}"] = tried
            for seed in options.seeds:
                for contender in options.contenders:
                    run = {"contender": contender, "agent": agent, "task": task, "steps": steps, "seed": seed}
                    run = apart(**run, threads=threads[contender])
                    found["runs"].append(run)
                    options.out.write_text(json.dumps(found, indent=1) + "\n")  # at once: an interruption loses one run
                    speed, score = run["steps_per_s"], np.mean(run["returns"])
                    print(
                        f"{task} {agent} seed {seed} {contender}: {speed:,.0f} steps/s, return {score:,.0f}",
                        file=sys.stderr,
                    )
    draw(found["runs"], options.out.with_suffix(".png"))
    options.out.with_suffix(".md").write_text(table(found["runs"]) + "\n")
    print(table(found["runs"]))


if __name__ == "__main__":
    main()
