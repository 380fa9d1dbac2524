"""Training from a replay buffer: collect a few steps, remember them, learn from random samples of the memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorEnv

from offroad.agents.agent import Agent
from offroad.data.replay import JaxReplay, Replay
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.train.checkpoint import Saved
from offroad.train.collect import HostCollector, is_compiled, summarise
from offroad.train.collect_compiled import JaxCollector, summary
from offroad.train.devices import DataParallel
from offroad.train.loop import Metrics, Schedule, Seeds, TrainResult, describe, drive, one_seed


def off_policy(
    agent: Agent,
    env: VectorEnv,
    steps: int,
    *,
    seed: int | Sequence[int] = 0,
    replay: Replay | None = None,
    learning_starts: int = 10_000,
    train_every: int = 64,
    update_ratio: float = 1.0,
    out: str | Path | None = None,
    resume: bool = False,
    eval_env: VectorEnv | None = None,
    schedule: Schedule = Schedule(),
    devices: int = 1,
    progress: bool = True,
    wandb: bool = False,
    callback: Callable[[Metrics], None] | None = None,
) -> TrainResult:
    """Trains an off-policy agent (SAC, TD3, DDPG, DQN) for at least `steps` environment steps.

    **Arguments:**

    - `agent`: a fresh or pre-trained agent whose config has `batch`, the transitions per gradient step.
    - `env`: any Gymnasium vector environment. One written in JAX is compiled together with replay and learner. Another
        may have an integer attribute `deterministic_envs`: its first so many copies are acted in without exploration
        once the random actions are over, so that their episodes show what was learnt; and a method `metrics()`, whose
        dictionary is logged.
    - `seed`: of environments, exploration and sampling. Several seeds train side by side in one compiled call (JAX
        environments only): `agent` is then a stack of agents and the metrics are lists.
    - `replay`: the buffer; by default all of the run's transitions are kept, up to a million.
    - `learning_starts`: environment steps of uniformly random actions before the first gradient step.
    - `train_every`: steps of each environment between learning phases; the gradient steps of one phase are one
        compiled call.
    - `update_ratio`: gradient steps per environment step.
    - `out`, `resume`, `eval_env`, `schedule`, `devices`, `callback`: as in `on_policy`.
    """
    described = None if replay is None else replay.describe()
    replay = Replay(min(steps + env.num_envs * train_every, 1_000_000)) if replay is None else replay
    updates = round(train_every * env.num_envs * update_ratio)
    if updates < 1:
        raise OffroadError(
            f"update_ratio {update_ratio} gives no gradient step in {train_every} steps of {env.num_envs} "
            "environments; raise update_ratio or train_every"
        )
    config = describe(
        "off_policy",
        agent,
        env,
        seed,
        replay=described,
        learning_starts=learning_starts,
        train_every=train_every,
        update_ratio=update_ratio,
    )
    kind = _JaxLoop if is_compiled(env) else _HostLoop
    loop = kind(agent, env, seed, replay, learning_starts, train_every, updates, devices)
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


PIECE_BYTES = 1 << 28
"""Samples are handed to the compiled updates in pieces of at most this size: those of images would fill the memory."""


def update_many(agent: Any, batches: Any, keys: jax.Array) -> tuple[Any, Metrics]:
    """As many gradient steps as there are `keys` and `batches`, of an agent or another learner."""

    def one(agent: Any, step: Any) -> tuple[Any, Metrics]:
        batch, key = step
        return agent.update(batch, key)

    agent, metrics = jax.lax.scan(one, agent, (batches, keys))
    return agent, jax.tree.map(jnp.mean, metrics)


class _HostLoop:
    stacked = False

    def __init__(
        self,
        agent: Agent,
        env: VectorEnv,
        seed: int | Sequence[int],
        replay: Replay,
        learning_starts: int,
        train_every: int,
        updates: int,
        devices: int,
    ):
        # A copy: the compiled update overwrites its input.
        self.agent, self.step, self.seed = jax.tree.map(jnp.array, agent), 0, one_seed(seed)
        self._collector = HostCollector(env, deterministic=getattr(env, "deterministic_envs", 0))
        self._env_metrics: Callable[[], Metrics] = getattr(env, "metrics", dict)
        self._replay, self._starts, self._every, self._updates = replay, learning_starts, train_every, updates
        self._key = jax.random.key(self.seed)
        self._rng = np.random.default_rng(self.seed)
        self._devices = DataParallel(devices)
        self._learn = jax.jit(update_many, donate_argnums=0)

    def start(self) -> None:
        self._collector.reset(self.agent, self.seed)

    def advance(self) -> tuple[Metrics, Metrics]:
        act_key, update_key = jax.random.split(self._key)
        warm_up = self._rng if self.step < self._starts else None
        rollout, episodes = self._collector.collect(self.agent, act_key, self._every, warm_up)
        self._replay.add(rollout.transitions, rollout.mask)
        self.step += int(rollout.mask.sum())
        metrics: Metrics = {}
        if self.step >= self._starts:
            metrics = self._update(jax.random.fold_in(update_key, self._collector.count), rollout.transitions)
        return metrics, summarise(episodes) | self._env_metrics()

    def _update(self, key: jax.Array, example: Transition) -> Metrics:
        """One learning phase."""
        batch: int = self.agent.config.batch
        keys = jax.random.split(key, self._updates)
        update_bytes = batch * sum(x[0, 0].nbytes for x in jax.tree.leaves(example))
        fitting = max(PIECE_BYTES // update_bytes, 1)
        size = next(n for n in range(min(fitting, self._updates), 0, -1) if self._updates % n == 0)
        self.agent, found = self._devices.replicate(self.agent), []
        for start in range(0, self._updates, size):
            batches = self._devices.split(self._replay.sample(self._rng, (size, batch)), 1)
            self.agent, metrics = self._learn(self.agent, batches, keys[start : start + size])
            found.append(metrics)
        return jax.tree.map(lambda *values: np.mean(values), *found)

    def state(self) -> dict[str, Any]:
        return {
            "agent": self.agent,
            "collector": self._collector.get_state(),
            "replay": self._replay.get_state(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, saved: Saved) -> bool:
        self.agent = saved.restore("agent", self.agent)
        self._replay.set_state(saved.value("replay"))
        self._rng.bit_generator.state = saved.value("rng")
        return self._collector.set_state(self.agent, saved.value("collector"), self.seed + 1 + self.step)


class _JaxLoop(Seeds):
    """Collecting, remembering and learning fuse into one compiled function, vmapped over seeds."""

    def __init__(
        self,
        agent: Agent,
        env: VectorEnv,
        seed: int | Sequence[int],
        replay: Replay,
        learning_starts: int,
        train_every: int,
        updates: int,
        devices: int,
    ):
        super().__init__(agent, seed)
        self._devices = DataParallel(devices)
        self._starts, self._per_call = learning_starts, train_every * env.num_envs
        self._state: Any = None
        self._replay: Any = None
        if type(replay) is not Replay:
            raise OffroadError(
                f"environments written in JAX learn from a plain Replay, found a {type(replay).__name__}; put a "
                "Gymnasium vector wrapper around the environment, which is then stepped on the host"
            )
        if len(replay):
            raise OffroadError("environments written in JAX start from an empty replay; pass a new Replay(capacity)")
        collector = JaxCollector(env)
        batch: int = agent.config.batch

        def start(agent: Agent, key: jax.Array) -> Any:
            reset_key, step_key = jax.random.split(key)
            state = collector.reset(agent, reset_key)
            _, (transitions, _) = jax.eval_shape(lambda: collector.step(agent, state, step_key))
            example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), transitions)
            return state, JaxReplay.create(replay.capacity, example)

        def collect(agent: Agent, state: Any, replay: JaxReplay, key: jax.Array, random: bool) -> Any:
            state, rollout, tally = collector.collect(agent, state, key, train_every, random)
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout.transitions)
            return state, replay.add(flat), summary(tally)

        def warm_up(agent: Agent, state: Any, replay: JaxReplay, key: jax.Array) -> Any:
            key, collect_key = jax.random.split(key)
            state, replay, episodes = collect(agent, state, replay, collect_key, random=True)
            return agent, state, replay, key, ({}, episodes)

        def advance(agent: Agent, state: Any, replay: JaxReplay, key: jax.Array) -> Any:
            key, collect_key, sample_key, update_key = jax.random.split(key, 4)
            state, replay, episodes = collect(agent, state, replay, collect_key, random=False)

            def one(agent: Agent, keys: jax.Array) -> Any:
                return agent.update(self._devices.constrain(replay.sample(keys[0], batch), 0), keys[1])

            keys = jnp.stack([jax.random.split(sample_key, updates), jax.random.split(update_key, updates)], 1)
            agent, metrics = jax.lax.scan(one, agent, keys)
            return agent, state, replay, key, (jax.tree.map(jnp.mean, metrics), episodes)

        whole, cut = self._devices.whole, self._devices.cut(1)
        places = (whole, cut, whole, whole, whole) if whole else None
        self._start = jax.jit(jax.vmap(start))
        self._warm_up = jax.jit(jax.vmap(warm_up), donate_argnums=(0, 1, 2), out_shardings=places)
        self._advance = jax.jit(jax.vmap(advance), donate_argnums=(0, 1, 2), out_shardings=places)

    def start(self) -> None:
        split = jax.vmap(jax.random.split)(self.keys)
        state, replay = self._start(self.agents, split[:, 1])
        self._place(self.agents, state, replay, split[:, 0])

    def advance(self) -> tuple[Metrics, Metrics]:
        call = self._warm_up if self.step < self._starts else self._advance
        self.agents, self._state, self._replay, self.keys, metrics = call(
            self.agents, self._state, self._replay, self.keys
        )
        self.step += self._per_call
        return self.read(metrics)

    def state(self) -> dict[str, Any]:
        filled = min(self.step, self._replay.ring.reward.shape[1])  # the rest of the ring is zeros
        ring = jax.tree.map(lambda x: x[:, :filled], self._replay.ring)
        replay = {"filled": filled, "added": self._replay.added, "ring": ring}
        return {"agent": self.agents, "envs": self._state, "keys": self.keys, **replay}

    def restore(self, saved: Saved) -> bool:
        state, empty = jax.eval_shape(self._start, self.agents, self.keys)
        filled, capacity = saved.value("filled"), empty.ring.reward.shape[1]

        def part(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((x.shape[0], min(filled, capacity), *x.shape[2:]), x.dtype)

        def widen(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, 0), (0, capacity - filled)] + [(0, 0)] * (x.ndim - 2))

        ring = jax.tree.map(widen, saved.restore("ring", jax.tree.map(part, empty.ring)))
        replay = eqx.tree_at(
            lambda replay: (replay.ring, replay.added), empty, (ring, saved.restore("added", empty.added))
        )
        agents, keys = saved.restore("agent", self.agents), saved.restore("keys", self.keys)
        self._place(agents, saved.restore("envs", state), replay, keys)
        return True

    def _place(self, agents: Agent, state: Any, replay: JaxReplay, keys: jax.Array) -> None:
        whole = self._devices.replicate
        self.agents, self._state, self._replay = whole(agents), self._devices.split(state, 1), whole(replay)
        self.keys = whole(keys)
