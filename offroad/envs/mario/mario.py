"""Super Mario Bros as in Pathak et al. 2017: 42 x 42 grey, six frames for each decision, 14 actions, how far one gets.

No ROM comes with this library, and none may: pass the path of your own. The emulator is
`env-supermariobrosnes-turbo-emu` (MIT), which accepts one dump of the game only, known by its SHA-256.

**The game itself was never run with this adapter**: its authors have no ROM. What was checked is that the emulator
takes the arguments, and the errors.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy import ndarray

from offroad.envs.threaded import SingleWorldEnv, ThreadedVectorEnv
from offroad.errors import OffroadError, unknown

DIGEST = "f61548fdf1670cffefcc4f0b7bdcdd9eaba0c226e3b74f8666071496988248de"
"""SHA-256 of the dump that the emulator accepts."""
LEVELS = ("1-1", "1-2", "1-3")
_JUMPS = ((), ("A",), ("B",), ("A", "B"))
ACTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("UP",),
    ("DOWN",),
    *_JUMPS[1:],
    *(("LEFT", *buttons) for buttons in _JUMPS),
    *(("RIGHT", *buttons) for buttons in _JUMPS),
)
"""The 14 of the paper's code: the buttons that each holds."""
SIDE, STACK, FRAMES = 42, 4, 6
# The paper's code cuts 24 of 224 rows at the top and 12 at the bottom, and 8 of 256 columns at either side, which the
# emulator leaves out by itself.
CROP = (24, 12, 0, 0)  # top, bottom, left, right
TIMEOUT = 4000  # decisions: more than the game's clock allows


class Mario(ThreadedVectorEnv):
    """N games, stepped by threads.

    Observation: the last four frames, grey, `uint8 [42, 42, 4]`, the newest last. Reward: 1 for the end of the level,
    which ends the episode, as does the loss of a life; 0 otherwise. `info`: `x` in the game's units (16 for a tile),
    `distance` from the start to the furthest place so far, `level` (index into the option), `score`, `success`.

    Args:
        rom: path of your own ROM.
        levels: one of `"1-1"`, `"1-2"`, `"1-3"` or several: each episode draws one.
        repeat: frames for which an action is held.

    Raises `OffroadError` without a ROM, if it is another dump, and if the emulator is missing.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        rom: str | Path | None = None,
        levels: str | Sequence[str] = "1-1",
        repeat: int = FRAMES,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        render_mode: str | None = None,
    ):
        chosen = (levels,) if isinstance(levels, str) else tuple(levels)
        for level in chosen:
            if level not in LEVELS:
                raise unknown("level", level, LEVELS)
        path, emulator = _checked(rom), _emulator()
        super().__init__(
            [partial(MarioWorld, emulator, path, chosen, repeat, render_mode)] * num_envs,
            gym.spaces.Box(0, 255, (SIDE, SIDE, STACK), np.uint8),
            gym.spaces.Discrete(len(ACTIONS)),
            autoreset_mode=autoreset_mode,
            num_threads=num_threads,
            render_mode=render_mode,
            fps=60 / repeat,
        )


class MarioWorld:
    """One emulator with one game."""

    def __init__(self, emulator: Any, rom: Path, levels: Sequence[str], repeat: int, render_mode: str | None):
        self.levels = levels
        self.game = emulator(
            "SuperMarioBros-Nes-v0",
            rom_path=rom,
            state_catalog=[f"Level{level}" for level in levels],
            use_restricted_actions=ACTIONS,
            num_envs=1,
            num_threads=1,
            obs_resize=(SIDE, SIDE),
            obs_crop=CROP,
            obs_layout="hwc",
            obs_copy="copy",
            frame_skip=repeat,
            frame_stack=STACK,
            render_mode=render_mode,
        )
        self.level, self.steps, self.start, self.furthest = 0, 0, 0, 0
        self.first: dict[str, int] = {}

    def reset(self, random: np.random.Generator, options: Mapping[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        self.level = int(random.integers(len(self.levels)))
        observation, info = self.game.reset(
            seed=int(random.integers(2**31)), options={"state_indices": np.array([self.level], np.int32)}
        )
        self.first = _numbers(info)
        self.steps, self.start = 0, self.first["x_pos"]
        self.furthest = self.start
        return observation[0], self._info(self.first, False)

    def step(self, action: Any) -> tuple[ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, ended, _, info = self.game.step(np.array([action]))
        now = _numbers(info)
        success = any(now[name] != self.first[name] for name in ("levelHi", "levelLo"))
        lost = bool(ended[0]) or now["lives"] < self.first["lives"]
        self.steps += 1
        if not success:  # the next level counts from its own start
            self.furthest = max(self.furthest, now["x_pos"])
        terminated = success or lost
        return (
            observation[0],
            float(success),
            terminated,
            not terminated and self.steps >= TIMEOUT,
            self._info(now, success),
        )

    def frame(self) -> ndarray:
        return np.asarray(self.game.render_lane(0))

    def close(self) -> None:
        self.game.close()

    def _info(self, now: dict[str, int], success: bool) -> dict[str, Any]:
        return {
            "x": now["x_pos"],
            "distance": self.furthest - self.start,
            "level": self.level,
            "score": now["score"],
            "success": success,
        }


def make_vector(num_envs: int = 1, **options: Any) -> Mario:
    """A batch of games. Options as of `Mario`."""
    return Mario(num_envs, **options)


def make_single(**options: Any) -> SingleWorldEnv:
    """One game as a `gymnasium.Env`. Options as of `Mario`."""
    return SingleWorldEnv(Mario(1, autoreset_mode=AutoresetMode.DISABLED, **options))


def _numbers(info: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(info[name][0]) for name in ("x_pos", "levelHi", "levelLo", "lives", "score")}


def _checked(rom: str | Path | None) -> Path:
    if rom is None:
        raise OffroadError("offroad/Mario-v0 needs a ROM of Super Mario Bros that you own; pass rom=PATH (--rom PATH)")
    path = Path(rom).expanduser()
    if not path.is_file():
        raise OffroadError(f"there is no ROM at {path}; pass rom=PATH (--rom PATH) of your own Super Mario Bros")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != DIGEST:
        raise OffroadError(
            f"the ROM {path} has SHA-256 {found}, but the emulator knows {DIGEST} only of Super Mario "
            "Bros; pass that one"
        )
    return path


def _emulator() -> Any:
    try:
        import env_supermariobrosnes_turbo_emu as emulator  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OffroadError("Mario needs an emulator, which is missing: pip install 'offroad[mario]'") from error
    return emulator.EnvSuperMarioBrosNesTurboEmuVecEnv
