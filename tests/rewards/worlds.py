"""Small worlds whose novelty can be told by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.envs.functional import JaxVectorEnv

VECTOR = Spaces(spaces.Box(-5.0, 5.0, (3,), np.float32), spaces.Discrete(3), 2)
KEY = jax.random.key(0)


@jax.jit
def pay(reward, steps, mask):
    return reward.pay(steps, mask, KEY)


@jax.jit
def update(reward, steps, mask):
    return reward.update(steps, mask, KEY)


@jax.jit
def appraise(reward, steps, mask):
    return reward.appraise(steps, mask, KEY)


def random_steps(spaces_=VECTOR, time=12, seed=0, ends=0.2):
    """Transitions `[time, N]` without order in them, and a mask that leaves some out."""
    rng, shape = np.random.default_rng(seed), (time, spaces_.num_envs)

    def draw(space):
        if isinstance(space, spaces.Discrete):
            return rng.integers(space.start, space.start + space.n, shape)
        if space.dtype == np.uint8:
            return rng.integers(0, 256, (*shape, *space.shape), dtype=np.uint8)
        return rng.uniform(-1, 1, (*shape, *space.shape)).astype(np.float32)

    steps = Transition(
        draw(spaces_.observation),
        draw(spaces_.action),
        rng.normal(size=shape).astype(np.float32),
        draw(spaces_.observation),
        rng.random(shape) < ends,
        rng.random(shape) < ends / 2,
    )
    return steps, rng.random(shape) < 0.8


class Lock(FuncEnv):
    """A chain of `LENGTH` states: one action leads on, the other back to the start. Only the last state pays."""

    LENGTH = 20
    observation_space = spaces.Discrete(LENGTH)
    action_space = spaces.Discrete(2)

    def initial(self, rng, params=None):
        return jnp.int32(0)

    def transition(self, state, action, rng, params=None):
        forward = action == (state % 3 == 1)
        return jnp.where(forward, jnp.minimum(state + 1, self.LENGTH - 1), 0)

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return (next_state == self.LENGTH - 1).astype(jnp.float32)

    def terminal(self, state, rng, params=None):
        return state == self.LENGTH - 1


def lock(num_envs=16):
    return JaxVectorEnv(Lock(), num_envs, 2 * Lock.LENGTH)
