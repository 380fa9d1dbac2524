import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP

KEY = jax.random.key(0)


def make(key):
    return MLP([3, 8, 2], key=key, init="uniform")


def test_members_are_the_independent_draws_of_make():
    x = jax.random.normal(KEY, (5, 3))
    out = apply_ensemble(ensemble(make, 4, KEY), x)
    expected = jnp.stack([make(k)(x) for k in jax.random.split(KEY, 4)])
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.shape == (4, 5, 2)
    assert not np.allclose(out[0], out[1])


def test_a_member_learns_from_its_own_output_only():
    members = ensemble(make, 3, KEY)
    x = jax.random.normal(KEY, (5, 3))
    grads = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(apply_ensemble(m, x)[1] ** 2)))(members)
    for leaf in jax.tree.leaves(grads):
        assert jnp.any(leaf[1] != 0)
        assert not jnp.any(leaf[0])
        assert not jnp.any(leaf[2])
