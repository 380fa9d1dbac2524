"""Cloning the stacking expert from few demonstrations, with every regulariser tuned on seeds of its own."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from gymnasium.vector import AutoresetMode

from offroad.agents.agent import ActionScale
from offroad.envs.stack import Stack
from offroad.nets.mlp import MLP
from offroad.nets.relational import Slots
from offroad.studies.lowrank.supervised import ARMS, fit, predict, settings, squared_error
from offroad.studies.stacking.training import SCALES, shown_by_expert

EXAM_SEED = 3_000_000
TUNING_SEED = 4_000_000
WORLDS = 200  # of an evaluation, shared by the policies


def squashed_error(out: Any, action: Any) -> Any:
    """Behaviour cloning's loss: of actions in [-1, 1]."""
    return squared_error(jax.numpy.tanh(out), action)


class Task:
    """One block to its place: observations as the padded MLP of the stacking study sees them."""

    def __init__(self) -> None:
        self.env = Stack(WORLDS, blocks=1, autoreset_mode=AutoresetMode.DISABLED)
        self.encode = eqx.filter_jit(Slots(scales=SCALES).build(self.env.single_observation_space, jax.random.key(0)))
        self.scale = ActionScale(self.env.single_action_space)  # pyright: ignore[reportArgumentType]

    def demonstrations(self, episodes: int, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Features and actions in [-1, 1] of the same number of decisions for each seed."""
        pairs = []
        for seed in seeds:
            shown = shown_by_expert([{"blocks": 1}], 1, episodes, seed).transitions
            pairs.append((np.asarray(self.encode(shown.observation)), np.asarray(self.scale.to_unit(shown.action))))
        rows = min(len(x) for x, _ in pairs)
        return np.stack([x[:rows] for x, _ in pairs]), np.stack([a[:rows] for _, a in pairs])

    def success(self, nets: MLP, seed: int) -> np.ndarray:
        """The share of episodes in which each of the networks `[policies]` puts the block in its place."""
        policies = len(jax.tree.leaves(nets)[0])
        episodes = WORLDS // policies
        observation, _ = self.env.reset(seed=seed, options={"blocks": 1})
        for _ in range(self.env.decision.horizon):
            x = np.asarray(self.encode(observation))
            seen = x[: policies * episodes].reshape(policies, episodes, -1)
            out = predict(jax.tree.map(lambda leaf: leaf[None], nets), seen)[0]
            action = np.zeros((WORLDS, out.shape[-1]), np.float32)
            action[: policies * episodes] = np.asarray(self.scale.to_env(np.tanh(out))).reshape(-1, out.shape[-1])
            observation = self.env.step(action)[0]
        return self.env.stands(1.0)[: policies * episodes].reshape(policies, episodes).mean(1)


def clone(task: Task, episodes: int, tuning: int, seeds: list[int], hidden: int, steps: int) -> dict[str, np.ndarray]:
    """For each arm the success of each seed. Its setting is the best on `tuning` seeds that are not among `seeds`."""
    everything = [*seeds, *(max(seeds) + 1 + i for i in range(tuning))]
    x, action = task.demonstrations(episodes, everything)
    found, plain_rate = {}, None
    for name, arm in ARMS.items():
        tried = settings(arm, plain_rate)
        sizes = (x.shape[-1], hidden, hidden, action.shape[-1])
        nets = fit(arm, tried, sizes, everything, x, action, x.shape[1], squashed_error, steps)

        def take(rows: slice, setting: slice, nets: MLP = nets) -> MLP:
            return jax.tree.map(lambda leaf: leaf[setting, rows].reshape(-1, *leaf.shape[2:]), nets)

        apart = task.success(take(slice(len(seeds), None), slice(None)), TUNING_SEED).reshape(len(tried), tuning)
        best = int(np.argmax(apart.mean(1)))
        plain_rate = plain_rate or tried[best].rate
        found[name] = task.success(take(slice(len(seeds)), slice(best, best + 1)), EXAM_SEED)
    return found
