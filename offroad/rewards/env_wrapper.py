"""The bonus paid by the environment: for users of other libraries, and for off-policy agents with episodic rewards."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.rewards.intrinsic import IntrinsicReward, Sum, check_spaces

STORED = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
"""What the wrapper keeps of every step."""


class IntrinsicRewardEnv(VectorWrapper):
    """`reward = extrinsic * reward + intrinsic * bonus`, for any Gymnasium vector environment that resets itself.

    The reward's model learns from every `update_every` steps, in the environment's own `step`; `metrics` says how.
    `info` tells both parts, as arrays `extrinsic_reward` and `intrinsic_reward`. The state of environment and reward
    can be saved together if that of the environment can.
    """

    def __init__(
        self,
        env: VectorEnv,
        reward: IntrinsicReward | Sum,
        extrinsic: float | int = 1.0,
        intrinsic: float | int = 1.0,
        update_every: int = 128,
        seed: int = 0,
    ):
        """`seed` is of the reward's learning. Raises `OffroadError` for a reward of other spaces or another number of
        worlds, and for an environment that does not reset itself."""
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.DISABLED:
            raise OffroadError(
                "IntrinsicRewardEnv needs an environment that resets itself, found autoreset_mode DISABLED; "
                "make it with SAME_STEP or NEXT_STEP"
            )
        if reward.spaces.num_envs != env.num_envs:
            raise OffroadError(
                f"the reward was created for {reward.spaces.num_envs} environments, this one has {env.num_envs}; "
                "create it with Spaces.of(env)"
            )
        check_spaces(reward, Spaces.of(env), "the environment")
        if update_every < 1:
            raise OffroadError(f"update_every is {update_every}; expected at least 1 step")
        self.intrinsic_reward = reward
        self.extrinsic, self.intrinsic, self.update_every = extrinsic, intrinsic, update_every
        self._metrics: dict[str, float] = {}
        self._next_step = mode == AutoresetMode.NEXT_STEP
        self._key = jax.random.key(seed)
        self._count = 0
        self._observation: Any = None
        self._fake = np.zeros(env.num_envs, bool)
        self._pending: list[tuple[Transition, np.ndarray]] = []
        self._pay = jax.jit(lambda reward, steps, mask, key: reward.pay(steps, mask, key))
        self._update = jax.jit(lambda reward, steps, mask, key: reward.update(steps, mask, key))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if "reset_mask" in (options or {}):
            raise OffroadError("IntrinsicRewardEnv resets all worlds at once; leave out options['reset_mask']")
        observation, info = self.env.reset(seed=seed, options=options)
        if self._pending:  # the episodes end here, wherever they were
            steps, mask = self._pending[-1]
            self._pending[-1] = (replace(steps, truncated=np.ones_like(steps.truncated)), mask)
        self._observation = jax.tree.map(np.copy, observation)
        self._fake = np.zeros(self.num_envs, bool)
        self.intrinsic_reward = self.intrinsic_reward.begin(self.num_envs)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        final = observation
        done = terminated | truncated
        if done.any() and not self._next_step:
            final = jax.tree.map(np.copy, observation)
            for world in np.flatnonzero(done):
                _put(final, int(world), info["final_obs"][world])
        mask = ~self._fake
        steps = Transition(
            self._observation,
            np.asarray(actions),
            np.asarray(reward, np.float32),
            jax.tree.map(np.copy, final),
            terminated.copy(),
            truncated.copy(),
        )
        one = jax.tree.map(lambda x: x[None], (steps, mask))
        bonus, self.intrinsic_reward = self._pay(
            self.intrinsic_reward, *one, jax.random.fold_in(self._key, self._count)
        )
        self._count += 1
        self._pending.append((steps, mask))
        if len(self._pending) == self.update_every:
            self._learn()
        self._fake = done & mask if self._next_step else self._fake
        self._observation = jax.tree.map(np.copy, observation)
        bonus = np.asarray(bonus[0])
        info = {**info, "extrinsic_reward": reward, "intrinsic_reward": bonus}
        return observation, self.extrinsic * reward + self.intrinsic * bonus, terminated, truncated, info

    def _learn(self) -> None:
        steps, mask = jax.tree.map(lambda *x: np.stack(x), *self._pending)
        self._pending.clear()
        key = jax.random.fold_in(jax.random.fold_in(self._key, self._count), 1)
        self.intrinsic_reward, metrics = self._update(self.intrinsic_reward, steps, mask, key)
        self._metrics = {f"intrinsic/{name}": float(value) for name, value in metrics.items()}

    def metrics(self) -> dict[str, float]:
        """What the trainers log: how the reward's model learnt last, and the environment's own metrics."""
        return getattr(self.env, "metrics", dict)() | self._metrics

    def get_state(self) -> dict[str, Any] | None:
        """None if the environment's own state cannot be saved."""
        if not hasattr(type(self.env), "get_state"):
            return None
        pending = [{name: getattr(steps, name) for name in STORED} | {"mask": mask} for steps, mask in self._pending]
        return {
            "env": self.env.get_state(),  # pyright: ignore[reportAttributeAccessIssue]
            "reward": [np.asarray(leaf) for leaf in jax.tree.leaves(self.intrinsic_reward)],
            "observation": self._observation,
            "fake": self._fake,
            "count": self._count,
            "pending": pending,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` gave."""
        self.env.set_state(state["env"])  # pyright: ignore[reportAttributeAccessIssue]
        structure = jax.tree.structure(self.intrinsic_reward)
        self.intrinsic_reward = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in state["reward"]])
        self._observation, self._fake, self._count = state["observation"], state["fake"], state["count"]
        self._pending = [
            (Transition(**{name: part[name] for name in STORED}), part["mask"]) for part in state["pending"]
        ]


def _put(whole: Any, world: int, part: Any) -> None:
    if isinstance(whole, dict):
        for name in whole:
            _put(whole[name], world, part[name])
    else:
        whole[world] = part
