import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.nets.conv import by_matrix_product, by_xla, convolve

KEY = jax.random.key(0)


@pytest.mark.parametrize("ours", [by_matrix_product, by_xla])
@pytest.mark.parametrize(("kernel", "stride"), [(4, 4), (8, 4), (3, 2), (3, 1)])
def test_values_and_gradients_equal_equinox(ours, kernel, stride):
    layer = eqx.nn.Conv2d(3, 5, kernel, stride, key=KEY)
    x = jax.random.normal(KEY, (4, 14, 17, 3))

    def theirs(layer, x):
        return jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(x, -1, -3)), -3, -1)

    (a, grads), (b, expected) = (
        (f(layer, x), jax.jit(jax.grad(lambda m, x, f=f: jnp.sum(jnp.sin(f(m, x))), (0, 1)))(layer, x))
        for f in (ours, theirs)
    )
    np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, expected))):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_leading_axes_do_not_matter():
    layer = eqx.nn.Conv2d(2, 3, 3, 2, use_bias=False, key=KEY)
    x = jax.random.normal(KEY, (2, 3, 8, 9, 2))
    np.testing.assert_allclose(convolve(layer, x)[1, 2], convolve(layer, x[1, 2]), atol=1e-6)


def test_moves_with_its_input():
    layer = eqx.nn.Conv2d(1, 2, 3, 2, key=KEY)
    x = jax.random.normal(KEY, (12, 12, 1))
    moved = jnp.roll(x, 2, axis=0)
    np.testing.assert_allclose(convolve(layer, moved)[1:], convolve(layer, x)[:-1], atol=1e-5)
