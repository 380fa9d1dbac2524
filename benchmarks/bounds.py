"""What bounds each training loop, and how far from the bound it is.

    python benchmarks/bounds.py

- PPO on HalfCheetah (16 copies x 128 steps, the settings of `agents.py`): the time of a rollout in physics, in the
  policy and in the rest; the time of the update.
- SAC (2 x 256, batch 256): the floating-point operations of an update at the speed of one matrix product of its size.
- The ring road: the compiled loop beside the same environment stepped from Python.

Writes benchmarks/results/bounds.json.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorWrapper

import offroad
from offroad import train
from offroad.agents import PPO, SAC, PPOConfig, SACConfig
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.train.collect import HostCollector

RESULTS = Path(__file__).parent / "results" / "bounds.json"


def seconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """The median time of a call that has been warmed up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ppo() -> dict[str, float]:
    env = offroad.make_vec("offroad/HalfCheetah-v5", 16)
    agent = PPO.create(Spaces.of(env), PPOConfig(rollout=128), jax.random.key(0))
    collector = HostCollector(env)
    collector.reset(agent, 0)
    key = jax.random.key(1)
    rollout, _ = collector.collect(agent, key, 128)
    act = collector.policy.bind(agent, key)
    observation, action = collector.observation, np.zeros((16, 6), np.float32)

    def physics() -> None:
        for _ in range(128):
            env.step(action)

    def policy() -> None:
        for count in range(128):
            act(observation, count, ())

    update = jax.jit(lambda agent, rollout, key: agent.update(rollout, key)[0])
    found = {
        "physics_s": seconds(physics),
        "policy_s": seconds(policy),
        "rollout_s": seconds(lambda: collector.collect(agent, key, 128)),
        "update_s": seconds(lambda: update(agent, rollout, key)),
    }
    return found | {"steps_per_s": 2048 / (found["rollout_s"] + found["update_s"])}


def sac() -> dict[str, float]:
    """Multiply-adds per sample of HalfCheetah's 17 observations and 6 actions, forward passes and gradients."""
    batch, wide, updates = 256, 256, 64
    actor, critic = 17 * wide + wide * wide + wide * 12, 23 * wide + wide * wide + wide
    forward = actor + 2 * critic  # the target
    critic_step = 2 * (critic + critic + wide * wide + wide)  # forward, weight gradients, hidden gradients
    actor_step = 2 * actor + wide * wide + wide * 12 + 2 * 2 * critic  # and through the critics to the action
    flop = 2.0 * batch * (forward + critic_step + actor_step)

    w = jnp.ones((wide, wide)) / wide
    product = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=1000)[0])
    rate = 1000 * 2 * batch * wide * wide / seconds(lambda: product(jnp.ones((batch, wide))))

    env = offroad.make_vec("offroad/HalfCheetah-v5")
    stamps: list[tuple[float, int]] = []
    train.off_policy(
        SAC.create(Spaces.of(env), SACConfig(), jax.random.key(0)),
        env,
        2_000,
        replay=Replay(10_000),
        learning_starts=256,
        train_every=updates,
        progress=False,
        callback=lambda m: stamps.append((time.perf_counter(), m["step"])),
    )
    (t0, s0), (t1, s1) = stamps[-16], stamps[-1]
    step = (t1 - t0) / (s1 - s0)
    return {
        "flop_per_update": flop,
        "flop_per_s_of_one_product": rate,
        "bound_s": flop / rate,
        "step_s": step,
        "share_of_bound": flop / rate / step,
    }


def ring() -> dict[str, float]:
    config = PPOConfig(rollout=128, minibatch=4096, epochs=4, hidden=(32, 32))

    def speed(env: Any, steps: int) -> float:
        stamps: list[tuple[float, int]] = []
        agent = PPO.create(Spaces.of(env), config, jax.random.key(0))
        note = lambda m: stamps.append((time.perf_counter(), m["step"]))  # noqa: E731
        train.on_policy(agent, env, steps, progress=False, callback=note)
        (t0, s0), (t1, s1) = stamps[1], stamps[-1]
        return (s1 - s0) / (t1 - t0)

    make = lambda: offroad.make_vec("offroad/RingRoad-v0", 256)  # noqa: E731
    compiled, host = speed(make(), 500_000), speed(VectorWrapper(make()), 300_000)
    return {"compiled_steps_per_s": compiled, "host_steps_per_s": host, "ratio": compiled / host}


if __name__ == "__main__":
    found = {"ppo": ppo(), "sac": sac(), "ring": ring()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name, part in found.items():
        print(name, {k: float(f"{v:.3g}") for k, v in part.items()})
