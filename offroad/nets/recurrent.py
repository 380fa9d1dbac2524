"""Memory for policies that do not see everything."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray


class GRU(eqx.Module):
    """A gated recurrent unit (Cho et al. 2014) over `T` steps of `N` environments."""

    cell: eqx.nn.GRUCell

    def __init__(self, input_size: int, hidden_size: int, key: PRNGKeyArray):
        self.cell = eqx.nn.GRUCell(input_size, hidden_size, key=key)

    def initial(self, num_envs: int) -> Float[Array, "{num_envs} H"]:
        """The memory at the start of an episode."""
        return jnp.zeros((num_envs, self.cell.hidden_size))

    def __call__(
        self, memory: Float[Array, "N H"], x: Float[Array, "T N D"], reset: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "N H"], Float[Array, "T N H"]]:
        """The memory after the last step and each step's output; where `reset[t]`, memory is zeroed before step t."""

        def step(memory, now):
            x, reset = now
            memory = jax.vmap(self.cell)(x, jnp.where(reset[:, None], 0.0, memory))
            return memory, memory

        return jax.lax.scan(step, memory, (x, reset))
