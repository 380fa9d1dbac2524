import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from offroad.errors import OffroadError
from offroad.nets.encoder import Flat, Pixels

KEY = jax.random.key(0)
SMALL = Pixels(channels=(4, 8), kernels=(4, 3), strides=(2, 1), size=16)


def test_vectors_pass_as_they_are():
    encoder = Flat().build(spaces.Box(-1, 1, (2, 3), np.float64), KEY)
    x = jax.random.normal(KEY, (5, 4, 2, 3))
    assert encoder.size == 6
    np.testing.assert_array_equal(encoder(x), x.reshape(5, 4, 6))


def test_discrete_is_one_hot_from_its_start_and_binary_is_float():
    one_hot = Flat().build(spaces.Discrete(3, start=5), KEY)
    np.testing.assert_array_equal(one_hot(jnp.array([5, 7])), [[1, 0, 0], [0, 0, 1]])
    binary = Flat().build(spaces.MultiBinary(2), KEY)
    np.testing.assert_array_equal(binary(jnp.array([[0, 1]], jnp.int8)), [[0.0, 1.0]])


def test_dict_concatenates_its_parts_in_order():
    space = spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(-1, 1, (2,)), c=spaces.Box(0, 255, (12, 12, 3), np.uint8))
    encoder = Flat(SMALL).build(space, KEY)
    sample = {k: np.stack([s.sample() for _ in range(3)]) for k, s in space.spaces.items()}
    out = encoder(sample)
    assert encoder.size == 2 + 2 + 16
    assert out.shape == (3, 20)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out[:, :2], sample["a"])
    np.testing.assert_array_equal(out[:, 2:4].argmax(-1), sample["b"])


def test_image_layouts_agree_and_leading_axes_do_not_matter():
    images = np.random.default_rng(0).integers(0, 255, (2, 5, 20, 16, 3), np.uint8)
    last = Flat(SMALL).build(spaces.Box(0, 255, (20, 16, 3), np.uint8), KEY)
    first = Flat(SMALL).build(spaces.Box(0, 255, (3, 20, 16), np.uint8), KEY)
    out = eqx.filter_jit(last)(images)
    assert out.shape == (2, 5, 16)
    np.testing.assert_allclose(eqx.filter_jit(first)(np.moveaxis(images, -1, -3)), out, atol=1e-5)
    np.testing.assert_allclose(last(images[1, 3]), out[1, 3], atol=1e-5)


def test_image_encoder_equals_equinox_layers_on_scaled_pixels():
    space = spaces.Box(0, 255, (3, 12, 12), np.uint8)
    encoder = Flat(SMALL).build(space, KEY)
    x = jnp.asarray(space.sample())
    y = x / 255
    for layer in encoder.convolutions:
        y = jax.nn.relu(layer(y))
    expected = jax.nn.relu(encoder.head(jnp.moveaxis(y, 0, -1).reshape(-1)))
    np.testing.assert_allclose(encoder(x), expected, atol=1e-5)


def test_all_parameters_of_an_image_encoder_receive_gradients():
    encoder = Flat(SMALL).build(spaces.Box(0, 255, (12, 12, 3), np.uint8), KEY)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), np.uint8))
    grads = eqx.filter_jit(eqx.filter_grad(lambda e: jnp.sum(e(x) ** 2)))(encoder)
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 6
    assert all(jnp.any(g != 0) for g in leaves)


def test_configs_are_hashable_and_plain():
    assert hash(Flat()) == hash(Flat(Pixels()))
    assert json.loads(json.dumps(dataclasses.asdict(Flat())))["pixels"]["size"] == 512


def test_misfits_are_explained():
    with pytest.raises(OffroadError, match="too small for the kernels"):
        Flat().build(spaces.Box(0, 255, (7, 7, 3), np.uint8), KEY)
    with pytest.raises(OffroadError, match="one of each per layer"):
        Pixels(channels=(1,))
    with pytest.raises(OffroadError, match="which no network here reads"):
        Flat().build(spaces.Text(5), KEY)
