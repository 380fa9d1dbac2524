import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.nets.conv import convolve

KEY = jax.random.key(0)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 4), (8, 4), (3, 2), (3, 1)])
def test_values_and_gradients_equal_equinox(kernel, stride):
    layer = eqx.nn.Conv2d(3, 5, kernel, stride, key=KEY)
    x = jax.random.normal(KEY, (2, 2, 14, 17, 3))

    def ours(layer, x):
        return convolve(layer, x)

    def theirs(layer, x):
        return jnp.moveaxis(jax.vmap(jax.vmap(layer))(jnp.moveaxis(x, -1, -3)), -3, -1)

    np.testing.assert_allclose(ours(layer, x), theirs(layer, x), atol=1e-5)
    grads = [jax.grad(lambda m, x, f=f: jnp.sum(jnp.sin(f(m, x))), (0, 1))(layer, x) for f in (ours, theirs)]
    for a, b in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_moves_with_its_input():
    layer = eqx.nn.Conv2d(1, 2, 3, 2, key=KEY)
    x = jax.random.normal(KEY, (12, 12, 1))
    moved = jnp.roll(x, 2, axis=0)
    np.testing.assert_allclose(convolve(layer, moved)[1:], convolve(layer, x)[:-1], atol=1e-5)
