"""Training on fresh experience: collect a rollout with the present policy, learn from it, forget it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gymnasium.vector import VectorEnv

from offroad.agents.agent import Agent
from offroad.data.transitions import Rollout
from offroad.train.checkpoint import Saved
from offroad.train.collect import HostCollector, is_compiled, summarise
from offroad.train.collect_compiled import JaxCollector, JaxState, summary
from offroad.train.devices import DataParallel
from offroad.train.loop import Metrics, Schedule, Seeds, TrainResult, describe, drive, one_seed


def on_policy(
    agent: Agent,
    env: VectorEnv,
    steps: int,
    *,
    seed: int | Sequence[int] = 0,
    out: str | Path | None = None,
    resume: bool = False,
    eval_env: VectorEnv | None = None,
    schedule: Schedule = Schedule(),
    rollouts_per_call: int = 1,
    devices: int = 1,
    progress: bool = True,
    wandb: bool = False,
    callback: Callable[[Metrics], None] | None = None,
) -> TrainResult:
    """Trains an on-policy agent (PPO) for at least `steps` environment steps.

    **Arguments:**

    - `agent`: a fresh or pre-trained agent whose config has `rollout`, the steps of each environment per update.
    - `env`: any Gymnasium vector environment. One written in JAX is compiled together with the learner into one call.
    - `seed`: of environments and exploration. Several seeds train side by side in one compiled call (JAX environments
        only): `agent` is then a stack of agents, `agents.stacked([...])`, and the metrics are lists.
    - `out`: the run folder; `None` keeps everything in memory. `resume` continues the run that it holds.
    - `eval_env`: a separate environment for evaluation; `schedule` says when to evaluate, log and save.
    - `rollouts_per_call`: updates per compiled call, for JAX environments.
    - `devices`: spread environments and batches over this many devices.
    - `callback`: called after every chunk with its metrics, among them `step`.
    """
    config = describe("on_policy", agent, env, seed, rollouts_per_call=rollouts_per_call)
    if is_compiled(env):
        loop = _JaxLoop(agent, env, seed, rollouts_per_call, devices)
    else:
        loop = _HostLoop(agent, env, seed, devices)
    return drive(
        loop,
        env,
        steps,
        schedule=schedule,
        config=config,
        out=out,
        resume=resume,
        eval_env=eval_env,
        progress=progress,
        wandb=wandb,
        callback=callback,
    )


class _HostLoop:
    stacked = False

    def __init__(self, agent: Agent, env: VectorEnv, seed: int | Sequence[int], devices: int):
        self.agent, self.step, self.seed = agent, 0, one_seed(seed)
        self._collector = HostCollector(env)
        self._env_metrics: Callable[[], Metrics] = getattr(env, "metrics", dict)
        self._rollout: int = agent.config.rollout
        self._key = jax.random.key(self.seed)
        self._update = jax.jit(lambda agent, rollout, key: agent.update(rollout, key))
        self._updates = 0
        self._devices = DataParallel(devices)

    def start(self) -> None:
        self.agent = self.agent.begin_episodes()
        self._collector.reset(self.agent, self.seed)

    def advance(self) -> tuple[Metrics, Metrics]:
        act_key, update_key = jax.random.split(self._key)
        rollout, episodes = self._collector.collect(self.agent, act_key, self._rollout)
        update_key = jax.random.fold_in(update_key, self._updates)
        placed = Rollout(
            self._devices.split(rollout.transitions, 1),
            self._devices.split(rollout.memory, 0),
            self._devices.split(rollout.mask, 1),
        )
        self.agent, metrics = self._update(self._devices.replicate(self.agent), placed, update_key)
        self._updates += 1
        self.step += int(rollout.mask.sum())
        return metrics, summarise(episodes) | self._env_metrics()

    def state(self) -> dict[str, Any]:
        return {"agent": self.agent, "collector": self._collector.get_state(), "updates": self._updates}

    def restore(self, saved: Saved) -> bool:
        self.agent = saved.restore("agent", self.agent)
        self._updates = saved.value("updates")
        whole = self._collector.set_state(self.agent, saved.value("collector"), self.seed + self._updates)
        self.agent = self.agent if whole else self.agent.begin_episodes()
        return whole


class _JaxLoop(Seeds):
    """Rollout and update fuse into one compiled function, scanned over updates and vmapped over seeds."""

    def __init__(self, agent: Agent, env: VectorEnv, seed: int | Sequence[int], rollouts_per_call: int, devices: int):
        super().__init__(agent, seed)
        self._devices = DataParallel(devices)
        self._state: JaxState | None = None
        rollout: int = agent.config.rollout
        self._per_call = rollouts_per_call * rollout * env.num_envs
        collector = JaxCollector(env)

        def advance(agent: Agent, state: JaxState, key: jax.Array) -> Any:
            def iteration(carry: Any, key: jax.Array) -> Any:
                agent, state = carry
                collect_key, update_key = jax.random.split(key)
                state, batch, tally = collector.collect(agent, state, collect_key, rollout)
                agent, metrics = agent.update(batch, update_key)
                return (agent, state), (metrics, tally)

            key, scan_key = jax.random.split(key)
            (agent, state), (metrics, tallies) = jax.lax.scan(
                iteration, (agent, state), jax.random.split(scan_key, rollouts_per_call)
            )
            return agent, state, key, (jax.tree.map(jnp.mean, metrics), summary(tallies))

        whole, cut = self._devices.whole, self._devices.cut(1)
        self._advance = jax.jit(
            jax.vmap(advance), donate_argnums=(0, 1), out_shardings=(whole, cut, whole, whole) if whole else None
        )
        self._reset = jax.jit(jax.vmap(lambda agent, key: collector.reset(agent, key, staggered=True)))

    def start(self) -> None:
        split = jax.vmap(jax.random.split)(self.keys)
        agents = jax.vmap(lambda agent: agent.begin_episodes())(self.agents)
        self._place(agents, self._reset(agents, split[:, 1]), split[:, 0])

    def advance(self) -> tuple[Metrics, Metrics]:
        self.agents, self._state, self.keys, metrics = self._advance(self.agents, self._state, self.keys)
        self.step += self._per_call
        return self.read(metrics)

    def state(self) -> dict[str, Any]:
        return {"agent": self.agents, "envs": self._state, "keys": self.keys}

    def restore(self, saved: Saved) -> bool:
        state = jax.eval_shape(self._reset, self.agents, self.keys)
        names = ("agent", "envs", "keys")
        self._place(*(saved.restore(n, v) for n, v in zip(names, (self.agents, state, self.keys))))
        return True

    def _place(self, agents: Agent, state: JaxState, keys: jax.Array) -> None:
        self.agents, self.keys = self._devices.replicate(agents), self._devices.replicate(keys)
        self._state = self._devices.split(state, 1)
