"""Reinforcement learning off the paved road."""

import importlib
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from offroad import envs
from offroad.errors import OffroadError, unknown, unknown_option

__version__ = "0.1.0"

envs.register()


def make_vec(id: str, num_envs: int = 1, **kwargs: Any) -> VectorEnv:
    """A vector of environments from a Gymnasium id, resetting themselves in the step that ends an episode.

    This library's environments come in their own batched or compiled implementation; any other id is stepped one copy
    after the other in this process. For heavy ones, `gymnasium.make_vec(..., vectorization_mode="async")` uses a
    process each and works with the trainers too.

    `autoreset_mode=AutoresetMode.DISABLED` leaves the resets to the caller, a curriculum for example.

    Raises `OffroadError` with the nearest id if there is no such environment, and with the options that there are if
    one of `kwargs` is none.
    """
    if num_envs < 1:
        raise OffroadError(f"num_envs is {num_envs}; expected at least 1 copy of the environment")
    mode = kwargs.pop("autoreset_mode", AutoresetMode.SAME_STEP)
    module, _, name = id.rpartition(":")
    try:
        if module:  # Gymnasium's "package:id": importing the package registers its environments
            importlib.import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise unknown("environment", id, gym.registry) from error
    try:
        if spec.vector_entry_point is not None and id.startswith("offroad/"):
            return gym.make_vec(id, num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode, **kwargs)
        return gym.make_vec(
            id,
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            **kwargs,
        )
    except (gym.error.Error, TypeError, ImportError) as error:
        if named := unknown_option(id, error, set(spec.kwargs)):
            raise named from error
        raise OffroadError(
            f"environment {id!r} cannot be made with {kwargs or 'its default options'}: {error}"
        ) from error


__all__ = ["OffroadError", "make_vec"]
