"""Products of factors: they compute what their collapsed layers compute, and leave nothing behind."""

import math

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offroad import train
from offroad.agents import BC, DQN, SAC, TD3BC, BCConfig, DQNConfig, SACConfig, TD3BCConfig
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.export import export_policy
from offroad.nets.conv import by_matrix_product, by_xla
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP
from offroad.nets.overparameterize import Product, collapse, expand, schatten
from offroad.train.checkpoint import load, save

KEY = jax.random.key(0)
SPACES = Spaces(gym.spaces.Box(-1, 1, (6,)), gym.spaces.Box(-1, 1, (2,)), 4)

LAYERS = {
    "linear": (lambda dtype: eqx.nn.Linear(7, 5, dtype=dtype, key=KEY), (7,)),
    "square": (lambda dtype: eqx.nn.Linear(6, 6, use_bias=False, dtype=dtype, key=KEY), (6,)),
    "conv": (lambda dtype: eqx.nn.Conv2d(4, 6, 3, dtype=dtype, key=KEY), (4, 9, 8)),
    "conv with padding, stride, groups, dilation": (
        lambda dtype: eqx.nn.Conv2d(4, 6, 3, 2, padding=2, dilation=2, groups=2, dtype=dtype, key=KEY),
        (4, 9, 8),
    ),
    "conv with circular padding": (
        lambda dtype: eqx.nn.Conv1d(4, 6, 5, padding=2, padding_mode="CIRCULAR", dtype=dtype, key=KEY),
        (4, 9),
    ),
    "transposed conv with padding, stride, groups": (
        lambda dtype: eqx.nn.ConvTranspose2d(4, 6, 3, 2, padding=1, groups=2, dtype=dtype, key=KEY),
        (4, 5, 6),
    ),
}


def chain(layer, x):
    """What a stack of layers without activations would do: the first as `layer`, the others on channels alone."""
    product = layer.weight
    first = eqx.tree_at(lambda m: m.weight, layer, product.factors[0].reshape(-1, *product.kernel[1:]))
    if isinstance(layer, eqx.nn.Conv | eqx.nn.ConvTranspose):
        # Its own channel count fits `width=1` only; its bias belongs to the last factor.
        plain = eqx.tree_at(lambda m: m.bias, first, jnp.zeros_like(first.bias))
        y = plain(x)
        for factor in product.factors[1:]:
            groups, outputs, inputs = factor.shape
            matrix = factor + jnp.eye(inputs) if product.residual and outputs == inputs else factor
            y = jnp.einsum("goi,gi...->go...", matrix, y.reshape(groups, inputs, *y.shape[1:]), precision="highest")
            y = y.reshape(-1, *y.shape[2:])
        return y + layer.bias
    y = jnp.matmul(first.weight, x, precision="highest")
    for factor in product.factors[1:]:
        same = product.residual and factor.shape[1] == factor.shape[2]
        y = jnp.matmul(factor[0] + jnp.eye(len(y)) if same else factor[0], y, precision="highest")
    return y if layer.bias is None else y + layer.bias


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_collapse_is_exact(kind, depth, residual):
    for dtype, bound in ((jnp.float32, 5e-6), (jnp.float64, 1e-13)):
        with jax.enable_x64(dtype == jnp.float64):
            make, shape = LAYERS[kind]
            plain = make(dtype)
            layer = expand(plain, depth, key=KEY, residual=residual)
            x = jax.random.normal(KEY, shape, dtype)
            expected = np.asarray(chain(layer, x))
            found = np.asarray(collapse(layer)(x))
            assert found.dtype == dtype
            assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("kind", LAYERS)
def test_collapse_gives_the_same_classes_and_shapes_back(kind):
    plain = LAYERS[kind][0](jnp.float32)
    layer = expand(plain, 3, key=KEY, width=2.0)
    assert isinstance(layer.weight, Product)
    same_form(collapse(layer), plain)


def same_form(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(x)] == [(a.shape, a.dtype) for a in jax.tree.leaves(y)]


def test_half_precision_multiplies_in_single():
    layer = expand(eqx.nn.Linear(64, 64, dtype=jnp.bfloat16, key=KEY), 4, key=KEY)
    exact = np.linalg.multi_dot([np.asarray(f[0], float) for f in reversed(layer.weight.factors)])
    found = layer.weight.value()
    assert found.dtype == jnp.bfloat16
    # One rounding to 8 bits at the end, not one for each factor.
    assert np.all(np.abs(np.asarray(found, float) - exact) <= 2.0**-8 * np.abs(exact) + 1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv with padding, stride, groups, dilation"])
def test_gradient_through_collapse_is_that_of_the_chain(kind):
    make, shape = LAYERS[kind]
    layer, x = expand(make(jnp.float32), 3, key=KEY), jax.random.normal(KEY, shape)
    ours = eqx.filter_grad(lambda m: jnp.sum(jnp.sin(collapse(m)(x))))(layer)
    theirs = eqx.filter_grad(lambda m: jnp.sum(jnp.sin(chain(m, x))))(layer)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_products_work_where_the_library_and_equinox_read_weights():
    mlp = expand(MLP((5, 8, 8, 3), key=KEY), 3, key=KEY)
    x = jax.random.normal(KEY, (4, 5))
    np.testing.assert_allclose(mlp(x), collapse(mlp)(x), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(mlp.layers[0])(x), jax.vmap(collapse(mlp).layers[0])(x), atol=1e-6)
    conv, image = expand(eqx.nn.Conv2d(3, 8, 4, 2, key=KEY), 2, key=KEY), jax.random.normal(KEY, (2, 9, 9, 3))
    expected = by_xla(collapse(conv), image)
    np.testing.assert_allclose(by_matrix_product(conv, image), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(by_xla)(conv, image), expected, atol=1e-5)
    cell = expand(eqx.nn.GRUCell(4, 6, key=KEY), 2, key=KEY)
    assert cell.weight_ih.factors[0].shape == (3, 6, 4)  # each gate by itself
    state = cell(jnp.ones(4), jnp.ones(6))
    np.testing.assert_allclose(state, collapse(cell)(jnp.ones(4), jnp.ones(6)), atol=1e-6)


def test_members_of_an_ensemble_have_factors_of_their_own():
    members = ensemble(lambda key: MLP((3, 4, 2), key=key), 5, KEY)
    grown, x = expand(members, 2, key=KEY), jnp.ones((6, 3))
    assert grown.layers[0].weight.shape == (5, 4, 3)
    np.testing.assert_allclose(apply_ensemble(grown, x), apply_ensemble(collapse(grown), x), atol=1e-6)
    assert np.asarray(collapse(grown).layers[0].weight).std(0).min() > 0


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (48, 48)])
def test_products_begin_with_the_variance_of_what_they_replace(shape, residual):
    plain = eqx.nn.Linear(shape[1], shape[0], use_bias=False, key=KEY)
    keys = jax.random.split(KEY, 100)
    x = jax.random.normal(KEY, (64, shape[1]))
    outputs = [x @ expand(plain, 4, key=k, residual=residual).weight.T for k in keys]
    ratio = float(np.mean(np.square(outputs)) / np.mean(np.square(x @ plain.weight.T)))
    # A product's scale varies by some 4 / width from draw to draw: 5 % here for the mean of 100 draws.
    assert ratio == pytest.approx(1, abs=0.15)


def test_residual_factors_keep_more_rank():
    def rank(residual):
        layers = [expand(eqx.nn.Linear(32, 32, key=KEY), 8, key=k, residual=residual) for k in jax.random.split(KEY, 8)]
        s = np.linalg.svd([m.weight.value() for m in layers], compute_uv=False)
        p = s / s.sum(-1, keepdims=True)
        return -np.sum(p * np.log(p), -1).mean()

    assert rank(True) > rank(False) + 0.3


def test_a_narrow_width_bounds_the_rank():
    layer = expand(eqx.nn.Linear(20, 16, key=KEY), 2, key=KEY, width=0.25)
    assert np.linalg.matrix_rank(layer.weight.value(), tol=1e-5) == 4


# --- agents


def batch(n, discrete=False):
    random = np.random.default_rng(0)
    observation, following = random.normal(size=(2, n, 6)).astype(np.float32)
    action = random.integers(0, 3, n) if discrete else random.uniform(-1, 1, (n, 2)).astype(np.float32)
    zeros = np.zeros(n, bool)
    return Transition(observation, action, np.ones(n, np.float32), following, zeros, zeros)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BC, BCConfig(hidden=(16,))),
        (SAC, SACConfig(hidden=(16, 16))),
        (TD3BC, TD3BCConfig(hidden=(16,))),
        (DQN, DQNConfig(hidden=(16,))),
    ],
)
def test_an_expanded_agent_learns_and_collapses(kind, config):
    spaces = Spaces(SPACES.observation, gym.spaces.Discrete(3), 4) if kind is DQN else SPACES
    plain = kind.create(spaces, config, KEY)
    agent = expand(plain, 3, key=KEY, where=lambda path: "critic" not in path)
    data = jax.tree.map(jnp.asarray, batch(32, discrete=kind is DQN))
    update = jax.jit(lambda agent, key: agent.update(data, key))
    learnt, metrics = agent, {}
    for i in range(3):
        learnt, metrics = update(learnt, jax.random.fold_in(KEY, i))
    assert all(np.isfinite(x) for x in metrics.values())
    assert jax.tree.structure(learnt) == jax.tree.structure(agent)
    small = collapse(learnt)
    same_form(small, plain)
    x = jnp.asarray(data.observation)
    np.testing.assert_allclose(learnt.act(x)[0], small.act(x)[0], atol=1e-5)
    assert np.isfinite(update(small, KEY)[1].popitem()[1])  # and learns on


def test_targets_become_the_same_product():
    agent = expand(
        TD3BC.create(SPACES, TD3BCConfig(hidden=(16,)), KEY), 2, key=KEY, where=lambda p: p.startswith(".policy")
    )
    first, target = agent.policy.head.layers[0].weight, agent.target_policy.head.layers[0].weight
    assert isinstance(target, Product)
    np.testing.assert_array_equal(first.value(), target.value())
    assert not isinstance(agent.critics.head.layers[0].weight, Product)


def test_collapsing_resets_the_moments_of_factors_only():
    agent = expand(SAC.create(SPACES, SACConfig(hidden=(16,)), KEY), 2, key=KEY, where=lambda p: ".actor" in p)
    agent = agent.update(jax.tree.map(jnp.asarray, batch(8)), KEY)[0]
    before, after = agent.optimiser_states, collapse(agent).optimiser_states
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(after[0]))
    for a, b in zip(jax.tree.leaves(before[1:]), jax.tree.leaves(after[1:]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_exporting_leaves_no_factor_behind(tmp_path):
    agent = expand(BC.create(SPACES, BCConfig(hidden=(16,)), KEY), 3, key=KEY)
    for name, exported in (("expanded", agent), ("collapsed", collapse(agent))):
        export_policy(exported, tmp_path / name)
    with np.load(tmp_path / "expanded" / "policy.npz") as a, np.load(tmp_path / "collapsed" / "policy.npz") as b:
        assert [a[k].shape for k in a.files] == [b[k].shape for k in b.files]
        for k in a.files:
            np.testing.assert_array_equal(a[k], b[k])


def test_checkpoints_hold_expanded_agents(tmp_path):
    agent = expand(BC.create(SPACES, BCConfig(hidden=(8,)), KEY), 2, key=KEY)
    save(tmp_path / "step_1", {"agent": agent})
    like = expand(BC.create(SPACES, BCConfig(hidden=(8,)), jax.random.key(1)), 2, key=jax.random.key(1))
    found = load(tmp_path / "step_1").restore("agent", like)
    for a, b in zip(jax.tree.leaves(agent), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


# --- the explicit alternative


def test_schatten_norms():
    layer = eqx.nn.Linear(5, 4, key=KEY)
    s = np.linalg.svd(layer.weight, compute_uv=False)
    assert schatten(layer) == pytest.approx(s.sum(), rel=1e-5)
    assert schatten(layer, 2) == pytest.approx(float(jnp.sum(layer.weight**2)), rel=1e-5)
    assert schatten(layer, 0.5) == pytest.approx(np.sqrt(s).sum(), rel=1e-4)
    u, _, v = np.linalg.svd(layer.weight, full_matrices=False)
    np.testing.assert_allclose(jax.grad(schatten)(layer).weight, u @ v, atol=1e-4)
    flat = eqx.tree_at(lambda m: m.weight, layer, jnp.zeros((4, 5)))
    assert np.isfinite(jax.grad(lambda m: schatten(m, 0.5))(flat).weight).all()


def test_decay_of_balanced_factors_is_a_schatten_norm():
    layer = eqx.nn.Linear(6, 6, use_bias=False, key=KEY)
    for depth in (2, 4):
        u, s, v = np.linalg.svd(np.asarray(layer.weight, float))
        root = np.diag(s ** (1 / depth))
        balanced = [root @ v] + [root] * (depth - 2) + [u @ root]
        decay = sum(np.square(f).sum() for f in balanced) / depth
        assert schatten(layer, 2 / depth) == pytest.approx(decay, rel=1e-4)


def test_clear_errors():
    net = MLP((3, 4, 2), key=KEY)
    with pytest.raises(OffroadError, match="depth 1"):
        expand(net, 1, key=KEY)
    with pytest.raises(OffroadError, match="found no layer"):
        expand(net, 2, key=KEY, where=lambda path: "critic" in path)
    with pytest.raises(OffroadError, match="a product already"):
        expand(expand(net, 2, key=KEY), 2, key=KEY)


def test_the_offline_trainer_takes_expanded_agents():
    class Rows:
        def sample(self, random, shape):
            rows = random.integers(0, 64, shape)
            return jax.tree.map(lambda leaf: leaf[rows], batch(64))

    agent = expand(BC.create(SPACES, BCConfig(hidden=(8,), batch=16), KEY), 2, key=KEY)
    losses = []
    train.offline(agent, Rows(), 200, progress=False, callback=lambda m: losses.append(m["loss"]))
    assert losses[-1] < losses[0]
    assert math.isfinite(losses[-1])
