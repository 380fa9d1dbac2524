"""A policy over primitives as a policy of the environment."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import Agent
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout, Transition
from offroad.errors import OffroadError

if TYPE_CHECKING:
    from offroad.skills.primitives import Primitives


class PrimitivePolicy(Agent):
    """Asks `agent` for a latent action every `length` steps and plays its primitive until then; made by
    `Primitives.wrap`.

    The memory is the present latent action, how many steps it has been played, and what `agent` remembers. `update`
    gives relabelled data to `agent`, whose configuration is also this one's; the primitives stay as they are.
    """

    primitives: "Primitives"
    agent: Agent
    spaces: Spaces = eqx.field(static=True)
    config: Any = eqx.field(static=True)

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, spaces: Spaces, config: Any, key: Key[Array, ""], *, primitives: "Primitives", agent: type[Agent]
    ) -> "PrimitivePolicy":
        """`primitives` under a new agent of a class and its `config`."""
        if spaces.observation != primitives.spaces.observation or spaces.action != primitives.spaces.action:
            raise OffroadError(
                "the primitives were learnt in other spaces than these; create them for this environment"
            )
        return primitives.wrap(agent.create(primitives.latent_spaces, config, key))

    @classmethod
    def of(cls, primitives: "Primitives", agent: Agent) -> "PrimitivePolicy":
        expected, found = primitives.latent_spaces, agent.spaces
        if (found.observation, found.action) != (expected.observation, expected.action):
            raise OffroadError(
                f"the agent acts in {found.action} on {found.observation}, expected {expected.action} on "
                f"{expected.observation}; create it with primitives.latent_spaces"
            )
        return cls(primitives=primitives, agent=agent, spaces=primitives.spaces, config=agent.config)

    def initial_memory(self, num_envs: int) -> PyTree[Any]:
        latent = jnp.zeros((num_envs, self.primitives.config.latents))
        return latent, jnp.zeros(num_envs, jnp.int32), self.agent.initial_memory(num_envs)

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        latent, age, inner = memory
        chosen, thought = self.agent.act(observation, key, inner)
        latent, inner = jax.tree.map(
            lambda new, old: jnp.where(age.reshape(-1, *(1,) * (old.ndim - 1)) == 0, new, old),
            (chosen, thought),
            (latent, inner),
        )
        age = jnp.where(age + 1 == self.primitives.config.length, 0, age + 1)
        return self.primitives.act(observation, latent), (latent, age, inner)

    def update(
        self, batch: Transition | Rollout, key: Key[Array, ""]
    ) -> tuple["PrimitivePolicy", dict[str, Float[Array, ""]]]:
        agent, metrics = self.agent.update(batch, key)
        return replace(self, agent=agent), metrics
