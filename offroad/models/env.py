"""A simple simulator with its correction, as the vector environment that it was."""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax.numpy as jnp
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy import ndarray

from offroad.errors import OffroadError
from offroad.models.residual import ResidualModel

Read = Callable[[Any], tuple[ndarray, ndarray]]


class ResidualEnv(VectorWrapper):
    """The environment, told by the model what makes it behave like the real robot under the actions that it is given.

    Its actions are the real robot's: `action_space` (by default that of `env`; anything else, such as voltages for
    torques, is named). They are clipped to it (the range guard), delayed by the model's delay, corrected and handed on.
    The model must have been fitted to rows as far apart as the steps of the environment (`env.unwrapped.dt`, where it
    has one); `repeat` is for an environment that steps faster than the log: how many of its steps make one row.

    `read(env) -> (q [N, n], qd [N, n])` are the model's joints; by default those of that name in a batched MuJoCo
    environment (one with `qpos`, `qvel` and `models`). Only controls can be corrected through an environment: models of
    the form "dynamics" need its physics.

    `info["trust"]` in [0, 1] says how far each world is within the model's data; with `penalty`, (1 - trust) * penalty
    is taken from the reward, so that a policy does not live off what the model makes up.
    """

    def __init__(
        self,
        env: VectorEnv,
        model: ResidualModel,
        *,
        read: Read | None = None,
        action_space: gym.spaces.Box | None = None,
        penalty: float = 0.0,
    ):
        super().__init__(env)
        space = action_space or env.single_action_space
        if not isinstance(space, gym.spaces.Box) or space.shape != (model.inputs,):
            raise OffroadError(f"the actions are {space}, but the model was fitted to {model.inputs} inputs; pass action_space")
        if env.single_action_space.shape != (len(model.controls),):
            raise OffroadError(
                f"the environment takes actions of shape {env.single_action_space.shape}, the model gives {len(model.controls)}"
            )
        if model.form == "dynamics":
            raise OffroadError(
                "a model of the form 'dynamics' adds forces, which have no way through the actions of an environment; step its "
                "simulator with offroad.models.comparison.corrected, or fit form='action'"
            )
        dt = getattr(env.unwrapped, "dt", None)
        if dt is not None and abs(float(dt) - model.dt) > 1e-2 * model.dt:
            raise OffroadError(
                f"the environment steps {float(dt):g} at a time, but the model was fitted to rows {model.dt:g} apart; log at "
                "the environment's interval, or make the environment with that frame skip"
            )
        self.model = model
        self.single_action_space = space
        self.action_space = gym.vector.utils.batch_space(space, env.num_envs)
        self.penalty = penalty
        self._read = read or joints_of(env, model)
        self._told = eqx.filter_jit(lambda *x: (model(*x)[0], model.trust(*x)))
        self._queue = np.zeros((model.delay + 1, env.num_envs, model.inputs))
        self._fresh = np.zeros(env.num_envs, bool)

    def reset(
        self, *, seed: int | Any | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._fresh |= np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        return self.env.reset(seed=seed, options=None if options is None else dict(options))

    def step(self, actions: Any) -> tuple[Any, ndarray, ndarray, ndarray, dict[str, Any]]:
        box = self.single_action_space
        assert isinstance(box, gym.spaces.Box)
        actions = np.clip(np.asarray(actions, float), box.low, box.high)
        self._queue[1:] = self._queue[:-1]
        self._queue[0] = actions
        self._queue[:, self._fresh] = actions[self._fresh]  # before the first action there was the first action
        self._fresh[:] = False
        inputs = (jnp.asarray(x, jnp.float32) for x in (*self._read(self.env), self._queue[-1]))
        control, trust = (np.asarray(x) for x in self._told(*inputs))
        observation, reward, terminated, truncated, info = self.env.step(control)
        ended = terminated | truncated
        if self.env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            self._fresh |= ended
        info["trust"], info["_trust"] = trust, np.ones(self.num_envs, bool)
        return observation, reward - self.penalty * (1 - trust), terminated, truncated, info


def joints_of(env: VectorEnv, model: ResidualModel) -> Read:
    """How to read the model's joints from a batched MuJoCo environment."""
    inner = env.unwrapped
    if not all(hasattr(inner, name) for name in ("qpos", "qvel", "models")):
        raise OffroadError(
            f"{type(inner).__name__} does not show qpos, qvel and models of all worlds; pass read=lambda env: (q, qd)"
        )
    first: mujoco.MjModel = inner.models[0]  # pyright: ignore[reportAttributeAccessIssue]
    known = {first.joint(i).name or f"joint_{i}": i for i in range(first.njnt)}
    if missing := [name for name in model.joints if name not in known]:
        raise OffroadError(f"the environment has no joint {missing[0]!r}; it has {', '.join(known)}")
    positions = np.array([first.jnt_qposadr[known[name]] for name in model.joints])
    dofs = np.array([first.jnt_dofadr[known[name]] for name in model.joints])
    return lambda env: (env.unwrapped.qpos[:, positions], env.unwrapped.qvel[:, dofs])
