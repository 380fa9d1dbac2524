"""Domain randomisation: a MuJoCo model of its own for every world, and noise and latency on what goes in and out.

What one does when the simulator is wrong and nobody knows how: Peng et al., "Sim-to-Real Transfer of Robotic Control
with Dynamics Randomization", ICRA 2018, arXiv 1710.06537.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from jaxtyping import Float
from numpy import ndarray

from offroad.errors import OffroadError

Range = tuple[float | int, float | int]
SAME: Range = (1.0, 1.0)


@dataclass(frozen=True)
class Randomization:
    """Ranges of factors, drawn uniformly, and what else is randomised; by default nothing is.

    `mass` and `inertia`: of each body alone (an inertia moves with its mass besides). `friction`: of all geoms
    together; `gain`: of each actuator (with the stiffness of a servo); `damping`, `stiffness`: of joints and tendons.
    """

    mass: Range = SAME
    inertia: Range = SAME
    friction: Range = SAME
    gain: Range = SAME
    damping: Range = SAME
    stiffness: Range = SAME
    latency: tuple[int, int] = (0, 0)  # environment steps before an action takes effect, both ends included
    action_noise: float | int = 0.0  # standard deviation, in the action's units
    observation_noise: float | int = 0.0  # standard deviation, in the observation's units

    def __post_init__(self) -> None:
        for field in fields(self)[:7]:
            low, high = getattr(self, field.name)
            if not (0 <= low <= high and (low > 0 or field.name == "latency")):
                raise OffroadError(f"{field.name} is drawn from ({low}, {high}); expected a range of positive factors")
        if min(self.action_noise, self.observation_noise) < 0:
            raise OffroadError("noise has a negative standard deviation; expected zero or more")

    def draw(self, model: mujoco.MjModel, random: np.random.Generator) -> mujoco.MjModel:
        """A copy of the model with other numbers, which a body could have."""
        model = copy.copy(model)
        mass = random.uniform(*self.mass, model.nbody)
        model.body_mass[:] *= mass
        model.body_inertia[:] = valid_inertias(
            model.body_inertia * mass[:, None], random.uniform(*self.inertia, (model.nbody, 3))
        )
        model.geom_friction[:, 0] *= random.uniform(*self.friction)
        gain = random.uniform(*self.gain, model.nu)
        model.actuator_gainprm[:] *= gain[:, None]
        model.actuator_biasprm[:] *= gain[:, None]
        damping = random.uniform(*self.damping, model.njnt)
        model.dof_damping[:] *= damping[model.dof_jntid]
        model.tendon_damping[:] *= random.uniform(*self.damping, model.ntendon)
        model.jnt_stiffness[:] *= random.uniform(*self.stiffness, model.njnt)
        model.tendon_stiffness[:] *= random.uniform(*self.stiffness, model.ntendon)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model


def valid_inertias(
    inertia: Float[ndarray, "bodies 3"], factors: Float[ndarray, "bodies 3"]
) -> Float[ndarray, "bodies 3"]:
    """Principal moments of inertia of bodies that were stretched: still positive, each at most the sum of the others.

    A body's moments are sums of two of its three second moments of mass, which may take any positive value: it is these
    that are multiplied.
    """
    second = np.maximum(inertia.sum(-1, keepdims=True) / 2 - inertia, 0.0)
    stretched = second * factors
    return stretched.sum(-1, keepdims=True) - stretched


class RandomizedVectorEnv(VectorWrapper):
    """A batch of MuJoCo worlds, each with a model of its own, drawn anew whenever its episode begins.

    `env` has a list `models`, one for each world, which it steps with (`offroad.envs.vector.MujocoVectorEnv` has).
    Raises `OffroadError` where it has none, unless only actions and observations are randomised.
    """

    def __init__(self, env: VectorEnv, randomization: Randomization, seed: int = 0):
        super().__init__(env)
        self.randomization = randomization
        models = getattr(env.unwrapped, "models", None)
        changed = any(getattr(randomization, name) != SAME for name in PHYSICAL)
        if changed and (not isinstance(models, list) or len(models) != env.num_envs):
            raise OffroadError(
                f"{type(env.unwrapped).__name__} has no list 'models' with a MuJoCo model for each world, so that "
                "its physics "
                "cannot be randomised; randomise latency and noise only"
            )
        if not isinstance(env.single_action_space, gym.spaces.Box):
            raise OffroadError(f"the actions are {env.single_action_space}, expected a Box")
        if randomization.observation_noise and not isinstance(env.single_observation_space, gym.spaces.Box):
            raise OffroadError(f"the observations are {env.single_observation_space}, expected a Box to add noise to")
        self._models: list[mujoco.MjModel] | None = models if changed else None
        self._nominal = list(models) if changed and models else []
        self._random = np.random.default_rng(seed)
        self._latency = np.zeros(env.num_envs, int)
        self._queue = np.zeros((randomization.latency[1] + 1, env.num_envs, *env.single_action_space.shape))
        self._fresh = np.zeros(env.num_envs, bool)

    def reset(
        self, *, seed: int | Any | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As of the environment; an integer seed seeds the randomisation too."""
        if isinstance(seed, int | np.integer):
            seed = int(seed)
            self._random = np.random.default_rng([seed, 1])
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        self._begin(mask)
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        return self._noisy(observation), info

    def step(self, actions: Any) -> tuple[Any, ndarray, ndarray, ndarray, dict[str, Any]]:
        actions = np.asarray(actions, float)
        if self.randomization.action_noise:
            actions = actions + self.randomization.action_noise * self._random.normal(size=actions.shape)
        self._queue[1:] = self._queue[:-1]
        self._queue[0] = actions
        self._queue[:, self._fresh] = actions[self._fresh]  # before the first action there was the first action
        self._fresh[:] = False
        late = self._queue[self._latency, np.arange(self.num_envs)]
        space = self.env.action_space
        late = np.clip(late, space.low, space.high).astype(space.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        observation, reward, terminated, truncated, info = self.env.step(late)
        ended = terminated | truncated
        # With SAME_STEP and NEXT_STEP the environment itself begins the next episode.
        if ended.any() and self.env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            self._begin(ended)
        return self._noisy(observation), reward, terminated, truncated, info

    def _begin(self, which: ndarray) -> None:
        low, high = self.randomization.latency
        self._latency[which] = self._random.integers(low, high + 1, which.sum())
        self._fresh |= which
        if self._models is not None:
            for world in np.flatnonzero(which):
                self._models[world] = self.randomization.draw(self._nominal[world], self._random)

    def _noisy(self, observation: Any) -> Any:
        if not self.randomization.observation_noise:
            return observation
        noise = self.randomization.observation_noise * self._random.normal(size=observation.shape)
        return (observation + noise).astype(observation.dtype)


PHYSICAL = ("mass", "inertia", "friction", "gain", "damping", "stiffness")
