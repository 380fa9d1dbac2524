"""Batched MuJoCo: one vector environment that steps all its worlds in C threads.

`MujocoVectorEnv` is an abstract base. A task declares how a world starts (`_initial_state`) and, as arithmetic on whole
batches, what is observed (`_observe`) and what a step was worth (`_evaluate`); the base owns physics, time limits,
seeding, autoreset, divergence, saving and rendering. `SingleMujocoEnv` is a batch of one as a `gymnasium.Env`.

Shapes: N worlds, S numbers of MuJoCo's full physics state (time, qpos, qvel, ...), A numbers of an action, U actuators,
P physics steps in one environment step.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float
from numpy import ndarray

from offroad.envs.infos import Observation, add_final, add_info, first, row
from offroad.envs.physics import PHYSICS, InspectedPhysics, Renderer, RolloutPhysics, cores, one_for_each_world
from offroad.errors import OffroadError, unknown

RENDER_MODES = ["rgb_array"]


class MujocoVectorEnv(gym.vector.VectorEnv, abc.ABC):
    """N MuJoCo worlds behind Gymnasium's vector interface.

    Subclasses read `qpos [N, nq]`, `qvel [N, nv]` (views of the state now) and `qpos_before`, `qvel_before` (before the
    step). What a task keeps for each world besides the physics goes into `extras` (name -> array `[N, ...]`), which is
    saved, restored and rolled back together with it; `extras_before` holds the values before the step.

    A world whose physics diverges (MuJoCo finds NaN, infinite or huge numbers) is put back to the state before the step
    and truncated with reward 0, while the others go on; `info["diverged"]` tells which (the key is there only when it
    happened) and `divergences [N]` counts.

    Args:
        models: one model for all worlds, or one for each world (equal sizes, other parameters: domain randomisation).
        num_envs: the number of worlds N.
        frame_skip: physics steps for each environment step.
        observation_space: of one world: a Box or a Dict of Boxes and MultiBinaries.
        action_space: of one world; None takes the bounds of the actuators, and `_controls` passes actions on to them.
        max_episode_steps: truncates episodes after so many steps; None never does.
        autoreset_mode: one of Gymnasium's `AutoresetMode`s.
        num_threads: at most this many threads; None takes as many as there are cores. Results do not depend on it.
        render_mode: None or "rgb_array".
        width, height: of rendered frames, in pixels.
        inspect: see `InspectedPhysics`; None runs the faster `RolloutPhysics`.

    Raises `OffroadError` for unusable arguments, for actions of the wrong shape or that are not finite, for unknown
    reset options, and when rendering finds no OpenGL.
    """

    def __init__(
        self,
        models: mujoco.MjModel | Sequence[mujoco.MjModel],
        *,
        num_envs: int,
        frame_skip: int,
        observation_space: gym.spaces.Box | gym.spaces.Dict,
        action_space: gym.spaces.Box | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        inspect: Callable[[int, mujoco.MjData], None] | None = None,
    ):
        self.models = one_for_each_world(models, num_envs)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise unknown("render mode", render_mode, RENDER_MODES)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self._frame_size = (height, width)
        self._renderer = None

        model = self.models[0]
        self.dt = frame_skip * model.opt.timestep
        self.metadata = {
            "render_modes": RENDER_MODES,
            "render_fps": round(1 / self.dt),
            "autoreset_mode": self.autoreset_mode,
        }
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self.single_observation_space = observation_space
        self.single_action_space = action_space or gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        threads = min(num_envs, num_threads or cores())
        self._physics = (
            RolloutPhysics(self.models, frame_skip, threads)
            if inspect is None
            else InspectedPhysics(self.models, frame_skip, threads, inspect)
        )
        # MuJoCo answers divergence by putting the world back to its defaults, with the clock at zero. Worlds here start
        # one tick later, so that a clock behind its time always tells.
        self._fresh = np.zeros(mujoco.mj_stateSize(model, PHYSICS))
        self._fresh[0] = model.opt.timestep
        self._behind = self.dt - 0.5 * model.opt.timestep
        self._action = np.zeros((num_envs, *self.single_action_space.shape))
        self._state, self._state_before = (np.tile(self._fresh, (num_envs, 1)) for _ in range(2))
        positions, velocities = slice(1, 1 + model.nq), slice(1 + model.nq, 1 + model.nq + model.nv)
        self.qpos, self.qvel = self._state[:, positions], self._state[:, velocities]
        self.qpos_before, self.qvel_before = self._state_before[:, positions], self._state_before[:, velocities]
        self.extras: dict[str, ndarray] = {}
        self.extras_before: dict[str, ndarray] = {}

        self._steps = np.zeros(num_envs, int)
        self._limits = np.full(num_envs, np.inf if max_episode_steps is None else max_episode_steps)
        self._ended = np.zeros(num_envs, bool)
        self.divergences = np.zeros(num_envs, int)
        self._randoms = [seeding.np_random() for _ in range(num_envs)]
        self._started = False

    # What a task declares.

    @abc.abstractmethod
    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        """The position and velocity a world starts an episode with; also sets the world's rows of `extras`."""

    def _controls(self, action: Float[ndarray, "N A"]) -> Float[ndarray, "N U"] | Float[ndarray, "N P U"]:
        """What the actuators are told: once, or in each of the step's physics steps."""
        return action

    @abc.abstractmethod
    def _observe(self) -> Observation:
        """A new array, or a dictionary of new arrays, with what every world shows now."""

    @abc.abstractmethod
    def _evaluate(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        """Reward, termination and info (arrays with leading axis N) of the step that was just made."""

    @abc.abstractmethod
    def _reset_info(self) -> dict[str, ndarray]:
        """The info (arrays with leading axis N) that goes with the first observation of an episode."""

    # Gymnasium's interface.

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes: in all worlds, or where `options["reset_mask"]` (bool `[N]`) is True.

        An integer seeds world i with `seed + i`, a sequence gives each world its own. The other options go to the task.
        """
        options = dict(options or {})
        which = self._reset_mask(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, int | np.integer):
            seeds = [int(seeds) + world for world in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise OffroadError(
                f"{len(seeds)} seeds for {self.num_envs} worlds; pass one integer or one seed for each world"
            )
        for world in np.flatnonzero(which).tolist():
            if seeds[world] is not None:
                self._randoms[world] = seeding.np_random(seeds[world])
        self._started = True
        self._begin(which, options)
        info: dict[str, Any] = {}
        add_info(info, self._reset_info(), which)
        return self._observe(), info

    def step(
        self, actions: Any
    ) -> tuple[Any, Float[ndarray, "N"], Bool[ndarray, "N"], Bool[ndarray, "N"], dict[str, Any]]:
        """Steps every world with its row of `actions [N, A]`; see Gymnasium for what is returned."""
        self._check_actions(actions)
        resetting = self._ended  # with NEXT_STEP, worlds whose action is ignored
        if self.autoreset_mode is AutoresetMode.DISABLED and resetting.any():
            worlds = np.flatnonzero(resetting).tolist()
            raise OffroadError(
                f"the episodes of worlds {worlds} have ended and autoreset is disabled; "
                "call reset(options={'reset_mask': terminated | truncated}) before the next step"
            )

        np.copyto(self._state_before, self._state)
        for name, value in self.extras.items():
            np.copyto(self.extras_before[name], value)
        self._physics.step(self._state, self._controls(self._action))
        diverged = self._roll_back_divergence(resetting)

        reward, terminated, values = self._evaluate(self._action)
        self._steps += 1
        truncated = self._steps >= self._limits
        if diverged is not None:
            reward[diverged], terminated[diverged], truncated[diverged] = 0.0, False, True
            values["diverged"] = diverged

        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            resetting = terminated | truncated
            if resetting.any():
                add_final(info, self._observe(), values, resetting)
        else:
            reward[resetting], terminated[resetting], truncated[resetting] = 0.0, False, False
            self._ended = terminated | truncated
        add_info(info, values, ~resetting)
        if resetting.any():
            self._begin(resetting, {})
            add_info(info, self._reset_info(), resetting)
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> tuple[ndarray, ...] | None:
        """One RGB frame `[height, width, 3]` for each world; None without a render mode."""
        if self.render_mode is None:
            return None
        self._renderer = self._renderer or Renderer(self.models[0], *self._frame_size)
        return tuple(self._renderer.frame(model, state) for model, state in zip(self.models, self._state))

    def close_extras(self, **kwargs: Any) -> None:
        self._physics.close()
        if self._renderer is not None:
            self._renderer.close()

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each world's own random numbers, as in Gymnasium's vector environments."""
        return tuple(random for random, _ in self._randoms)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(seed for _, seed in self._randoms)

    # Saving.

    def get_state(self) -> dict[str, Any]:
        """All that the future depends on, except the models, as nested dicts of arrays, numbers and strings."""
        return {
            "physics": self._state.copy(),
            "extras": {name: value.copy() for name, value in self.extras.items()},
            "steps": self._steps.copy(),
            "ended": self._ended.copy(),
            "divergences": self.divergences.copy(),
            "started": self._started,
            "random": {
                str(world): {"seed": seed, "generator": random.bit_generator.state}
                for world, (random, seed) in enumerate(self._randoms)
            },
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues, to the bit, where an environment with the same arguments was when `get_state` was called."""
        saved = np.shape(state["physics"])
        if saved != self._state.shape or set(state["extras"]) != set(self.extras):
            raise OffroadError(
                f"a saved state with physics {saved} and extras {sorted(state['extras'])} does not fit this "
                f"environment, which has {self._state.shape} and {sorted(self.extras)}; "
                "create it with the task and num_envs of the saved one"
            )
        self._state[:] = state["physics"]
        for name, value in self.extras.items():
            value[:] = state["extras"][name]
        self._steps[:] = state["steps"]
        self._ended = np.array(state["ended"], bool)
        self.divergences[:] = state["divergences"]
        self._started = bool(state["started"])
        for world, saved_random in state["random"].items():
            random, _ = seeding.np_random(0)
            random.bit_generator.state = saved_random["generator"]
            self._randoms[int(world)] = (random, saved_random["seed"])

    # Parts of the above.

    def _add_extra(self, name: str, shape: tuple[int, ...]) -> None:
        """Declares an extra array `[N, *shape]` of zeros; called by tasks when they are created."""
        self.extras[name] = np.zeros((self.num_envs, *shape))
        self.extras_before[name] = self.extras[name].copy()

    def _begin(self, which: Bool[ndarray, "N"], options: Mapping[str, Any]) -> None:
        for world in np.flatnonzero(which).tolist():
            self._state[world] = self._fresh
            self.qpos[world], self.qvel[world] = self._initial_state(world, self._randoms[world][0], options)
        self._steps[which] = 0
        self._ended = self._ended & ~which

    def _check_actions(self, actions: Any) -> None:
        """Writes the actions to the buffer of actions, once they are known to be usable."""
        if not self._started:
            raise OffroadError("step() was called before reset(); call reset() first")
        actions = np.asarray(actions)
        if actions.shape != self._action.shape:
            raise OffroadError(
                f"actions have shape {actions.shape}, expected {self._action.shape}: one row for each of the worlds "
                f"0 to {self.num_envs - 1}"
            )
        self._action[:] = actions
        if not np.isfinite(self._action).all():
            world = int(np.flatnonzero(~np.isfinite(self._action).all(axis=1))[0])
            raise OffroadError(
                f"the action of world {world} is {self._action[world].tolist()}, expected finite numbers; "
                "look for a diverged policy or a division by zero in its inputs"
            )

    def _roll_back_divergence(self, resetting: Bool[ndarray, "N"]) -> Bool[ndarray, "N"] | None:
        """Puts diverged worlds back to the state before the step; returns which they are, or None (the usual case)."""
        diverged = self._state[:, 0] < self._state_before[:, 0] + self._behind
        finite = np.isfinite(self._state)
        if not finite.all():
            diverged |= ~finite.all(axis=1)
        if not diverged.any():
            return None
        self._state[diverged] = self._state_before[diverged]
        for name, value in self.extras.items():
            value[diverged] = self.extras_before[name][diverged]
        diverged &= ~resetting
        self.divergences += diverged
        return diverged if diverged.any() else None

    def _reset_mask(self, mask: Any) -> Bool[ndarray, "N"]:
        mask = np.array(mask)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise OffroadError(
                f"options['reset_mask'] has dtype {mask.dtype} and shape {mask.shape}; expected booleans of shape "
                f"({self.num_envs},), at least one of them True"
            )
        return mask


class SingleMujocoEnv(gym.Env):
    """A batch of one as an ordinary `gymnasium.Env`; `gymnasium.make` adds the time limit."""

    def __init__(self, batch: MujocoVectorEnv):
        if batch.num_envs != 1 or batch.autoreset_mode is not AutoresetMode.DISABLED:
            raise OffroadError(
                f"a single environment was given {batch.num_envs} worlds with autoreset {batch.autoreset_mode.name}; "
                "expected num_envs=1 and AutoresetMode.DISABLED"
            )
        self.batch = batch
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.render_mode = batch.render_mode
        self.metadata = {name: batch.metadata[name] for name in ("render_modes", "render_fps")}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.batch._randoms[0] = (self.np_random, self.np_random_seed)
        observation, info = self.batch.reset(options=options)
        return row(observation, 0), first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # Gymnasium lets one step a finished single environment.
        self.batch._ended[:] = False
        observation, reward, terminated, truncated, info = self.batch.step(np.asarray(action)[None])
        return row(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), first(info)

    def render(self) -> ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.batch.close()

    def get_state(self) -> dict[str, Any]:
        return self.batch.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.batch.set_state(state)
        self._np_random, self._np_random_seed = self.batch._randoms[0]
