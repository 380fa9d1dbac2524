"""Small environments written in JAX, on which agents learn within seconds."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv

from offroad.envs.functional import JaxVectorEnv


class CartPole(FuncEnv):
    """Barto, Sutton and Anderson's pole with Gymnasium's constants: +1 a step until it falls."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def initial(self, rng, params=None):
        return jax.random.uniform(rng, (4,), minval=-0.05, maxval=0.05)

    def transition(self, state, action, rng, params=None):
        _, v, theta, omega = state
        force = jnp.where(action == 1, 10.0, -10.0)
        push = (force + 0.05 * omega**2 * jnp.sin(theta)) / 1.1
        alpha = (9.8 * jnp.sin(theta) - jnp.cos(theta) * push) / (0.5 * (4 / 3 - 0.1 * jnp.cos(theta) ** 2 / 1.1))
        a = push - 0.05 * alpha * jnp.cos(theta) / 1.1
        return state + 0.02 * jnp.stack([v, a, omega, alpha])

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return jnp.float32(1)

    def terminal(self, state, rng, params=None):
        return (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 0.2095)


class Point(FuncEnv):
    """A point on a line that is pushed to the origin: one action in [-2, 2] m/s, reward minus the distance."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def initial(self, rng, params=None):
        return jax.random.uniform(rng, (1,), minval=-2.0, maxval=2.0)

    def transition(self, state, action, rng, params=None):
        return state + 0.2 * action

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return -jnp.abs(next_state[0])

    def terminal(self, state, rng, params=None):
        return jnp.array(False)


class Recall(FuncEnv):
    """Which of two lights flashed in the first step? The answer counts in the last: only a memory earns more than 0."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def initial(self, rng, params=None):
        return jnp.stack([jnp.int32(0), jax.random.randint(rng, (), 0, 2)])

    def transition(self, state, action, rng, params=None):
        return state.at[0].add(1)

    def observation(self, state, rng, params=None):
        flash = jnp.where(state[0] == 0, 2.0 * state[1] - 1, 0.0)
        return jnp.stack([flash, jnp.where(state[0] == 3, 1.0, 0.0)])

    def reward(self, state, action, next_state, rng, params=None):
        return jnp.where(state[0] == 3, jnp.where(action == state[1], 1.0, -1.0), 0.0)

    def terminal(self, state, rng, params=None):
        return state[0] == 4


def cartpole(num_envs: int = 16) -> JaxVectorEnv:
    return JaxVectorEnv(CartPole(), num_envs, 500)


def point(num_envs: int = 8) -> JaxVectorEnv:
    return JaxVectorEnv(Point(), num_envs, 20)


def recall(num_envs: int = 16) -> JaxVectorEnv:
    return JaxVectorEnv(Recall(), num_envs, 10)
