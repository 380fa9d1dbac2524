"""The tasks of the table: their data, and how a policy is graded in them."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorWrapper
from jaxtyping import Float

import offroad
from offroad import train
from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.data.dataset import Dataset
from offroad.data.readers import load
from offroad.data.spaces import Spaces
from offroad.envs import recipes
from offroad.studies.study import Budget, Context

EXAM_SEED = 3_000_000  # of the evaluation, apart from the seeds of data and training


@dataclass(frozen=True, kw_only=True)
class OfflineBudget(Budget):
    domains: tuple[str, ...]
    rows: int  # of an ant maze; a point maze has a fifth of it, a kitchen an eighth, the pendulum a twentieth
    updates: int  # of an agent
    latent_updates: int  # of an agent over primitives, whose horizon is ten times shorter; online, 5 steps for each
    primitive_updates: int  # of the autoencoder; a quarter as many finetune its policy
    ablation_seeds: int  # of the methods that are not in the headline
    episodes: int  # evaluated for each task and seed


@dataclass(frozen=True)
class Domain:
    """A task and its data: `recipe` is a name of `offroad data make`, `best` the return that counts as 100, `worst` the
    one that counts as 0."""

    name: str
    env: str
    recipe: str
    best: float
    worst: float = 0.0

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]

    @property
    def is_maze(self) -> bool:
        return self.kind.endswith("maze")

    def rows(self, budget: OfflineBudget) -> int:
        return budget.rows // {"antmaze": 1, "pointmaze": 5, "kitchen": 8, "pendulum": 20}[self.kind]

    def score(self, returns: Float[np.ndarray, " episodes"]) -> float:
        """Per cent of the way from the worst to the best return, on average."""
        return 100 * (float(returns.mean()) - self.worst) / (self.best - self.worst)


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("pointmaze-umaze", "offroad/PointMaze-umaze-v0", "pointmaze-umaze-diverse", 1.0),
        Domain("pointmaze-medium", "offroad/PointMaze-medium-v0", "pointmaze-medium-diverse", 1.0),
        Domain("antmaze-medium", "offroad/AntMaze-medium-v0", "antmaze-medium-diverse", 1.0),
        Domain("antmaze-large", "offroad/AntMaze-large-v0", "antmaze-large-diverse", 1.0),
        Domain("kitchen-mixed", "offroad/Kitchen-mixed-v0", "kitchen-mixed", 4.0),
        Domain("kitchen-partial", "offroad/Kitchen-partial-v0", "kitchen-partial", 4.0),
        # What torques drawn at random earn, and the data's controller without noise: 50 episodes of reset seed 0.
        Domain("pendulum", "Pendulum-v1", "pendulum-mixed", best=-184.0, worst=-1200.0),
    )
}


def data(domain: Domain, budget: OfflineBudget, context: Context) -> Dataset:
    """The domain's data with the task's own rewards, made on first use and kept beside the arms' folders."""
    path = context.folder.parent / f"{domain.recipe}.npz"

    def make() -> Dataset:
        if not path.exists():
            context.progress(f"making {domain.recipe}")
            partial = path.with_suffix(".partial.npz")
            recipes.make(domain.recipe, domain.rows(budget)).save(partial)
            partial.replace(path)
        return load(path)

    return context.once(domain.recipe, make)


def shifted(dataset: Dataset, scale: float, shift: float) -> Dataset:
    """The same data with rewards `scale * reward + shift`."""
    return replace(dataset, rewards=np.float32(scale) * dataset.rewards + np.float32(shift))


def spaces_of(domain: Domain) -> Spaces:
    env = offroad.make_vec(domain.env, 1)
    try:
        return Spaces.of(env)
    finally:
        env.close()


class Closest(VectorWrapper):
    """A maze that remembers how near to the goal, in metres, each world came in its first episode."""

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.distance, self._over = np.full(self.num_envs, np.inf), np.zeros(self.num_envs, bool)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        now = np.linalg.norm(info["xy"] - info["goal_xy"], axis=1)
        self.distance = np.where(self._over, self.distance, np.minimum(self.distance, now))
        self._over |= terminated | truncated
        return observation, reward, terminated, truncated, info


def examine(
    agent: Agent, domain: Domain, episodes: int, seed: int
) -> tuple[train.Evaluation, Float[np.ndarray, " worlds"] | None]:
    """Whole episodes of the deterministic policy, and how near to a maze's goal each world came in its first one. All
    methods of a seed meet the same starts.
    """
    env = offroad.make_vec(domain.env, min(episodes, 100))
    maze = Closest(env) if domain.is_maze else None
    try:
        result = train.evaluate(agent, maze or env, episodes, seed=EXAM_SEED + 1000 * seed)
    finally:
        env.close()
    return result, maze.distance if maze else None


def initial_value(agent: Any, domain: Domain, episodes: int, seed: int) -> float:
    """What an agent with critics believes its policy to be worth in the starts of `examine`, on average."""
    env = offroad.make_vec(domain.env, min(episodes, 100))
    observation, _ = env.reset(seed=EXAM_SEED + 1000 * seed)
    env.close()
    action = ActionScale(box_actions(agent.spaces, "the critic")).to_unit(agent.act(observation)[0])
    return float(jnp.mean(eqx.filter_vmap(lambda critic: critic(observation, action))(agent.critics).min(axis=0)))
