"""The maze of ViZDoom's `my_way_home` seen from inside: find the vest, 18 sectors away at most.

Observation: the last four frames, grey, 42 x 42, as `uint8 [42, 42, 4]`, the newest last. An episode starts with three
black frames and one that shows something. Reward: 1 for the vest, which ends the episode; 0 otherwise. 2100 tics (35 a
second) without it truncate the episode. The setting is that of Pathak et al. 2017 (arXiv 1705.05363).
"""

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

from offroad.envs.doom import textures as looks
from offroad.envs.doom import wad
from offroad.envs.doom.coverage import Coverage
from offroad.envs.doom.level import Level
from offroad.envs.threaded import SingleWorldEnv, ThreadedVectorEnv
from offroad.errors import OffroadError, unknown

STARTS = {"near": 26, "sparse": 10, "very-sparse": 15}
"""The start spots with a name; the last two are the paper's, about 270 and 350 steps from the vest."""
ACTIONS = {
    # forward, turn left, turn right
    "paper": (4, ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))),
    "macro": (8, ((1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1))),
}
"""Name: (tics for which an action is held, the buttons of each action)."""
REWARDS = ("goal", "cells")
SIDE, STACK = 42, 4
TIMEOUT = 2100  # tics
WAKE_UP = 10  # tics after which a player who was put somewhere can move
FPS = 35


class DoomMaze(ThreadedVectorEnv):
    """N mazes, each with an engine of its own (a process), stepped by threads.

    `info` tells what no observation shows: position `x`, `y` and `angle` (map units, degrees), the 64-unit `cell`, the
    `sector`, and `tics` since the start of the episode. `coverage` adds them up, `metrics()` are its means.

    Args:
        start: `"dense"` (any of 17 spots), `"near"`, `"sparse"`, `"very-sparse"` or the number of a spot, 10 to 26.
        angle: degrees, counter-clockwise from east, at the start of an episode; None draws one.
        textures: a name in `textures.SETS`, a group of them (`"train"`, `"held-out"`), `"original"`, or several of
            these: each episode draws one.
        noise: the share of the view, from its right edge, that shows white noise instead.
        mirror: turns the map around.
        actions: `"paper"`: none, forward, left, right, held for 4 tics; `"macro"`: forward, forward and left, forward
            and right, left, right, held for 8.
        reward: `"goal"`, or `"cells"`: 1 for each cell that is new in the episode, and nothing for the vest. Only for
            measuring what exploration can reach: it is paid for what no agent sees.
        timeout: tics.

    Raises `OffroadError` for unknown options and if ViZDoom is missing.
    """

    worlds: "list[DoomWorld]"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        start: str | int = "sparse",
        angle: float | int | None = None,
        textures: str | Sequence[str] = "original",
        noise: float | int = 0.0,
        mirror: bool = False,
        actions: str = "paper",
        reward: str = "goal",
        timeout: int = TIMEOUT,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        render_mode: str | None = None,
    ):
        if actions not in ACTIONS:
            raise unknown("set of actions", actions, ACTIONS)
        if reward not in REWARDS:
            raise unknown("reward", reward, REWARDS)
        if not 0 <= noise < 1:
            raise OffroadError(f"noise is {noise}; expected the share of the view that is noise, at least 0, below 1")
        if timeout < 1:
            raise OffroadError(f"timeout is {timeout}; expected at least 1 tic")
        angle = None if angle is None else float(angle)
        lumps = _shipped()
        self.level = _level(mirror)
        self.spots = _spots(start, self.level)
        self.textures = looks.chosen(textures)
        self.reward = reward
        maps = {
            f"R{spot}T{i}": wad.variant(lumps, f"R{spot}T{i}", spot, looks.replacements(name), mirror)
            for i, name in enumerate(self.textures)
            for spot in self.spots
        }
        repeat, buttons = ACTIONS[actions]
        self._folder = Path(tempfile.mkdtemp(prefix="offroad-doom-"))
        try:
            path = self._folder / "maps.wad"
            path.write_bytes(wad.write([lump for parts in maps.values() for lump in parts]))
            super().__init__(
                [partial(DoomWorld, path, tuple(maps), buttons, repeat, angle, noise, timeout)] * num_envs,
                gym.spaces.Box(0, 255, (SIDE, SIDE, STACK), np.uint8),
                gym.spaces.Discrete(len(buttons)),
                autoreset_mode=autoreset_mode,
                num_threads=num_threads,
                render_mode=render_mode,
                fps=FPS / repeat,
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.coverage = Coverage(self.level, num_envs)

    def metrics(self) -> dict[str, float]:
        """Coverage of the last 50 episodes, see `Coverage.metrics`."""
        return self.coverage.metrics()

    def close_extras(self, **kwargs: Any) -> None:
        try:
            super().close_extras(**kwargs)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stepped(
        self, which: Bool[ndarray, "N"], reward: Float[ndarray, "N"], info: dict[str, ndarray]
    ) -> Float[ndarray, "N"]:
        position = self._locate(info)
        new = self.coverage.move(which, position)
        return new.astype(float) if self.reward == "cells" else reward

    def _begun(self, which: Bool[ndarray, "N"], info: dict[str, ndarray]) -> None:
        self.coverage.begin(which, self._locate(info))

    def _locate(self, info: dict[str, ndarray]) -> Float[ndarray, "N 2"]:
        position = np.stack([info["x"], info["y"]], -1)
        info["cell"], info["sector"] = self.level.cell(position), self.level.sector(position)
        return position


class DoomWorld:
    """One engine. An episode's map, angle and noise come from the generator that `reset` is given; the engine itself
    has nothing left to draw."""

    def __init__(
        self,
        path: Path,
        maps: Sequence[str],
        buttons: Sequence[tuple[int, ...]],
        repeat: int,
        angle: float | int | None,
        noise: float | int,
        timeout: int,
    ):
        vzd = _vizdoom()
        self.maps, self.repeat, self.angle, self.timeout = tuple(maps), repeat, angle, timeout
        self.buttons = [[*map(float, pressed), 0.0] for pressed in buttons]
        self.noisy = round(SIDE * noise)  # columns
        self.random = np.random.default_rng()
        self.stack = np.zeros((SIDE, SIDE, STACK), np.uint8)
        self.tics = 0
        self.place: dict[str, float] = {}
        self.game = vzd.DoomGame()
        self.game.set_doom_scenario_path(str(path))
        self.game.set_doom_config_path(str(path.parent / "doom.ini"))
        self.game.set_vizdoom_path(str(_launcher(path.parent)))
        self.game.set_doom_map(self.maps[0])
        self.game.set_doom_skill(5)
        self.game.set_mode(vzd.Mode.PLAYER)
        self.game.set_window_visible(False)
        self.game.set_sound_enabled(False)
        self.game.set_screen_format(vzd.ScreenFormat.GRAY8)
        self.game.set_screen_resolution(vzd.ScreenResolution.RES_160X120)
        for part in ("hud", "weapon", "crosshair", "decals", "particles", "messages"):
            getattr(self.game, f"set_render_{part}")(False)
        self.game.set_available_buttons(
            [vzd.Button.MOVE_FORWARD, vzd.Button.TURN_LEFT, vzd.Button.TURN_RIGHT, vzd.Button.TURN_LEFT_RIGHT_DELTA]
        )
        self.game.set_available_game_variables(
            [vzd.GameVariable.POSITION_X, vzd.GameVariable.POSITION_Y, vzd.GameVariable.ANGLE]
        )
        self.game.set_episode_start_time(WAKE_UP)
        self.game.set_episode_timeout(0)  # `timeout` is counted here
        self.game.set_living_reward(0.0)
        try:
            self.game.init()
        except Exception as error:
            raise OffroadError(f"ViZDoom's engine does not start: {error}") from error

    def reset(self, random: np.random.Generator, options: Mapping[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        self.random, self.tics = random, 0
        self.game.set_doom_map(self.maps[random.integers(len(self.maps))])
        target = random.uniform(0, 360) if self.angle is None else float(self.angle)
        self.game.set_seed(int(random.integers(2**31)))
        self._guarded(self.game.new_episode)
        angle = self.game.get_state().game_variables[2]
        self._guarded(self.game.make_action, [0.0, 0.0, 0.0, (angle - target + 180) % 360 - 180])  # positive: right
        self.stack[:] = 0
        self._look()
        return self.stack, self._info()

    def step(self, action: Any) -> tuple[ndarray, float, bool, bool, dict[str, Any]]:
        tics = min(self.repeat, self.timeout - self.tics)
        reward = self._guarded(self.game.make_action, self.buttons[int(action)], tics)
        self.tics += tics
        self._look()
        terminated = self.game.is_episode_finished()
        return self.stack, reward, terminated, not terminated and self.tics >= self.timeout, self._info()

    def frame(self) -> UInt8[ndarray, "height width 3"]:
        return np.repeat(self.view[..., None], 3, -1)

    def close(self) -> None:
        self.game.close()

    def _look(self) -> None:
        """Puts what is seen now on the stack. The engine shows nothing after an episode's end: the last frame again."""
        state = self.game.get_state()
        # One frame older: NumPy shifts the four bytes of a pixel as one number, forty times as fast as byte by byte.
        frames = self.stack.view("<u4")
        frames >>= 8
        if state is not None:
            self.view = state.screen_buffer.copy()
            x, y, angle = state.game_variables.tolist()
            self.place = {"x": x, "y": y, "angle": angle}
            self.stack[..., -1] = np.asarray(Image.fromarray(self.view).resize((SIDE, SIDE), Image.Resampling.BOX))
        if self.noisy:
            noise = self.random.integers(0, 256, (SIDE, self.noisy), np.uint8)
            self.stack[:, SIDE - self.noisy :, -1] = noise

    def _info(self) -> dict[str, Any]:
        return {**self.place, "tics": self.tics}

    def _guarded(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise OffroadError(f"ViZDoom's engine stopped ({error}); make the environment again") from error


def make_vector(num_envs: int = 1, **options: Any) -> DoomMaze:
    """A batch of mazes. Options as of `DoomMaze`."""
    return DoomMaze(num_envs, **options)


def make_single(**options: Any) -> SingleWorldEnv:
    """One maze as a `gymnasium.Env`. Options as of `DoomMaze`."""
    return SingleWorldEnv(DoomMaze(1, autoreset_mode=AutoresetMode.DISABLED, **options))


def _vizdoom() -> Any:
    try:
        import vizdoom
    except ImportError as error:
        raise OffroadError("the Doom maze needs ViZDoom, which is missing: pip install 'offroad[doom]'") from error
    return vizdoom


def _launcher(folder: Path) -> Path:
    """A script that starts the engine inside `folder`: it leaves a folder behind wherever it is started."""
    script = folder / "doom.sh"
    if not script.exists():
        engine = Path(_vizdoom().__file__).parent / "vizdoom"
        script.write_text(f'#!/bin/sh\ncd {shlex.quote(str(folder))} && exec {shlex.quote(str(engine))} "$@"\n')
        script.chmod(0o700)
    return script


@cache
def _shipped() -> wad.Lumps:
    """The lumps of the map that comes with ViZDoom."""
    return wad.read((Path(_vizdoom().scenarios_path) / "my_way_home.wad").read_bytes())


@cache
def _level(mirror: bool) -> Level:
    text = dict(_shipped())["TEXTMAP"].decode("ascii")
    return Level(wad.mirrored(text) if mirror else text)


def _spots(start: str | int, level: Level) -> tuple[int, ...]:
    if start == "dense":
        return tuple(sorted(level.spots))
    spot = STARTS.get(start, start) if isinstance(start, str) else start
    if isinstance(spot, str) and spot.isdigit():  # from a command line
        spot = int(spot)
    if spot not in level.spots:
        raise unknown("start", str(start), ("dense", *STARTS, *map(str, level.spots)))
    return (int(spot),)
