"""How good a policy is: whole episodes of the deterministic policy on seeds that training never saw."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int

from offroad.agents.agent import Agent
from offroad.errors import OffroadError
from offroad.train.collect import HostCollector, is_compiled
from offroad.train.collect_compiled import JaxCollector

LONGEST = 100_000
"""An episode of so many steps is taken for one that never ends."""


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths, one an episode; agents stacked over seeds have one row a seed."""

    returns: Float[np.ndarray, "*seeds episodes"]
    lengths: Int[np.ndarray, "*seeds episodes"]

    def metrics(self) -> dict[str, Any]:
        return {"eval/return": self.returns.mean(-1), "eval/length": self.lengths.mean(-1)}


def evaluate(agent: Agent, env: VectorEnv, episodes: int = 10, *, seed: int = 0, stacked: bool = False) -> Evaluation:
    """Runs the deterministic policy for at least `episodes` episodes of `env`, started with `seed`.

    Raises `OffroadError` if an episode does not end: within 100,000 steps, or for want of a time limit in JAX.
    """
    return Evaluator(env, episodes, stacked)(agent, seed)


class Evaluator:
    """`evaluate`, compiled once and used many times.

    The episodes are shared out over the environments in advance, `episodes / num_envs` each: taking the first ones to
    finish would favour short ones.
    """

    def __init__(self, env: VectorEnv, episodes: int, stacked: bool = False):
        self.env, self.stacked = env, stacked
        self.quota = -(-episodes // env.num_envs)
        if not is_compiled(env):
            self._collector = HostCollector(env)
        else:
            run = _compiled_episodes(JaxCollector(env), self.quota)
            self._run = jax.jit(jax.vmap(run, in_axes=(0, None)) if stacked else run)

    def __call__(self, agent: Agent, seed: int) -> Evaluation:
        if is_compiled(self.env):
            returns, lengths = self._run(agent, jax.random.key(seed))
        elif self.stacked:
            agents = [jax.tree.map(lambda x: x[i], agent) for i in range(jax.tree.leaves(agent)[0].shape[0])]  # noqa: B023
            returns, lengths = zip(*(self._host_episodes(agent, seed) for agent in agents))
        else:
            returns, lengths = self._host_episodes(agent, seed)
        return Evaluation(np.asarray(returns), np.asarray(lengths))

    def _host_episodes(self, agent: Agent, seed: int) -> tuple[list[float], list[int]]:
        collector, found = self._collector, [[] for _ in range(self.env.num_envs)]
        collector.reset(agent, seed)
        while waiting := [i for i, episodes in enumerate(found) if len(episodes) < self.quota]:
            if (collector.length[waiting] >= LONGEST).any():
                raise OffroadError(
                    f"an episode of {collector.name!r} has not ended after {LONGEST} steps, so it cannot be "
                    "evaluated; add a time limit: gymnasium.wrappers.TimeLimit or max_episode_steps"
                )
            _, ended = collector.collect(agent, None, 32)
            for episode in ended:
                found[episode.env].append(episode)
        chosen = [episode for episodes in found for episode in episodes[: self.quota]]
        return [episode.total for episode in chosen], [episode.length for episode in chosen]


def _compiled_episodes(collector: JaxCollector, quota: int) -> Any:
    """A pure function `(agent, key) -> (returns, lengths)` of the first `quota` episodes of each environment."""
    if not collector.limit:
        raise OffroadError("evaluating an environment written in JAX needs a time limit: give it max_episode_steps")
    length = collector.limit * quota

    def run(agent: Agent, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        reset_key, step_key = jax.random.split(key)

        def step(state: Any, key: jax.Array) -> Any:
            state, (_, episodes) = collector.step(agent, state, key, deterministic=True)
            return state, (episodes["done"], episodes["return"], episodes["length"])

        state = collector.reset(agent, reset_key)
        _, (done, returns, lengths) = jax.lax.scan(step, state, jax.random.split(step_key, length))
        first = jnp.argsort(~done, axis=0, stable=True)[:quota]  # when each environment's first episodes ended
        return jnp.take_along_axis(returns, first, 0).ravel(), jnp.take_along_axis(lengths, first, 0).ravel()

    return run
