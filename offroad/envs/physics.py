"""The parts of MuJoCo that `MujocoVectorEnv` is made of: two ways to step a batch of worlds, and a renderer.

Shapes: N worlds, S numbers of MuJoCo's full physics state (time, qpos, qvel, ...), U actuators, P physics steps.

`models` may be replaced one by one between steps, by models of the same sizes.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
from jaxtyping import Float, UInt8
from mujoco import rollout
from numpy import ndarray

from offroad.errors import OffroadError

PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
CONTROL = mujoco.mjtState.mjSTATE_CTRL.value


def one_for_each_world(models: mujoco.MjModel | Sequence[mujoco.MjModel], num_envs: int) -> list[mujoco.MjModel]:
    """A list with one model for each world; raises `OffroadError` if numbers or sizes do not fit."""
    if num_envs < 1:
        raise OffroadError(f"num_envs is {num_envs}, expected at least 1")
    models = [models] * num_envs if isinstance(models, mujoco.MjModel) else list(models)
    if len(models) != num_envs:
        raise OffroadError(f"{len(models)} models for {num_envs} worlds; pass one model, or one for each world")
    for world, model in enumerate(models):
        for size in ("nq", "nv", "nu", "na", "nbody", "nsensordata"):
            found, expected = getattr(model, size), getattr(models[0], size)
            if found != expected:
                raise OffroadError(
                    f"the model of world {world} has {size}={found}, that of world 0 has {expected}; "
                    "models may differ in parameters, not in structure"
                )
    return models


def cores() -> int:
    """The cores that this process may use, which not every platform tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RolloutPhysics:
    """`frame_skip` substeps of every world by `mujoco.rollout`, on a pool of threads kept for all steps."""

    def __init__(self, models: Sequence[mujoco.MjModel], frame_skip: int, num_threads: int):
        self._models = models
        self._substeps = frame_skip
        worlds, model = len(self._models), self._models[0]
        self._data = [mujoco.MjData(model) for _ in range(num_threads)]
        self._pool = rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        # Handing a chunk to a thread costs as much as stepping a small world: one chunk for each thread.
        self._chunk = math.ceil(worlds / num_threads)
        self._control = np.zeros((worlds, frame_skip, model.nu))
        self._states = np.zeros((worlds, frame_skip, mujoco.mj_stateSize(model, PHYSICS)))
        self._sensors = np.zeros((worlds, frame_skip, model.nsensordata))

    def step(self, state: Float[ndarray, "N S"], control: Float[ndarray, "N U"] | Float[ndarray, "N P U"]) -> None:
        """Advances `state` in place."""
        self._control[:] = control if control.ndim == 3 else control[:, None]
        self._pool.rollout(
            self._models,
            self._data,
            state,
            self._control,
            control_spec=CONTROL,
            skip_checks=True,
            nstep=self._substeps,
            state=self._states,
            sensordata=self._sensors,
            chunk_size=self._chunk,
        )
        state[:] = self._states[:, -1]

    def close(self) -> None:
        self._pool.close()


class InspectedPhysics:
    """The same physics to the bit, for tasks that need more of the last substep than its state: contact forces, say.

    `mujoco.rollout` returns states only, so Python threads run `mj_step`, which releases the interpreter lock.
    `inspect` is called with each world's number and its data after the last substep and `mj_rnePostConstraint`.
    """

    def __init__(
        self,
        models: Sequence[mujoco.MjModel],
        frame_skip: int,
        num_threads: int,
        inspect: Callable[[int, mujoco.MjData], None],
    ):
        self._models = models
        self._substeps = frame_skip
        self._inspect = inspect
        self._data = [mujoco.MjData(self._models[0]) for _ in range(num_threads)]
        self._pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None

    def step(self, state: Float[ndarray, "N S"], control: Float[ndarray, "N U"]) -> None:
        """Advances `state` in place."""
        worlds = iter(range(len(self._models)))  # shared by the threads, so that a slow world holds up no other

        def work(data: mujoco.MjData) -> None:
            for world in worlds:
                model = self._models[world]
                mujoco.mj_setState(model, data, state[world], PHYSICS)
                data.qacc_warmstart[:] = 0.0  # as in `mujoco.rollout`: the result depends on the state only
                data.ctrl[:] = control[world]
                mujoco.mj_step(model, data, self._substeps)
                mujoco.mj_rnePostConstraint(model, data)
                mujoco.mj_getState(model, data, state[world], PHYSICS)
                self._inspect(world, data)

        others = [self._pool.submit(work, data) for data in self._data[1:]] if self._pool else []
        work(self._data[0])
        for other in others:
            if not other.cancel():  # a thread that has not woken up yet is too late: all worlds are taken
                other.result()

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()


class Renderer:
    """Draws worlds off screen, through their camera "view" if there is one, else following the first body.

    Without shadows and reflections, which cost most of the time on a CPU.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        # The buffer belongs to the model that the context is made from.
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # which one depends on the platform and its drivers
            raise OffroadError(
                f"rendering found no usable OpenGL ({error}); set MUJOCO_GL=egl or MUJOCO_GL=osmesa and install its "
                "library, or create the environment without render_mode"
            ) from error
        self._data = mujoco.MjData(model)
        self._camera = mujoco.MjvCamera()
        if model.ncam and model.camera(0).name == "view":
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        else:
            self._camera.type, self._camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
            self._camera.distance, self._camera.elevation = 4.0, -20.0

    def frame(self, model: mujoco.MjModel, state: Float[ndarray, "S"]) -> UInt8[ndarray, "height width 3"]:
        mujoco.mj_setState(model, self._data, state, PHYSICS)
        mujoco.mj_forward(model, self._data)
        self._renderer.update_scene(self._data, self._camera)
        for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[effect] = False
        return self._renderer.render()

    def close(self) -> None:
        self._renderer.close()
