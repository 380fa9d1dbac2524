"""The listener: Gymnasium's contract, the promises of its documentation, and a safe policy that tells its chances."""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offroad
from offroad.envs import playlist
from offroad.envs.playlist import GENRES, SONGS, Playlist, Popular, play
from offroad.errors import OffroadError

KEY = jax.random.key(0)


def test_gymnasium_accepts_it():
    check_env(gym.make("offroad/Playlist-v0").unwrapped, skip_render_check=True)
    env = offroad.make_vec("offroad/Playlist-v0", 3)
    seen, _ = env.reset(seed=0)
    assert seen.shape == (3, 22)
    assert env.single_action_space == gym.spaces.Discrete(SONGS)
    with pytest.raises(OffroadError, match="songs is 0"):
        offroad.make_vec("offroad/Playlist-v0", 1, songs=0)


def test_a_session_terminates_at_its_end_or_when_the_listener_leaves():
    env = gym.make("offroad/Playlist-v0", songs=7)
    ends = []
    for seed in range(12):
        env.reset(seed=seed)
        for song in range(1, 8):
            seen, reward, terminated, truncated, info = env.step(song % SONGS)
            assert not truncated
            assert reward in (0.0, 1.0)
            assert seen[-1] == pytest.approx(song / 7)
            if terminated:
                break
        assert terminated
        assert info["left"] == (song < 7) or song == 7
        if info["left"]:
            assert reward == 0  # nobody leaves a song that he likes
        ends.append(song)
    assert max(ends) == 7 > min(ends)


def test_boredom_and_trust_move_as_told():
    env, song = Playlist(), jnp.int32(4)  # an album track of genre 1
    state = env.initial(KEY)
    first = env.chances(state)
    after = env.transition(state, song, KEY)
    again = env.chances(after)
    own = np.arange(SONGS) // 3 == 1
    assert (again[own] < first[own]).all()
    np.testing.assert_allclose(again[~own], first[~own])
    assert (after.trust > state.trust) == after.liked
    assert after.likes.sum() + after.skips.sum() == 1
    rested = after
    for _ in range(20):
        rested = env.transition(rested, jnp.int32(15), KEY)
    np.testing.assert_allclose(env.chances(rested)[own], first[own], atol=2e-3)
    fan = state._replace(taste=jnp.full(GENRES, 2.0))
    hater = state._replace(taste=jnp.full(GENRES, -1.0))
    assert int(env.chances(fan).argmax()) % 3 == 2  # deep cuts for fans
    assert int(env.chances(hater).argmax()) % 3 == 0  # hits for others


def test_taste_is_hidden():
    env, state = Playlist(), Playlist().initial(KEY)
    other = state._replace(taste=-state.taste, trust=state.trust / 2, boredom=state.boredom + 1)
    np.testing.assert_array_equal(env.observation(state, KEY), env.observation(other, KEY))


def test_the_safe_policy_tells_its_chances_and_gives_every_song_one():
    seen = jax.random.uniform(KEY, (2, 22))
    chances = Popular().probabilities(seen)
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    assert chances.min() >= 0.1 / SONGS
    keys = jax.random.split(KEY, 4000)
    drawn = jax.vmap(lambda key: Popular().act(seen, key)[0])(keys)
    often = (drawn[..., None] == jnp.arange(SONGS)).mean(0)
    np.testing.assert_allclose(often, chances, atol=0.03)
    np.testing.assert_array_equal(Popular().act(seen)[0], chances.argmax(-1))


class Uniform(eqx.Module):
    def act(self, observation, key=None, memory=()):
        return jax.random.randint(key, observation.shape[:1], 0, SONGS), memory


def test_exploring_at_random_loses_more_listeners_than_playing_it_safe():
    safe, wild = (play(policy, 1000, KEY, sampled=True) for policy in (Popular(), Uniform()))
    assert safe.value > 1.5 * wild.value
    assert wild.lost > 1.5 * safe.lost
    assert 0.3 < safe.lost < 0.5


def test_recorded_sessions_are_consistent():
    met = play(Popular(), 200, KEY, sampled=True)
    lengths = met.heard.sum(1)
    assert (np.diff(met.heard.astype(int), axis=1) <= 0).all()  # a session does not come back
    assert met.reward[~met.heard].sum() == 0
    assert (lengths[~met.left] == playlist.PLAYLIST_SONGS).all()
    chances = np.asarray(Popular().probabilities(met.observation[:, :-1]))
    np.testing.assert_allclose(
        np.take_along_axis(chances, met.action[..., None], -1)[..., 0], met.propensity, rtol=1e-5
    )
    counted = 5 * met.observation[:, -1, : 2 * GENRES].sum(1)
    np.testing.assert_allclose(counted[~met.left], playlist.PLAYLIST_SONGS, rtol=1e-5)
