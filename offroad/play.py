"""Watching a trained agent in its environment."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import jax
import numpy as np

from offroad.errors import OffroadError, unknown_option
from offroad.report import video
from offroad.train.collect import HostPolicy
from offroad.train.loop import EVALUATION_SEED
from offroad.train.restore import load_agent
from offroad.train.run import Run


def play(
    folder: str | Path,
    episodes: int = 3,
    window: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Path | None, list[float]]:
    """Plays the deterministic policy of a run, in a window or into `videos/play.mp4` of the run folder.

    `options` are those of the environment that differ from the training's.

    **Returns:** the video's path, and the return of each episode.

    Raises `OffroadError` if the run cannot be loaded or its environment cannot be drawn here.
    """
    run = Run.open(folder)
    if "env" not in run.config:
        raise OffroadError(f"the run '{run.path}' knows no environment; train it with --env to watch it there")
    agent = load_agent(folder)
    mode, name = "human" if window else "rgb_array", run.config["env"]["id"]
    env = _make(name, {**run.config["env"]["kwargs"], **options}, mode)
    policy = HostPolicy(env.action_space).bind(agent, None)
    frames, returns = [], []
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=EVALUATION_SEED + seed + episode)
            memory, total, done = agent.initial_memory(1), 0.0, False
            frames.append(_draw(env, name))
            while not done:
                batch = jax.tree.map(lambda x: np.asarray(x)[None], observation)
                _, action, memory = policy(batch, 0, memory)
                observation, reward, terminated, truncated, _ = env.step(action[0])
                total, done = total + float(reward), terminated or truncated
                frames.append(_draw(env, name))
            returns.append(total)
    finally:
        env.close()
    if window:
        return None, returns
    path = video.write(run.path / "videos" / "play.mp4", frames, env.metadata.get("render_fps", 30))
    return path, returns


def _make(name: str, kwargs: dict[str, Any], mode: str) -> gym.Env:
    """One copy of the run's environment that draws itself."""
    try:
        env = gym.make(name, **kwargs)
        modes = env.metadata.get("render_modes") or []
        env.close()
        if mode not in modes:
            raise OffroadError(
                f"environment {name!r} cannot draw itself as {mode!r}, only as {', '.join(modes)}"
                if modes
                else f"environment {name!r} cannot draw itself; see its curves with offroad report"
            )
        return gym.make(name, render_mode=mode, **kwargs)
    except (gym.error.Error, TypeError, ImportError) as error:
        if named := unknown_option(name, error, set()):
            raise named from error
        raise OffroadError(f"environment {name!r} cannot be made for watching: {error}") from error


def _draw(env: gym.Env, name: str) -> Any:
    try:
        return env.render()
    except Exception as error:  # every graphics library has errors of its own
        raise OffroadError(
            f"environment {name!r} cannot be drawn here ({type(error).__name__}: {str(error).strip()}); it needs its "
            "drawing library and OpenGL: without a display, install libegl1 and set MUJOCO_GL=egl"
        ) from error
