"""A platformer with levels, as pure functions: run and jump to the flag, past pits, pipes and enemies.

It stands in for Super Mario Bros, which nobody may pass on: the same six frames for each decision and the same kind of
obstacles, of which the widest pits and the highest pipes need the jump key held for several decisions. Everything is
drawn here, and any number of levels can be drawn, so that training and test levels are many instead of three.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from offroad.envs.platformer import levels as terrain
from offroad.errors import OffroadError, unknown

SIDE, STACK = 42, 4
TILE = 3  # pixels: the view is 14 tiles wide and high
BEHIND = 4.0  # tiles of the view that are on the player's left
FRAMES = 6  # for which an action is held
GROUPS = {"train": range(16), "test": range(1000, 1016)}
"""The seeds of the levels with a name."""

ACTIONS = ("none", "right", "left", "jump", "right + jump", "left + jump")
DIRECTION = (0.0, 1.0, -1.0, 0.0, 1.0, -1.0)

# Tiles and frames. A jump rises 2.2 tiles if the key is let go after one decision, 3.6 if it is held for four.
SPEED, ACCELERATION, FRICTION = 0.15, 0.012, 0.02
JUMP, RISING, FALLING, FASTEST_FALL = 0.3, 0.0125, 0.04, 0.45
HALF, TALL = 0.35, 1.2  # of the player: half the width, and the height
ENEMY_SPEED, ENEMY_SIZE, AWAKE = 0.03, 0.8, 14.0

LOOKS = {
    # sky, hills, earth, its pattern, pipes, enemies
    "day": (170, 140, 90, 60, 115, 20),
    "night": (15, 40, 120, 150, 80, 230),
}
PLAYER, POLE = 255, 200


class State(NamedTuple):
    """One game; lengths in tiles, speeds in tiles for each frame."""

    level: Int[Array, ""]
    x: Float[Array, ""]  # the middle of the player
    y: Float[Array, ""]  # its feet
    vx: Float[Array, ""]
    vy: Float[Array, ""]
    grounded: Bool[Array, ""]
    held: Bool[Array, ""]  # the jump key, in the frame before
    furthest: Float[Array, ""]
    enemy: Float[Array, "enemies"]
    heading: Float[Array, "enemies"]
    alive: Bool[Array, "enemies"]
    dead: Bool[Array, ""]
    frames: UInt8[Array, "side side stack"]


class Platformer(FuncEnv):
    """The game as pure functions of one game's state; `JaxVectorEnv` makes a Gymnasium environment of it.

    Observation: the last four views, grey, `uint8 [42, 42, 4]`, the newest last, with three black ones at the start.
    Actions: none, right, left, jump, right and jump, left and jump, held for six frames. Reward: 1 at the flag, which
    ends the episode, as do pits and enemies that are not jumped on; 0 otherwise. `info`: `x`, the `distance` from the
    start to the furthest place so far (tiles; the flag is at 175.5), the `level`'s seed, `success`.

    Args:
        levels: `"train"`, `"test"` (16 seeds each, none in both), one seed or several; each episode draws one.
        look: `"day"` or `"night"`: the shades of everything but the player.
        enemies: whether there are any.
    """

    def __init__(self, levels: str | int | Sequence[int] = "train", *, look: str = "day", enemies: bool = True):
        if isinstance(levels, str):
            if levels not in GROUPS and not levels.isdigit():
                raise unknown("group of levels", levels, GROUPS)
            levels = GROUPS[levels] if levels in GROUPS else int(levels)
        seeds = (levels,) if isinstance(levels, int) else tuple(levels)
        if not seeds or min(seeds) < 0:
            raise OffroadError(f"levels are {seeds}; expected at least one seed, none negative")
        if look not in LOOKS:
            raise unknown("look", look, LOOKS)
        self.seeds, self.look = seeds, look
        drawn = terrain.generate(seeds, enemies)
        self.levels = jax.tree.map(jnp.asarray, drawn)
        self._seeds = jnp.asarray(np.array(seeds), jnp.int32)
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, STACK), np.uint8)
        self.action_space = spaces.Discrete(len(ACTIONS))

    def initial(self, rng: PRNGKeyArray, params: None = None) -> State:
        level = jax.random.randint(rng, (), 0, len(self.seeds))
        start, nothing, no = jnp.float32(terrain.START), jnp.float32(0), jnp.array(False)
        state = State(
            level, start, jnp.float32(3), nothing, nothing, jnp.array(True), no, start,
            self.levels.enemies[level], -jnp.ones(terrain.ENEMIES), jnp.ones(terrain.ENEMIES, bool), no,
            jnp.zeros((SIDE, SIDE, STACK), jnp.uint8),
        )  # fmt: skip
        return self._seen(state)

    def transition(self, state: State, action: Int[Array, ""], rng: PRNGKeyArray, params: None = None) -> State:
        """One decision: six frames."""
        direction, jump = jnp.array(DIRECTION)[action], action >= 3
        return self._seen(jax.lax.fori_loop(0, FRAMES, lambda _, s: self._frame(s, direction, jump), state))

    def observation(self, state: State, rng: PRNGKeyArray, params: None = None) -> UInt8[Array, "side side stack"]:
        return state.frames

    def reward(
        self, state: State, action: Int[Array, ""], next_state: State, rng: PRNGKeyArray, params: None = None
    ) -> Float[Array, ""]:
        return self._won(next_state).astype(jnp.float32)

    def terminal(self, state: State, rng: PRNGKeyArray, params: None = None) -> Bool[Array, ""]:
        return state.dead | self._won(state)

    def state_info(self, state: State, params: None = None) -> dict[str, Array]:
        return {
            "x": state.x,
            "distance": state.furthest - terrain.START,
            "level": self._seeds[state.level],
            "success": self._won(state),
        }

    def transition_info(
        self, state: State, action: Int[Array, ""], next_state: State, params: None = None
    ) -> dict[str, Array]:
        return self.state_info(next_state)

    def _won(self, state: State) -> Bool[Array, ""]:
        return ~state.dead & (state.x >= terrain.FLAG)

    def _height(self, level: Int[Array, ""], x: Float[Array, "*at"]) -> Int[Array, "*at"]:
        return self.levels.height[level, jnp.clip(jnp.floor(x).astype(int), 0, terrain.LENGTH - 1)]

    def _frame(self, state: State, direction: Float[Array, ""], jump: Bool[Array, ""]) -> State:
        """A sixtieth of a second."""
        stop = jnp.sign(state.vx) * jnp.minimum(jnp.abs(state.vx), FRICTION * state.grounded)
        vx = jnp.where(direction == 0, state.vx - stop, state.vx + ACCELERATION * direction)
        vx = jnp.clip(vx, -SPEED, SPEED)
        leaps = jump & ~state.held & state.grounded
        gravity = jnp.where(jump & (state.vy > 0), RISING, FALLING)
        vy = jnp.where(leaps, JUMP, jnp.maximum(state.vy - gravity, -FASTEST_FALL))

        # Sideways, up to a wall; then up or down, onto the ground.
        edge = state.x + vx + jnp.sign(vx) * HALF
        blocked = self._height(state.level, edge) > state.y + 1e-3
        wall = jnp.where(vx > 0, jnp.floor(edge) - HALF - 1e-3, jnp.floor(edge) + 1 + HALF + 1e-3)
        x = jnp.maximum(jnp.where(blocked, wall, state.x + vx), 1.0)
        vx = jnp.where(blocked, 0.0, vx)
        below = self._height(state.level, x + jnp.array([-HALF, HALF])).max().astype(jnp.float32)
        y = state.y + vy
        grounded = (y <= below) & (vy <= 0)
        y, vy = jnp.where(grounded, below, y), jnp.where(grounded, 0.0, vy)
        fallen = y < -1

        enemy, heading, alive, caught, bounced = self._enemies(state, x, y, vy)
        vy = jnp.where(bounced, 0.7 * JUMP, vy)
        moved = state._replace(
            x=x, y=y, vx=vx, vy=vy, grounded=grounded & ~bounced, held=jump, furthest=jnp.maximum(state.furthest, x),
            enemy=enemy, heading=heading, alive=alive, dead=fallen | caught,
        )  # fmt: skip
        over = state.dead | self._won(state)
        return jax.tree.map(lambda old, new: jnp.where(over, old, new), state, moved)

    def _enemies(
        self, state: State, x: Float[Array, ""], y: Float[Array, ""], vy: Float[Array, ""]
    ) -> tuple[
        Float[Array, "enemies"], Float[Array, "enemies"], Bool[Array, "enemies"], Bool[Array, ""], Bool[Array, ""]
    ]:
        """They walk once they are near, and turn where their ground ends. From above, a falling player kills them."""
        base = self.levels.base[state.level]
        near = state.alive & (jnp.abs(state.enemy - x) < AWAKE)
        ahead = state.enemy + state.heading * (ENEMY_SPEED + ENEMY_SIZE / 2)
        turns = self._height(state.level, ahead) != base
        heading = jnp.where(near & turns, -state.heading, state.heading)
        enemy = jnp.where(near & ~turns, state.enemy + heading * ENEMY_SPEED, state.enemy)
        touching = (
            state.alive & (jnp.abs(enemy - x) < HALF + ENEMY_SIZE / 2) & (y < base + ENEMY_SIZE) & (y + TALL > base)
        )
        crushed = touching & (vy < 0) & (y > base + 0.2)
        return enemy, heading, state.alive & ~crushed, (touching & ~crushed).any(), crushed.any()

    def _seen(self, state: State) -> State:
        frame = self._draw(state)
        return state._replace(frames=jnp.concatenate([state.frames[..., 1:], frame[..., None]], -1))

    def _draw(self, state: State) -> UInt8[Array, "side side"]:
        """The view: `x` to the right, up is the first row. The camera follows the player and stops at the ends."""
        sky, hill, earth, pattern, pipe, foe = LOOKS[self.look]
        left = jnp.clip(state.x - BEHIND, 0, terrain.LENGTH - SIDE / TILE)
        left = jnp.round(left * TILE) / TILE  # whole pixels: textures do not flicker
        x = left + (jnp.arange(SIDE) + 0.5) / TILE  # [columns], in tiles
        y = (SIDE - jnp.arange(SIDE) - 0.5)[:, None] / TILE  # [rows, 1]
        column = jnp.clip(jnp.floor(x).astype(int), 0, terrain.LENGTH - 1)
        height = self.levels.height[state.level, column]
        bricks = (jnp.floor(x * TILE) % TILE == 0) | (jnp.floor(y * TILE) % TILE == 0)
        solid = jnp.where(
            self.levels.kind[state.level, column] == terrain.PIPE, pipe, jnp.where(bricks, pattern, earth)
        )
        hills = jnp.where(height == terrain.PIT, 0, self.levels.hills[state.level, column])
        picture = jnp.where(y < hills, hill, sky)
        picture = jnp.where((column == terrain.FLAG) & (y < 11), POLE, picture)
        picture = jnp.where(y < height, solid, picture)
        half = ENEMY_SIZE / 2
        across = (jnp.abs(x - state.enemy[:, None]) < half) & state.alive[:, None]  # [enemies, columns]
        bottom = self.levels.base[state.level][:, None]
        up = (y[:, 0] >= bottom) & (y[:, 0] < bottom + ENEMY_SIZE)  # [enemies, rows]
        enemies = jnp.einsum("er,ec->rc", up.astype(jnp.float32), across.astype(jnp.float32)) > 0
        picture = jnp.where(enemies, foe, picture)
        player = (jnp.abs(x - state.x) < HALF + 0.1) & (y >= state.y) & (y < state.y + TALL)
        return jnp.where(player, PLAYER, picture).astype(jnp.uint8)
