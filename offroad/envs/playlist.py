"""A listener and a playlist: what to play next for somebody whose taste is hidden and who leaves when disappointed.

A simulator of our own, deliberately small: it stands for the talk's example of costly exploration, not for a service.
Its constants are ours: chosen by hand, fitted to no data, and unchanged since before any learner of a study ran on it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import AutoresetMode
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from offroad.envs import PLAYLIST_SONGS
from offroad.envs.functional import JaxEnv, JaxVectorEnv
from offroad.errors import OffroadError

GENRES = 6
KINDS = ("hit", "album track", "deep cut")
SONGS = GENRES * len(KINDS)
"""Action `3 * genre + kind`."""
APPEAL = (1.5, 0.4, -1.0)  # of each kind to everybody, as a logit of listening to the end
DEPTH = (0.6, 1.3, 3.0)  # how much the listener's taste for the genre matters
WEARS, RECOVERS = 0.4, 0.7  # boredom with a genre: added by a song of it, kept from song to song
PLEASED, DISAPPOINTED = 0.12, 0.2  # how far trust moves towards 1 or 0
IMPATIENCE = 0.6  # how likely a listener without any trust leaves after skipping a song


class Listener(NamedTuple):
    """One session. `likes` and `skips` count what was heard to the end and not, by genre."""

    taste: Float[Array, "genres"]  # logits; hidden
    boredom: Float[Array, "genres"]  # logits; hidden
    trust: Float[Array, ""]  # in [0, 1]; hidden
    likes: Float[Array, "genres"]
    skips: Float[Array, "genres"]
    recent: Float[Array, "genres"]  # how much of each genre was played lately: decays like boredom
    last: Float[Array, "kinds"]  # the last song's kind: +1 heard, -1 skipped
    liked: Bool[Array, ""]
    left: Bool[Array, ""]
    played: Int[Array, ""]


class Playlist(FuncEnv):
    """Playlists as pure functions of one listener; `JaxVectorEnv` makes a Gymnasium environment of it.

    A listener hears a song to the end with probability sigmoid(appeal of its kind + depth of its kind * taste for its
    genre - boredom with its genre), or else skips it and then leaves with probability 0.6 * (1 - trust)^3. Trust falls
    with every skip and grows with every song heard.

    Observation, 22 numbers: for each of six genres the songs heard and skipped in this session, divided by 5, and how
    much of it was played lately; for each of three kinds whether it was the last song's, and +1 if that was heard, -1
    if skipped; the share of the session that is over. Action: one of 18 songs, `3 * genre + kind`; the kinds are hits,
    which please most people a little, album tracks, and deep cuts, which please those with a taste for the genre.
    Reward: 1 for a song heard to the end. A session terminates when the listener leaves (`info["left"]`, a lost
    session) or after `songs` songs; as the observation tells how many were played, values need no discount.

    Args:
        songs: in a whole session.
    """

    def __init__(self, songs: int = PLAYLIST_SONGS):
        super().__init__()
        if songs < 1:
            raise OffroadError(f"songs is {songs}; expected at least 1")
        self.songs = songs
        self.observation_space = spaces.Box(-np.inf, np.inf, (3 * GENRES + len(KINDS) + 1,), np.float32)
        self.action_space = spaces.Discrete(SONGS)

    def initial(self, rng: PRNGKeyArray, params: None = None) -> Listener:
        taste_key, trust_key = jax.random.split(rng)
        none = jnp.zeros(GENRES)
        return Listener(
            taste=jax.random.normal(taste_key, (GENRES,)),
            boredom=none,
            trust=jax.random.uniform(trust_key, minval=0.5, maxval=0.9),
            likes=none,
            skips=none,
            recent=none,
            last=jnp.zeros(len(KINDS)),
            liked=jnp.array(False),
            left=jnp.array(False),
            played=jnp.zeros((), jnp.int32),
        )

    def chances(self, state: Listener) -> Float[Array, "songs"]:
        """How likely each song is heard to the end now."""
        taste = jnp.asarray(DEPTH) * state.taste[:, None] - state.boredom[:, None]
        return jax.nn.sigmoid(jnp.asarray(APPEAL) + taste).reshape(-1)

    def transition(self, state: Listener, action: Int[Array, ""], rng: PRNGKeyArray, params: None = None) -> Listener:
        hear_key, leave_key = jax.random.split(rng)
        genre = jax.nn.one_hot(action // len(KINDS), GENRES)
        kind = jax.nn.one_hot(action % len(KINDS), len(KINDS))
        liked = jax.random.bernoulli(hear_key, self.chances(state)[action])
        trust = state.trust + jnp.where(liked, PLEASED * (1 - state.trust), -DISAPPOINTED * state.trust)
        return Listener(
            taste=state.taste,
            boredom=RECOVERS * state.boredom + WEARS * genre,
            trust=trust,
            likes=state.likes + liked * genre,
            skips=state.skips + ~liked * genre,
            recent=RECOVERS * state.recent + genre,
            last=jnp.where(liked, 1.0, -1.0) * kind,
            liked=liked,
            left=~liked & jax.random.bernoulli(leave_key, IMPATIENCE * (1 - trust) ** 3),
            played=state.played + 1,
        )

    def observation(self, state: Listener, rng: PRNGKeyArray, params: None = None) -> Float[Array, "seen"]:
        over = (state.played / self.songs)[None]
        return jnp.concatenate([state.likes / 5, state.skips / 5, state.recent, state.last, over])

    def reward(
        self,
        state: Listener,
        action: Int[Array, ""],
        next_state: Listener,
        rng: PRNGKeyArray,
        params: None = None,
    ) -> Float[Array, ""]:
        return next_state.liked.astype(jnp.float32)

    def terminal(self, state: Listener, rng: PRNGKeyArray, params: None = None) -> Bool[Array, ""]:
        return state.left | (state.played >= self.songs)

    def state_info(self, state: Listener, params: None = None) -> dict[str, Array]:
        return {"trust": state.trust, "left": state.left.astype(jnp.float32)}

    def transition_info(
        self, state: Listener, action: Int[Array, ""], next_state: Listener, params: None = None
    ) -> dict[str, Array]:
        return self.state_info(next_state)


class Popular(eqx.Module):
    """The safe policy whose log we learn from: mostly hits, seldom the genre just played, and a few songs at random.

    Called as an agent is, `action, memory = policy.act(observation, key)`; `probabilities` are its propensities.
    """

    explore: float = 0.1  # share of songs drawn uniformly from all

    def probabilities(self, observation: Float[Any, "*batch seen"]) -> Float[Array, "*batch songs"]:
        recent = observation[..., 2 * GENRES : 3 * GENRES, None]
        logits = jnp.asarray([5.0, 2.5, 0.0]) - 4.0 * recent
        chosen = jax.nn.softmax(logits.reshape(*logits.shape[:-2], SONGS), axis=-1)
        return (1 - self.explore) * chosen + self.explore / SONGS

    def act(self, observation: Float[Any, "batch seen"], key: Any = None, memory: Any = ()) -> tuple[Any, Any]:
        """Songs; without a key always the most likely one."""
        logits = jnp.log(self.probabilities(observation))
        return (jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)), memory

    def initial_memory(self, num_envs: int) -> Any:
        return ()


class Sessions(NamedTuple):
    """What `N` listeners heard, padded to `T` songs: `heard` is False after a session's end."""

    observation: Float[np.ndarray, "N after seen"]  # T + 1 of them: before each song and after the last
    action: Int[np.ndarray, "N T"]
    propensity: Float[np.ndarray, "N T"]  # of the action, where the policy has `probabilities`, else 1
    reward: Float[np.ndarray, "N T"]
    heard: Bool[np.ndarray, "N T"]
    left: Bool[np.ndarray, "N"]  # the listener left before the end: a lost session

    @property
    def value(self) -> float:
        """Songs heard to the end in a session."""
        return float(self.reward.sum(1).mean())

    @property
    def lost(self) -> float:
        """The share of sessions that the listener ended."""
        return float(self.left.mean())


def play(
    policy: Any, sessions: int, key: PRNGKeyArray, *, sampled: bool = False, env: Playlist | None = None
) -> Sessions:
    """`sessions` whole sessions side by side, of a policy with `act(observation, key)`; `sampled` gives it a key."""
    arrays = _play(policy, sessions, key, sampled, env or Playlist())
    return Sessions(*(np.asarray(x) for x in arrays))


@eqx.filter_jit
def _play(policy: Any, sessions: int, key: PRNGKeyArray, sampled: bool, env: Playlist) -> tuple[Array, ...]:
    start_key, key = jax.random.split(key)
    observe = jax.vmap(lambda state: env.observation(state, key))

    def step(carry: Any, key: PRNGKeyArray) -> Any:
        state, on = carry
        act_key, move_key = jax.random.split(key)
        seen = observe(state)
        action, _ = policy.act(seen, act_key if sampled else None)
        propensity = jnp.ones(sessions)
        if sampled and hasattr(policy, "probabilities"):
            propensity = jnp.take_along_axis(policy.probabilities(seen), action[:, None], -1)[:, 0]
        state = jax.vmap(env.transition)(state, action, jax.random.split(move_key, sessions))
        reward = jnp.where(on, state.liked, 0.0)
        after = on & ~jax.vmap(lambda state: env.terminal(state, key))(state)
        return (state, after), (seen, action, propensity, reward, on, on & state.left)

    first = jax.vmap(env.initial)(jax.random.split(start_key, sessions))
    carry = (first, jnp.ones(sessions, bool))
    (state, _), (seen, *rest, left) = jax.lax.scan(step, carry, jax.random.split(key, env.songs))
    seen = jnp.concatenate([seen, observe(state)[None]])
    return *(jnp.swapaxes(x, 0, 1) for x in (seen, *rest)), jnp.any(left, 0)


def make(songs: int = PLAYLIST_SONGS) -> JaxEnv:
    """A single listener."""
    return JaxEnv(Playlist(songs))


def make_vec(
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    songs: int = PLAYLIST_SONGS,
) -> JaxVectorEnv:
    """A compiled batch of listeners."""
    return JaxVectorEnv(Playlist(songs), num_envs, max_episode_steps or songs, autoreset_mode)
