"""The platformer: what jumps reach, what kills, and that every level can be finished."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offroad
from offroad.envs.platformer import GROUPS, Platformer, levels, platformer
from offroad.errors import OffroadError

KEY = jax.random.key(0)
RIGHT, JUMP, RIGHT_JUMP = 1, 3, 4


@pytest.fixture(scope="module")
def game():
    """All training levels without enemies, one after the other."""
    game = Platformer("train", enemies=False)
    return game, jax.jit(jax.vmap(lambda state, action: game.transition(state, action, KEY)))


def at(game, **fields):
    """One state for each level, changed."""
    number = len(game.seeds)
    state = jax.vmap(game.initial)(jax.random.split(KEY, number))._replace(level=jnp.arange(number))
    return state._replace(
        **{name: jnp.full(number, value, getattr(state, name).dtype) for name, value in fields.items()}
    )


def heights(transition, state, held):
    """How far the feet rise when the jump key is held for so many decisions."""
    highest = np.zeros(len(state.x))
    for step in range(8):
        state = transition(state, jnp.full(len(state.x), JUMP if step < held else 0))
        highest = np.maximum(highest, state.y)
    return highest[0] - 3, state


def test_holding_the_key_jumps_higher(game):
    game, transition = game
    low, after = heights(transition, at(game), 1)
    high, _ = heights(transition, at(game), 4)
    assert 2.0 < low < 2.4  # a pipe of 2 tiles, not one of 3
    assert 3.2 < high < 3.8
    assert bool(after.grounded.all())
    np.testing.assert_array_equal(after.x, levels.START)


def test_one_press_is_one_jump(game):
    game, transition = game
    state = at(game)
    for _ in range(12):
        state = transition(state, jnp.full(len(state.x), JUMP))
    assert bool(state.grounded.all())  # landed, still holding
    state = transition(transition(state, jnp.zeros(len(state.x), int)), jnp.full(len(state.x), JUMP))
    assert not bool(state.grounded.any())


def bot(game, state):
    """Runs, and holds the jump key from in front of whatever is in the way until it starts to fall."""
    ground = np.asarray(game.levels.height)
    actions = []
    for level, (x, y, vy, grounded, held) in enumerate(
        zip(*map(np.asarray, (state.x, state.y, state.vy, state.grounded, state.held)))
    ):
        ahead = ground[level, np.clip(np.arange(int(x + 0.3), int(x + 1.9) + 1), 0, levels.LENGTH - 1)]
        obstacle = (ahead > y + 0.01).any() or (ahead < 0).any()
        actions.append(RIGHT_JUMP if (obstacle and not (grounded and held)) or vy > 0 else RIGHT)
    return jnp.array(actions)


def test_every_level_can_be_finished(game):
    game, transition = game
    state, ended = at(game), np.zeros(len(game.seeds), bool)
    assert len(ended) == 16
    for _ in range(offroad.envs.PLATFORMER_DECISIONS):
        state = transition(state, bot(game, state))
        ended = np.asarray(jax.vmap(game.terminal, (0, None))(state, KEY))
        if ended.all():
            break
    won = np.asarray(jax.vmap(game._won)(state))
    assert won.mean() > 0.8, np.asarray(state.furthest)
    np.testing.assert_array_equal(np.asarray(jax.vmap(game.state_info)(state)["success"]), won)


def test_walls_stop_and_pits_kill(game):
    game, transition = game
    ground = np.asarray(game.levels.height)
    state = at(game)
    for _ in range(60):
        state = transition(state, jnp.full(len(state.x), RIGHT))
    # Nobody jumps, so nobody gets past the first pit or the first step up.
    for level, (x, y, dead) in enumerate(zip(*map(np.asarray, (state.x, state.y, state.dead)))):
        way = ground[level, 4:]
        up = np.flatnonzero(np.diff(way) > 0)
        pit = np.flatnonzero(way < 0)
        first_pit = pit[0] if len(pit) else 999
        rises = up[0] if len(up) and up[0] < first_pit else 999
        assert dead == (first_pit < rises), level
        if not dead:
            assert x == pytest.approx(4 + rises + 1 - platformer.HALF, abs=0.01)
            assert y == ground[level, int(x)]


def one_enemy(x, base=3):
    """Level 0 with all ground flat and one enemy."""
    game = Platformer(0)
    height = jnp.full_like(game.levels.height, base)
    enemies = jnp.full_like(game.levels.enemies, 1e6).at[0, 0].set(x)
    game.levels = game.levels._replace(height=height, enemies=enemies, base=jnp.full_like(game.levels.base, base))
    return game, jax.jit(lambda state, action: game.transition(state, action, KEY))


def test_enemies_kill_from_the_side_and_die_from_above():
    game, transition = one_enemy(7.0)
    state = game.initial(KEY)
    walking = state
    for _ in range(8):
        walking = transition(walking, jnp.int32(RIGHT))
    assert bool(walking.dead)
    assert float(game.reward(state, jnp.int32(RIGHT), walking, KEY)) == 0
    above = state._replace(x=jnp.float32(6.9), y=jnp.float32(5), grounded=jnp.array(False))
    above = transition(transition(above, jnp.int32(0)), jnp.int32(0))
    assert not bool(above.dead)
    assert not bool(above.alive[0])
    assert bool(above.alive[1:].all())
    assert int(above.frames[..., -1].min()) > platformer.LOOKS["day"][-1]  # and is not seen any more


def test_the_flag_pays_one():
    game, transition = one_enemy(1e6)
    state = game.initial(KEY)._replace(x=jnp.float32(levels.FLAG - 0.5))
    won = state
    for _ in range(6):
        won = transition(won, jnp.int32(RIGHT))
    assert bool(game.terminal(won, KEY))
    assert float(game.reward(state, jnp.int32(RIGHT), won, KEY)) == 1


def test_levels_are_those_of_their_seeds():
    one, many = levels.generate((5,), True), levels.generate((3, 5), True)
    for a, b in zip(one, many):
        np.testing.assert_array_equal(a[0], b[1])
        assert (b[0] != b[1]).any()
    assert not set(GROUPS["train"]) & set(GROUPS["test"])
    env = offroad.make_vec("offroad/Platformer-v0", 8, levels="test")
    _, info = env.reset(seed=0)
    assert set(info["level"]) <= set(GROUPS["test"])
    assert len(set(info["level"])) > 2


def test_looks_differ_and_the_picture_scrolls():
    day, night = Platformer(1), Platformer(1, look="night")
    state = day.initial(KEY)
    assert float(jnp.mean(day._draw(state))) > 2 * float(jnp.mean(night._draw(state)))
    later = state._replace(x=jnp.float32(20.0))
    moved = state._replace(x=jnp.float32(20 + 1 / platformer.TILE))
    a, b = (np.asarray(day._draw(s)) for s in (later, moved))
    np.testing.assert_array_equal(a[:14, 1:], b[:14, :-1])
    np.testing.assert_array_equal(state.frames[..., :3], 0)


def test_single_environment_passes_gymnasiums_checks():
    env = gym.make("offroad/Platformer-v0", levels=3)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": "trains"}, "did you mean 'train'"),
        ({"look": "dusk"}, "look 'dusk'"),
        ({"levels": ()}, "at least one"),
    ],
)
def test_bad_options_have_clear_errors(options, message):
    with pytest.raises(OffroadError, match=message):
        Platformer(**options)
