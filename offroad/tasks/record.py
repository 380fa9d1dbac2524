"""Recording demonstrations: whatever chooses actions, in any vector environment."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.tasks.batches import copied
from offroad.tasks.demonstrations import Demonstrations

PATIENCE = 1000
"""Episodes without a success after which the demonstrator is held for unable."""


def record(
    env: VectorEnv, act: Callable[[Any], np.ndarray], episodes: int, *, seed: int = 0, success: str = "success"
) -> tuple[Demonstrations, int]:
    """Runs `act(observations) -> actions` until `episodes` episodes have ended with `info[success]`, and keeps these.

    Where the environment has a method `world_state(i)`, the state before every step is kept as well.

    **Returns:** the demonstrations, and how many episodes had ended by then.

    Raises `OffroadError` if the environment does not reset itself in the step that ends an episode, or if the
    demonstrator does not succeed.
    """
    if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise OffroadError("recording needs an environment made with autoreset_mode=AutoresetMode.SAME_STEP")
    world_state = getattr(env.unwrapped, "world_state", None)
    observation, _ = env.reset(seed=seed)
    steps, keep, states, ended = [], [], [], 0
    while np.sum(keep) < episodes:
        if ended >= PATIENCE and not np.any(keep):
            raise OffroadError(f"the demonstrator failed in all of {ended} episodes; look at what it does")
        action = act(observation)
        if world_state is not None:
            states.append([world_state(i) for i in range(env.num_envs)])
        following, reward, terminated, truncated, info = env.step(action)
        led_to, done = copied(following), terminated | truncated
        succeeded = np.zeros(env.num_envs, bool)
        if done.any():
            for world in np.flatnonzero(done):
                _write(led_to, world, info["final_obs"][world])
            succeeded = done & np.asarray(info["final_info"][success], bool)
        steps.append(Transition(copied(observation), np.asarray(action), reward, led_to, terminated, truncated))
        keep.append(succeeded)
        ended += int(done.sum())
        observation = following
    rollout: Transition = jax.tree.map(lambda *x: np.stack(x), *steps)
    kept = np.array(keep)
    return Demonstrations.of_rollout(rollout, keep=kept, states=states or None).first(episodes), ended


def _write(observation: Any, world: int | np.integer, row: Any) -> None:
    if isinstance(observation, dict):
        for name, part in observation.items():
            _write(part, world, row[name])
    else:
        observation[world] = row
