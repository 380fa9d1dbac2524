import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad.errors import OffroadError
from offroad.nets.mlp import MLP

KEY = jax.random.key(0)


@pytest.mark.parametrize("init", ["orthogonal", "uniform"])
def test_equals_layer_by_layer_application_with_any_leading_axes(init):
    net = MLP([3, 8, 8, 2], key=KEY, init=init, activation="relu")
    x = jax.random.normal(KEY, (4, 5, 3))

    def one(v):
        for layer in net.layers[:-1]:
            v = jnp.maximum(layer(v), 0)
        return net.layers[-1](v)

    np.testing.assert_allclose(net(x), jax.vmap(jax.vmap(one))(x), atol=1e-6)
    np.testing.assert_allclose(net(x[0, 0]), one(x[0, 0]), atol=1e-6)


def test_orthogonal_gains_and_zero_biases():
    net = MLP([6, 6, 6, 2], key=KEY, final_scale=0.01)
    for layer, gain in zip(net.layers, [2**0.5, 2**0.5, 0.01]):
        w = np.asarray(layer.weight)
        np.testing.assert_allclose(w @ w.T, gain**2 * np.eye(len(w)), atol=1e-5 * gain**2 + 1e-9)
        assert not layer.bias.any()
    assert not np.allclose(net.layers[0].weight, net.layers[1].weight)


def test_uniform_fills_its_interval_in_weights_and_biases():
    net = MLP([400, 300, 5], key=KEY, init="uniform", final_scale=0.1)
    for layer, bound in zip(net.layers, [1 / 400**0.5, 0.1 / 300**0.5]):
        for leaf in (layer.weight, layer.bias):
            assert np.abs(leaf).max() <= bound
        assert np.abs(layer.weight).max() > 0.99 * bound
        assert np.std(layer.weight) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert np.abs(layer.bias).max() > 0.3 * bound


def test_unknown_activation_and_bad_sizes_are_explained():
    with pytest.raises(OffroadError, match="did you mean 'tanh'"):
        MLP([1, 1], key=KEY, activation="tan")
    with pytest.raises(OffroadError, match="input and an output width"):
        MLP([3], key=KEY)


def test_layer_norm_normalises_what_comes_out_of_every_activation():
    net = MLP([3, 8, 8, 2], key=KEY, activation="relu", layer_norm=True)
    x = jax.random.normal(KEY, (4, 5, 3))

    def one(v):
        for layer, norm in zip(net.layers[:-1], net.norms, strict=True):
            v = norm(jnp.maximum(layer(v), 0))
        return net.layers[-1](v)

    np.testing.assert_allclose(net(x), jax.vmap(jax.vmap(one))(x), atol=1e-5)
    np.testing.assert_allclose(net.after_first(x @ net.layers[0].weight.T + net.layers[0].bias), net(x), atol=1e-6)
    far = [float(jnp.abs(n(1e4 * x)).max()) for n in (net, MLP([3, 8, 8, 2], key=KEY, activation="relu"))]
    assert far[0] < 20 < 1000 < far[1]
    assert MLP([3, 8, 2], key=KEY).norms == ()
