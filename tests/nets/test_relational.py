import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from offroad.agents import DDPG, DDPGConfig
from offroad.data.config import from_json, to_json
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.encoder import Flat
from offroad.nets.relational import LEAN, PAPER, Relational, Slots

KEY = jax.random.key(0)
SMALL = {"dot": dataclasses.replace(LEAN, width=16, scales=(1, 50)), "additive": dataclasses.replace(PAPER, width=16)}
BOTH = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


@eqx.filter_jit
def encode(encoder, observation):
    return encoder(observation)


def space(n=3, **more):
    box = spaces.Box(-1, 1, (n, 5)), spaces.Box(-1, 1, (n, 3))
    return spaces.Dict(robot=spaces.Box(-1, 1, (2,)), objects=box[0], goals=box[1], mask=spaces.MultiBinary(n), **more)


WITH_ACTION = {"action": spaces.Box(-1, 1, (4,))}


def observe(of, *batch, seed=0):
    """Random observations in which every object is present."""
    rng = np.random.default_rng(seed)
    sample = {k: rng.normal(size=(*batch, *s.shape)).astype(np.float32) for k, s in of.spaces.items()}
    return sample | {"mask": np.ones((*batch, *of["mask"].shape), np.int8)}


def padded(observation, to, seed=1):
    """The same objects with slots of garbage behind them."""
    rng, out = np.random.default_rng(seed), dict(observation)
    for name in ("objects", "goals"):
        x = observation[name]
        rest = rng.normal(size=(*x.shape[:-2], to - x.shape[-2], x.shape[-1])) * 100
        out[name] = np.concatenate([x, rest.astype(np.float32)], -2)
    mask = observation["mask"]
    return out | {"mask": np.concatenate([mask, np.zeros((*mask.shape[:-1], to - mask.shape[-1]), np.int8)], -1)}


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@BOTH
def test_the_order_of_objects_changes_nothing_and_their_content_does(config):
    of = space(4, **WITH_ACTION)
    encoder = config.build(of, KEY)
    x = observe(of, 6)
    x["mask"][:, 1] = 0
    features = encode(encoder, x)
    assert features.shape == (6, encoder.size)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(4)
        close(encode(encoder, x | {k: x[k][:, order] for k in ("objects", "goals", "mask")}), features)
    # Goals belong to their objects, and every part counts.
    for name in ("objects", "goals", "robot", "action"):
        changed = x | {name: x[name][..., ::-1, :] if x[name].ndim == 3 else x[name] + 0.3}
        assert np.abs(encode(encoder, changed) - features).max() > 1e-3, name


@BOTH
def test_padding_has_no_influence_and_no_gradient(config):
    encoder = config.build(space(2), KEY)
    x = observe(space(2), 5)
    features = encode(encoder, x)
    for seed in range(3):
        close(encode(encoder, padded(x, 5, seed)), features, 1e-6)
    wide = padded(x, 4)
    nan = wide | {"objects": np.where(wide["mask"][..., None] > 0, wide["objects"], np.nan)}
    close(encode(encoder, nan), features, 1e-6)

    def loss(parts):
        return jnp.sum(encoder(wide | parts) ** 2)

    gradients = jax.jit(jax.grad(loss))({k: jnp.asarray(wide[k]) for k in ("objects", "goals")})
    for gradient in gradients.values():
        assert (gradient[:, 2:] == 0).all()
        assert (gradient[:, :2] != 0).any()


@BOTH
def test_nothing_but_padding_gives_finite_features_and_gradients(config):
    of = space(3)
    encoder = config.build(of, KEY)
    x = observe(of, 2) | {"mask": np.zeros((2, 3), np.int8)}
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda e: jnp.sum(e(x) ** 2)))(encoder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@BOTH
def test_one_set_of_weights_reads_any_number_of_objects(config):
    encoder = config.build(space(3), KEY)
    for n in range(1, 10):
        other = config.build(space(n), KEY)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), encoder, other)))
    for n in (1, 4, 9):
        assert np.isfinite(encode(encoder, observe(space(n), 2))).all()


def test_any_leading_axes_and_optional_entries():
    of = spaces.Dict(objects=spaces.Box(-1, 1, (3, 5)), kind=spaces.Discrete(4))
    for config in (SMALL["dot"], Slots()):
        encoder = config.build(of, KEY)
        x = {"objects": np.random.default_rng(0).normal(size=(2, 6, 3, 5)), "kind": np.full((2, 6), 2)}
        features = encode(encoder, x)
        assert features.shape == (2, 6, encoder.size)
        assert features.dtype == jnp.float32
        single = encode(encoder, jax.tree.map(lambda leaf: leaf[1, 3], x))
        assert single.shape == (encoder.size,)
        close(single, features[1, 3], 1e-6)
        close(encode(encoder, x | {"mask": np.ones((2, 6, 3), np.int8)})[..., :8], features[..., :8], 1e-6)
        assert np.abs(encode(encoder, x | {"kind": np.full((2, 6), 1)}) - features).max() > 1e-3
    alone = spaces.Dict(objects=spaces.Box(-1, 1, (3, 5)))
    assert encode(SMALL["dot"].build(alone, KEY), {"objects": x["objects"]}).shape == (2, 6, 16)


def reference(encoder, config, x):
    """The formulas of the paper, one number after another, in float64: one observation -> features."""
    f64 = lambda leaf: np.asarray(leaf, np.float64)  # noqa: E731
    apply = lambda layer, v: f64(layer.weight) @ v + f64(layer.bias)  # noqa: E731
    leaky = lambda v: np.where(v > 0, v, 0.01 * v)  # noqa: E731

    def norm(layer, v):
        z = (v - v.mean()) / np.sqrt(v.var() + 1e-5)
        return z * f64(layer.weight) + f64(layer.bias)

    def attend(attention, query, contexts, memories):
        found, part = np.zeros(config.width), config.width // config.heads
        for head in range(config.heads):
            its = slice(head * part, (head + 1) * part)
            if config.attention == "dot":
                scores = [query[its] @ c[its] / np.sqrt(part) for c in contexts]
            else:
                a = attention.additive
                moved = apply(a.transform, query)
                scores = [f64(a.weight)[its] @ np.tanh(c + moved)[its] / float(a.temperature) for c in contexts]
            weights = np.exp(scores) / np.exp(scores).sum()
            for weight, memory in zip(weights, memories, strict=True):
                found[its] += weight * memory[its]
        return apply(attention.reduce, leaky(found))

    nodes = []
    for i in np.flatnonzero(x["mask"]):
        thing, goal = f64(x["objects"][i]), f64(x["goals"][i])
        entity = np.concatenate([thing, goal, goal - thing[: len(goal)]])
        scaled = [np.clip(s * part, -5, 5) for part in (f64(x["robot"]), entity) for s in config.scales]
        v = np.concatenate([f64(x["action"]), *scaled])
        for k, layer in enumerate(encoder.embed):
            v = apply(layer, leaky(v) if k else v)
        nodes.append(leaky(v) if encoder.norm is None else norm(encoder.norm, v))
    for block in encoder.blocks:
        q, c, m = zip(*(np.split(apply(block.project, v), 3) for v in nodes))
        nodes = [leaky(v + attend(block.attention, query, c, m)) for v, query in zip(nodes, q)]
        nodes = nodes if block.norm is None else [norm(block.norm, v) for v in nodes]
    return attend(encoder.readout, f64(encoder.query), nodes, nodes)


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_agrees_with_the_formulas_one_number_after_another(attention):
    paper = attention == "additive"
    of = space(3, **WITH_ACTION)
    config = Relational((1, 10), 8, 2 - paper, 2, 1 + (not paper), attention, paper)
    encoder = config.build(of, KEY)
    # Weights away from their first values, so that queries, temperatures and the norms' scales matter.
    leaves, tree = jax.tree.flatten(encoder)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    encoder = tree.unflatten([w + 0.5 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys)])
    x = observe(of, 4)
    x["mask"][0] = [1, 0, 1]
    features = encode(encoder, x)
    assert features.std() > 0.1
    for i in range(4):
        close(features[i], reference(encoder, config, {k: v[i] for k, v in x.items()}), 2e-5)


def test_slots_are_in_order_zero_where_masked_and_scaled():
    of = space(2, **WITH_ACTION)
    encoder = Slots((1, 10)).build(of, KEY)
    x = observe(of)
    x["mask"][1] = 0
    parts = np.concatenate([x["objects"], x["goals"], x["goals"] - x["objects"][:, :3]], -1)[0]
    scaled = lambda v: np.concatenate([np.clip(v, -5, 5), np.clip(10 * v, -5, 5)])  # noqa: E731
    expected = np.concatenate([x["action"], scaled(x["robot"]), scaled(parts), np.zeros(22), [1, 0]])
    assert encoder.size == len(expected)
    close(encode(encoder, x), expected)


@pytest.mark.parametrize(
    ("of", "found"),
    [
        (spaces.Box(-1, 1, (7,)), r"is a Box of shape \(7,\)"),
        (spaces.Dict(robot=spaces.Box(-1, 1, (2,))), r"no 'objects', only \['robot'\]"),
        (spaces.Dict(objects=spaces.Box(-1, 1, (7,))), r"'objects' is a Box of shape \(7,\)"),
        (spaces.Dict(objects=spaces.Dict(a=spaces.Discrete(2))), "'objects' is a Dict"),
        (spaces.Dict({**space(3).spaces, "goals": spaces.Box(-1, 1, (2, 3))}), r"'goals' has shape \(2, 3\)"),
        (spaces.Dict({**space(3).spaces, "goals": spaces.Box(-1, 1, (3, 6))}), r"'goals' has shape \(3, 6\)"),
        (spaces.Dict({**space(3).spaces, "mask": spaces.MultiBinary(2)}), r"'mask' has shape \(2,\)"),
        (spaces.Dict({**space(3).spaces, "mask": spaces.Discrete(2)}), r"'mask' is a Discrete"),
    ],
)
def test_other_observations_are_refused_with_the_mend(of, found):
    for config in (Relational(), Slots()):
        with pytest.raises(OffroadError, match=f"{found}.*use Flat, or arrange the observation as Dict"):
            config.build(of, KEY)


def test_impossible_configurations_are_refused():
    with pytest.raises(OffroadError, match="heads divide"):
        Relational(width=10, heads=4)
    with pytest.raises(OffroadError, match="did you mean 'additive'"):
        Relational(attention="aditive")


@pytest.mark.parametrize("encoder", [PAPER, Relational(scales=(1, 10.5)), Slots((1, 50)), Flat()], ids=repr)
def test_configurations_come_back_from_json(encoder):
    config = DDPGConfig(encoder=encoder)
    assert from_json(DDPGConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("encoder", [dataclasses.replace(PAPER, width=8, blocks=1), Slots()], ids=["paper", "slots"])
def test_an_agent_acts_and_learns_with_it(encoder):
    of = space(3)
    config = DDPGConfig(batch=6, hidden=(8,), encoder=encoder)
    agent = DDPG.create(Spaces(of, spaces.Box(-2, 2, (4,)), 6), config, KEY)
    x, following = observe(of, 6), observe(of, 6, seed=1)
    zeros = np.zeros(6, np.float32)
    batch = Transition(x, np.ones((6, 4), np.float32), zeros + 1, following, zeros > 0, zeros > 0)
    (action, _), (changed, metrics) = jax.jit(lambda a, b: (a.act(b.observation, KEY), a.update(b, KEY)))(agent, batch)
    assert action.shape == (6, 4)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((action, metrics, changed)))
    for name in ("policy", "critic"):
        one, other = (getattr(each, name).encoder for each in (agent, changed))
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), one, other))), name
