"""The alternative without a simulator: networks that predict the next state of the whole robot, contacts included.

They see what a step depends on (height, tilt, velocities and rates along the chassis' axes, hip angles and their rates,
inputs) and predict differences of the state along the same axes, so that where the robot stands and heads is no matter.
Shapes: N worlds; a state is position 3, quaternion 4, hips 8, velocity 3, rates 3, hip rates 8, S = 29 numbers.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from offroad.envs.hamr import HamrFull, drive
from offroad.envs.hamr import models as hamr
from offroad.models import FitConfig
from offroad.models.regression import minimise
from offroad.models.residual import networks
from offroad.nets.ensemble import apply_ensemble
from offroad.studies.residual.robots import INTERVAL, Step, inputs, states_of

HIDDEN = (100, 100)  # as in the paper
EPISODE = 1000  # ms


class WholeRobot(eqx.Module):
    """Networks of all differences of the state."""

    networks: Any
    mean: Float[Array, " in"]
    scale: Float[Array, " in"]
    size: Float[Array, " 28"]

    def __call__(self, state: Float[Array, "*batch 29"], u: Float[Array, "*batch 8"]) -> Float[Array, "*batch 29"]:
        x = (features(state, u) - self.mean) / self.scale
        return moved(state, self.size * apply_ensemble(self.networks, jnp.clip(x, -5.0, 5.0)).mean(0))


def features(state: Float[Array, "*batch 29"], u: Float[Array, "*batch 8"]) -> Float[Array, "*batch in"]:
    quaternion = state[..., 3:7]
    up = rotated(conjugate(quaternion), jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), state[..., :3].shape))
    along = rotated(conjugate(quaternion), state[..., 15:18])
    return jnp.concatenate([state[..., 2:3], up, state[..., 7:15], along, state[..., 18:], u], -1)


def moved(state: Float[Array, "*batch 29"], change: Float[Array, "*batch 28"]) -> Float[Array, "*batch 29"]:
    """The state after a change: of place, of heading (a rotation vector), of hips, of velocity, of rates."""
    quaternion = state[..., 3:7]
    turn = change[..., 3:6]
    angle = jnp.sqrt(jnp.sum(turn**2, -1, keepdims=True) + 1e-20)
    twist = jnp.concatenate([jnp.cos(angle / 2), jnp.sin(angle / 2) * turn / angle], -1)
    after = multiplied(quaternion, twist)
    return jnp.concatenate(
        [
            state[..., :3] + rotated(quaternion, change[..., :3]),
            after / jnp.linalg.norm(after, axis=-1, keepdims=True),
            state[..., 7:15] + change[..., 6:14],
            state[..., 15:18] + rotated(quaternion, change[..., 14:17]),
            state[..., 18:] + change[..., 17:],
        ],
        -1,
    )


def difference(here: Float[Array, "*batch 29"], there: Float[Array, "*batch 29"]) -> Float[Array, "*batch 28"]:
    """The change that `moved` undoes, for turns of less than half a revolution."""
    inverse = conjugate(here[..., 3:7])
    twist = multiplied(inverse, there[..., 3:7])
    twist = twist * jnp.where(twist[..., :1] < 0, -1.0, 1.0)
    sine = jnp.linalg.norm(twist[..., 1:], axis=-1, keepdims=True)
    turn = 2 * jnp.arctan2(sine, twist[..., :1]) * twist[..., 1:] / jnp.maximum(sine, 1e-12)
    place = rotated(inverse, there[..., :3] - here[..., :3])
    velocity = rotated(inverse, there[..., 15:18] - here[..., 15:18])
    return jnp.concatenate(
        [place, turn, there[..., 7:15] - here[..., 7:15], velocity, there[..., 18:] - here[..., 18:]], -1
    )


def multiplied(a: Float[Array, "*batch 4"], b: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    scalar, vector, other, also = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    return jnp.concatenate(
        [
            scalar * other - jnp.sum(vector * also, -1, keepdims=True),
            scalar * also + other * vector + jnp.cross(vector, also),
        ],
        -1,
    )


def conjugate(q: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    return q * jnp.array([1.0, -1.0, -1.0, -1.0])


def rotated(q: Float[Array, "*batch 4"], v: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """The vector turned by the quaternion."""
    cross = 2 * jnp.cross(q[..., 1:], v)
    return v + q[..., :1] * cross + jnp.cross(q[..., 1:], cross)


# --- from a log with contact -----------------------------------------------------------------------------------------


def contact_log(seconds: float | int, seed: int) -> tuple[Float[ndarray, "E T 29"], Float[ndarray, "E T 8"]]:
    """States and inputs of the full model on the ground under noise, in episodes of a second."""
    random = np.random.default_rng(seed)
    volts = np.stack([drive.noise(random, EPISODE, ramp=100) for _ in range(max(round(1e3 * seconds / EPISODE), 1))])
    record = HamrFull.log(volts, interval=INTERVAL, in_air=False)
    return _ordered(states_of(record, hamr.simple())), inputs(record)


def fit_whole_robot(
    states: Float[ndarray, "E T 29"], u: Float[ndarray, "E T 8"], config: FitConfig, seed: int
) -> WholeRobot:
    """On single steps, then on windows of the same length and number as the residual model's."""
    here, there, given = (x.reshape(-1, x.shape[-1]) for x in (states[:, :-1], states[:, 1:], u[:, :-1]))
    x = np.asarray(features(jnp.asarray(here, jnp.float32), jnp.asarray(given, jnp.float32)))
    with jax.enable_x64(True):  # differences of positions drown in 32 bits
        change = np.asarray(difference(jnp.asarray(here), jnp.asarray(there)))
    mean, scale, size = x.mean(0), x.std(0) + 1e-6, change.std(0) + 1e-12
    rows = jnp.asarray((x - mean) / scale, jnp.float32), jnp.asarray(change / size, jnp.float32)
    trained, tuned, drawn = jax.random.split(jax.random.key(seed), 3)
    nets = networks(x.shape[-1], HIDDEN, 28, config.members, drawn)
    late = len(x) - len(x) // 10
    nets = minimise(
        lambda net, batch: jnp.mean((net(batch[0]) - batch[1]) ** 2),
        nets, tuple(v[:late] for v in rows), tuple(v[late:] for v in rows),
        updates=config.updates, batch=config.batch, rate=config.rate, key=trained,
    )  # fmt: skip
    found = WholeRobot(nets, *(jnp.asarray(v, jnp.float32) for v in (mean, scale, size)))
    if not config.tuning:
        return found
    episodes, length = u.shape[:2]
    starts = np.linspace(0, length - config.horizon - 2, max(config.windows // episodes, 1)).astype(int)
    index = starts[:, None] + np.arange(config.horizon + 1)
    windows = tuple(
        jnp.asarray(v[:, index].reshape(-1, *index.shape[1:], v.shape[-1]), jnp.float32) for v in (states, u)
    )
    spread = jnp.asarray(states.std((0, 1)), jnp.float32).at[:2].set(1.0) + 1e-6  # mm, along the ground

    def loss(net: Any, batch: Any) -> Float[Array, ""]:
        alone = eqx.tree_at(lambda m: m.networks, found, jax.tree.map(lambda w: w[None], net))
        true, given = (jnp.swapaxes(v, 0, 1) for v in batch)

        def step(state: Array, now: Any) -> tuple[Array, Array]:
            state = alone(state, now[1])
            return state, jnp.mean(jnp.minimum(((state - now[0]) / spread) ** 2, 100.0))

        return jnp.log(jax.lax.scan(step, true[0], (true[1:], given[:-1]))[1].mean())

    late = len(windows[0]) - len(windows[0]) // 10
    nets = minimise(
        loss, nets, tuple(v[:late] for v in windows), tuple(v[late:] for v in windows),
        updates=config.tuning, batch=config.tuning_batch, rate=config.tuning_rate, key=tuned,
    )  # fmt: skip
    return eqx.tree_at(lambda m: m.networks, found, nets)


def stepped(model: WholeRobot) -> Step:
    """The network in the place of the simple model; a robot that leaves all measure becomes no number."""
    told = eqx.filter_jit(model)

    def step(state: ndarray, u: ndarray) -> ndarray:
        after = np.array(told(jnp.asarray(_ordered(state), jnp.float32), jnp.asarray(u, jnp.float32)), float)
        after[np.abs(after[:, 2:]).max(1) > 1e3] = np.nan
        return np.concatenate([state[:, :1] + INTERVAL, after[:, :7], _swapped(after[:, 7:15]), after[:, 15:21],
                               _swapped(after[:, 21:])], 1)  # fmt: skip

    return step


def _ordered(state: Float[ndarray, "*batch S"]) -> Float[ndarray, "*batch 29"]:
    """Without the clock, hips as in the study: swing before lift."""
    parts = state[..., 1:8], _swapped(state[..., 8:16]), state[..., 16:22], _swapped(state[..., 22:30])
    return np.concatenate(parts, -1)


def _swapped(hips: Float[ndarray, "*batch 8"]) -> Float[ndarray, "*batch 8"]:
    """Lift and swing, as the joints of the simple model come, the other way round."""
    return hips.reshape(*hips.shape[:-1], 4, 2)[..., ::-1].reshape(hips.shape)
