"""What an agent must know of an environment: its spaces and how many copies run side by side."""

import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from offroad.data.strict_json import strict
from offroad.errors import OffroadError


@dataclass(frozen=True, eq=False)
class Spaces:
    """The observation and action space of *one* environment, and the number of environments in the batch.

    Hashable, so that it can be a static field of an agent, and with a JSON round trip, so that a checkpoint can rebuild
    the agent without running code.
    """

    observation: spaces.Space
    action: spaces.Space
    num_envs: int = 1

    @classmethod
    def of(cls, env: gym.Env | gym.vector.VectorEnv) -> "Spaces":
        """Reads the spaces of an environment; raises `OffroadError` if no agent here could handle them."""
        if isinstance(env, gym.vector.VectorEnv):
            found = cls(env.single_observation_space, env.single_action_space, env.num_envs)
        else:
            found = cls(env.observation_space, env.action_space, 1)
        to_json(found.observation, "observation space")
        to_json(found.action, "action space")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "observation": to_json(self.observation, "observation space"),
            "action": to_json(self.action, "action space"),
            "num_envs": self.num_envs,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Spaces":
        return cls(from_json(value["observation"]), from_json(value["action"]), value["num_envs"])

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spaces) and self.to_json() == other.to_json()


def to_json(space: spaces.Space, where: str = "space") -> dict[str, Any]:
    """The space as JSON. Raises `OffroadError` for kinds that no network here can read."""
    match space:
        case spaces.Box():
            return {
                "kind": "box",
                "low": _bounds(space.low),
                "high": _bounds(space.high),
                "shape": list(space.shape),
                "dtype": str(space.dtype),
            }
        case spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiBinary() if isinstance(space.n, int | np.integer):
            return {"kind": "multi_binary", "n": int(space.n)}
        case spaces.Dict():
            return {"kind": "dict", "spaces": {k: to_json(s, f"{where}[{k!r}]") for k, s in space.spaces.items()}}
    raise OffroadError(
        f"the {where} is a {type(space).__name__}, which no network here reads; "
        "supported are Box, Discrete, MultiBinary and Dict of these: wrap the environment "
        "(for example gymnasium.wrappers.FlattenObservation)"
    )


def from_json(value: dict[str, Any]) -> spaces.Space:
    """The inverse of `to_json`."""
    match value["kind"]:
        case "box":
            shape, dtype = tuple(value["shape"]), np.dtype(value["dtype"])
            low, high = (np.broadcast_to(np.asarray(value[b], dtype), shape) for b in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "discrete":
            return spaces.Discrete(value["n"], start=value["start"])
        case "multi_binary":
            return spaces.MultiBinary(value["n"])
        case "dict":
            return spaces.Dict({k: from_json(s) for k, s in value["spaces"].items()})
    raise OffroadError(f"a saved space is of kind {value['kind']!r}, which this version does not know")


def _bounds(bound: np.ndarray) -> Any:
    """A scalar where all bounds are equal: an 84x84 image needs one number, not 7056."""
    same = bound.size > 0 and bool(np.all(bound == bound.flat[0]))
    return strict(bound.flat[0] if same else bound)
