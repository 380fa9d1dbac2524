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
from jaxtyping import Float
from numpy import ndarray

from offroad.errors import OffroadError
from offroad.models.residual import ResidualModel
from offroad.models.simulators import advance

Read = Callable[[VectorEnv], tuple[ndarray, ndarray]]


class ResidualEnv(VectorWrapper):
    """The environment, told by the model what makes it behave like the real robot under the actions that it is given.

    Its actions are the real robot's inputs: clipped to `action_space` (the range guard; by default that of `env`),
    delayed by the model's delay, corrected and handed on.

    A batched MuJoCo environment (one with `models`, `qpos` and `qvel`, as `offroad.envs.vector.MujocoVectorEnv`) is
    corrected inside its physics, as often as the log had rows, by controls and by forces. One whose actions are asked
    of controllers inside (`joints` and a method `correct`, as HAMR's) is corrected behind these: the controllers stay,
    and what they ask of the real robot is what the model sees. Any other vector environment is corrected through its
    actions, once a step, and needs `read(env) -> (q [N, n], qd [N, n])`: the model's joints. Then the log's rows must
    be as far apart as its steps. Only the first kind takes a model of the form "dynamics".

    `info["trust"]` in [0, 1] says how far each world stayed within the model's data; (1 - trust) `penalty` is taken
    from the reward, so that a policy does not live off what the model makes up.
    """

    def __init__(
        self,
        env: VectorEnv | gym.Env,
        model: ResidualModel,
        *,
        read: Read | None = None,
        action_space: gym.spaces.Box | None = None,
        penalty: float | int = 0.0,
    ):
        if not isinstance(env, VectorEnv):
            raise OffroadError(
                f"ResidualEnv got {type(env).__name__}, expected a vector environment; make it with "
                "gymnasium.make_vec(id, num_envs), or put it into gymnasium.vector.SyncVectorEnv([lambda: env])"
            )
        super().__init__(env)
        space = action_space or env.single_action_space
        if not isinstance(space, gym.spaces.Box) or space.shape != (model.inputs,):
            raise OffroadError(
                f"the actions are {space}, but the model was fitted to {model.inputs} inputs; pass their action_space"
            )
        if env.single_action_space.shape != (len(model.controls),):
            raise OffroadError(
                f"the environment takes actions of shape {env.single_action_space.shape}, the model gives "
                f"{len(model.controls)} controls; fit it to a log of this robot"
            )
        self.single_action_space = space
        self.action_space = gym.vector.utils.batch_space(space, env.num_envs)
        self.penalty = penalty
        self._read, self._told = read, Told(model, env.num_envs)
        self._fresh = np.zeros(env.num_envs, bool)
        if read is not None:
            self._correct_actions(model)
        elif hasattr(env.unwrapped, "correct"):
            self._correct_behind_controllers(model)
        else:
            self._correct_physics(model)

    def _correct_actions(self, model: ResidualModel) -> None:
        _without_forces(model, "actions")
        dt = getattr(self.env.unwrapped, "dt", None)
        if dt is not None and abs(float(dt) - model.dt) > 1e-2 * model.dt:
            raise OffroadError(
                f"the environment steps {float(dt):g} at a time, the rows of the log were {model.dt:g} apart; log at "
                "the environment's interval"
            )

    def _correct_behind_controllers(self, model: ResidualModel) -> None:
        inner: Any = self.env.unwrapped
        _without_forces(model, "controllers")
        timestep = float(inner.models[0].opt.timestep)
        if abs(timestep - model.dt) > 1e-2 * model.dt:
            raise OffroadError(
                f"the environment's controllers act every {timestep:g}, the rows of the log were {model.dt:g} apart; "
                "log at that interval, or make the environment with the log's"
            )
        if model.controls != inner.joints:
            raise OffroadError(
                f"the model gives the controls {', '.join(model.controls)}, the environment takes "
                f"{', '.join(inner.joints)}; fit the model with this environment as the simulator"
            )
        order = [_known(name, inner.joints) for name in model.joints]
        inner.correct(lambda q, qd, u, fresh: self._told(q[:, order], qd[:, order], u, fresh)[0])

    def _correct_physics(self, model: ResidualModel) -> None:
        inner: Any = self.env.unwrapped
        if not all(hasattr(inner, name) for name in ("qpos", "qvel", "models", "_physics")):
            raise OffroadError(
                f"{type(inner).__name__} is no batched MuJoCo environment, so that its joints are unknown; pass "
                "read=lambda env: (q, qd)"
            )
        inner._physics.close()
        inner._physics = CorrectedPhysics(inner.models, float(inner.dt), model, self._told)

    def reset(
        self, *, seed: int | Any | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._fresh |= np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        return self.env.reset(seed=seed, options=None if options is None else dict(options))

    def step(self, actions: Any) -> tuple[Any, ndarray, ndarray, ndarray, dict[str, Any]]:
        box = self.single_action_space
        assert isinstance(box, gym.spaces.Box)
        actions = np.clip(np.asarray(actions, float), box.low, box.high)
        self._told.trust = np.ones(self.num_envs)
        if self._read is not None:
            actions = self._told(*self._read(self.env), actions, self._fresh)[0]
        observation, reward, terminated, truncated, info = self.env.step(actions)
        automatic = self.env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED
        self._fresh = (terminated | truncated) & automatic
        trust = self._told.trust
        info["trust"], info["_trust"] = trust, np.ones(self.num_envs, bool)
        return observation, reward - self.penalty * (1 - trust), terminated, truncated, info


def _without_forces(model: ResidualModel, way: str) -> None:
    if model.form == "dynamics":
        raise OffroadError(
            f"a model of the form 'dynamics' adds forces, which have no way through {way}; wrap a batched MuJoCo "
            "environment, or fit form='action'"
        )


def _known(name: str, joints: Any) -> int:
    """The index of a joint."""
    if name not in joints:
        raise OffroadError(f"the environment has no joint {name!r}; it has {', '.join(joints)}")
    return list(joints).index(name)


class Told:
    """What the model makes of inputs, row after row: delayed, corrected, and with an eye on the range of the data."""

    def __init__(self, model: ResidualModel, worlds: int):
        self._late = Late(model.delay, worlds, model.inputs)
        self._model = eqx.filter_jit(lambda q, qd, u: (*model(q, qd, u), model.trust(q, qd, u)))
        self.trust = np.ones(worlds)
        """How far each world stayed within the data since this was set to 1."""

    def __call__(
        self, q: Float[ndarray, "N n"], qd: Float[ndarray, "N n"], u: Float[ndarray, "N m"], fresh: ndarray
    ) -> tuple[Float[ndarray, "N c"], Float[ndarray, "N n"]]:
        inputs = (jnp.asarray(x, jnp.float32) for x in (q, qd, self._late(u, fresh)))
        control, force, trust = (np.asarray(x) for x in self._model(*inputs))
        self.trust = np.minimum(self.trust, trust)
        return control, force


class Late:
    """Inputs of so many rows before; those before the first of an episode are as the first."""

    def __init__(self, delay: int, worlds: int, inputs: int):
        self._queue = np.zeros((delay + 1, worlds, inputs))

    def __call__(self, u: Float[ndarray, "N m"], fresh: ndarray) -> Float[ndarray, "N m"]:
        self._queue[1:] = self._queue[:-1]
        self._queue[0] = u
        self._queue[:, fresh] = u[fresh]
        return self._queue[-1]


class CorrectedPhysics:
    """Physics of a batch of MuJoCo worlds in which the model chooses controls and forces for every row of its log.

    It takes the place of `offroad.envs.physics.RolloutPhysics`: `step` advances the states by `duration`.
    """

    def __init__(self, models: list[mujoco.MjModel], duration: float, model: ResidualModel, told: Told):
        first = models[0]
        timestep = float(first.opt.timestep)
        self._substeps, self._rows = round(model.dt / timestep), round(duration / model.dt)
        if self._substeps < 1 or abs(self._substeps * timestep - model.dt) > 1e-2 * model.dt:
            raise OffroadError(
                f"the rows of the log were {model.dt:g} apart, no multiple of the environment's physics step "
                f"{timestep:g}; "
                "make both one unit and a whole ratio"
            )
        if self._rows < 1 or abs(self._rows * model.dt - duration) > 1e-2 * model.dt:
            raise OffroadError(
                f"the environment steps {duration:g} at a time, no multiple of the log's {model.dt:g}; log faster or "
                "in step"
            )
        names = [first.joint(i).name or f"joint_{i}" for i in range(first.njnt)]
        joints = [_known(name, names) for name in model.joints]
        self._q = 1 + first.jnt_qposadr[joints]
        self._dofs = first.jnt_dofadr[joints]
        self._qd = 1 + first.nq + self._dofs
        self._start = 1.5 * timestep  # worlds whose clock is below have just begun an episode
        for each in models:  # what the model asks for is not the real input, whose range the wrapper guards
            each.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL.value
        self._models, self._data = models, mujoco.MjData(first)
        self._told = told
        self._pushed = np.zeros((len(models), self._substeps, first.nu + first.nv))
        self._controls = first.nu

    def step(self, state: Float[ndarray, "N S"], control: Float[ndarray, "N m"]) -> None:
        """Advances `state` in place."""
        fresh = state[:, 0] < self._start
        for _ in range(self._rows):
            told, force = self._told(state[:, self._q], state[:, self._qd], control, fresh)
            self._pushed[:, :, : self._controls] = told[:, None]
            self._pushed[:, :, self._controls + self._dofs] = force[:, None]
            state[:] = advance(self._models, self._data, state, self._pushed)
            fresh = np.zeros(len(state), bool)

    def close(self) -> None:
        """Nothing is held open."""
