from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from worlds import KEY, VECTOR, appraise, random_steps, update

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.encoder import Flat, Pixels
from offroad.rewards import ICM, RND, Disagreement, DisagreementConfig, Fitting, ICMConfig, RNDConfig, Scaling
from offroad.rewards.features import View

SMALL = {"hidden": (16,), "size": 4}


def icm(features="inverse", spaces=VECTOR, **options):
    return ICM.create(spaces, ICMConfig(**{**SMALL, "features": features, **options}), KEY)


PREDICTIVE = {
    "inverse": icm,
    "pixels": lambda: icm("pixels"),
    "random": lambda: icm("random"),
    "rnd": lambda: RND.create(VECTOR, RNDConfig(**SMALL), KEY),
    "disagreement": lambda: Disagreement.create(VECTOR, DisagreementConfig(**SMALL), KEY),
}


@pytest.mark.parametrize("name", PREDICTIVE)
def test_the_bonus_of_a_transition_does_not_depend_on_its_company(name):
    reward, (steps, mask) = PREDICTIVE[name](), random_steps()
    whole = appraise(reward, steps, mask)
    alone = appraise(reward, jax.tree.map(lambda x: x[3:4, 1:], steps), mask[3:4, 1:])
    assert np.all(np.asarray(whole)[~mask] == 0)
    assert np.all(np.asarray(whole)[mask] > 0)
    np.testing.assert_allclose(alone[0, 0], whole[3, 1], rtol=1e-4)


@pytest.mark.parametrize("name", PREDICTIVE)
def test_what_the_mask_leaves_out_is_never_learnt(name):
    reward, (steps, mask) = PREDICTIVE[name](), random_steps()
    garbage = jax.tree.map(
        lambda x: np.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, x.dtype.type(1)), steps
    )
    garbage = replace(garbage, next_observation=np.where(mask[..., None], steps.next_observation, np.float32(1e3)))
    one, other = (update(reward, x, mask)[0] for x in (steps, garbage))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_array_equal(a, b)


def test_features_learn_from_the_forward_loss_only_where_asked():
    steps, _ = random_steps()
    flat = jax.tree.map(lambda x: x[:, 0], steps)

    def largest(reward):  # gradient of the forward loss, as beta is 1
        gradient = jax.grad(lambda model: reward.loss(model, flat, jnp.ones(12), KEY)[0])(reward.model)
        parts = (gradient.inverse.features, gradient.forward)
        return [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) for part in parts]

    features, forward = largest(icm(beta=1.0))
    assert features == 0 < forward
    assert min(largest(icm(beta=1.0, stop_gradient=False))) > 0


def test_random_features_do_not_learn():
    steps, mask = random_steps()
    for reward in (icm("random"), PREDICTIVE["disagreement"](), PREDICTIVE["rnd"]()):
        learnt, _ = update(reward, steps, mask)
        fixed = {ICM: lambda r: r.model.features, Disagreement: lambda r: r.features, RND: lambda r: r.target}[
            type(reward)
        ]
        for a, b in zip(jax.tree.leaves(fixed(reward)), jax.tree.leaves(fixed(learnt))):
            np.testing.assert_array_equal(a, b)


def test_the_bonus_falls_on_what_repeats_and_stays_on_what_is_new():
    steps, mask = random_steps(time=64)
    mask = np.ones_like(mask)
    new = replace(steps, next_observation=-3 + steps.next_observation)
    fitting = Fitting(epochs=40, minibatch=64, learning_rate=3e-3)
    reward = RND.create(VECTOR, RNDConfig(**SMALL, proportion=1.0, fitting=fitting, scaling=Scaling(False)), KEY)
    reward = replace(reward, view=reward.view.update(steps.next_observation, mask))
    learnt, _ = update(reward, steps, mask)
    known, unknown = (float(appraise(learnt, x, mask).mean()) for x in (steps, new))
    assert known < 0.3 * float(appraise(reward, steps, mask).mean())
    assert unknown > 10 * known


def test_features_of_the_inverse_model_ignore_noise_that_pixels_are_drawn_to():
    """The first column moves as the action says, the other eight are noise."""
    space = Spaces(spaces.Box(-5.0, 5.0, (9,), np.float32), spaces.Discrete(3), 4)
    rng, shape = np.random.default_rng(0), (128, 4)
    action = rng.integers(0, 3, shape)
    noise = rng.normal(size=(2, *shape, 8)).astype(np.float32)
    where = rng.normal(size=shape).astype(np.float32)
    before = np.concatenate([where[..., None], noise[0]], -1)
    after = np.concatenate([(where + action - 1.0)[..., None].astype(np.float32), noise[1]], -1)
    none = np.zeros(shape, bool)
    steps, mask = Transition(before, action, np.zeros(shape, np.float32), after, none, none), ~none

    def share_of_noise(features):
        """How far the bonus moves when only the noise changes, against its whole spread."""
        fitting = Fitting(epochs=60, minibatch=128, learning_rate=3e-3)
        reward = icm(features, space, beta=0.5, fitting=fitting, scaling=Scaling(False))
        reward, metrics = update(reward, steps, mask)
        phi = np.asarray(reward.features(after)).reshape(-1, 9 if features == "pixels" else 4)
        quiet = np.asarray(reward.features(after * ([1] + [0] * 8))).reshape(phi.shape)
        return np.var(phi - quiet, 0).sum() / np.var(phi, 0).sum(), metrics

    (inverse, metrics), (pixels, _) = share_of_noise("inverse"), share_of_noise("pixels")
    assert metrics["inverse_accuracy"] > 0.6 > metrics["inverse_chance"]
    assert pixels > 0.8
    assert inverse < 0.5 * pixels


def test_real_valued_actions_and_images_are_seen():
    image = spaces.Box(0, 255, (16, 16, 4), np.uint8)
    space = Spaces(spaces.Dict({"camera": image, "speed": spaces.Box(-1.0, 1.0, (2,))}), spaces.Box(-2.0, 2.0, (2,)), 2)
    rng = np.random.default_rng(0)

    def look():
        return {
            "camera": rng.integers(0, 256, (3, 2, 16, 16, 4), dtype=np.uint8),
            "speed": rng.normal(size=(3, 2, 2)).astype(np.float32),
        }

    none = np.zeros((3, 2), bool)
    action = rng.normal(size=(3, 2, 2)).astype(np.float32)
    steps = Transition(look(), action, np.zeros((3, 2), np.float32), look(), none, none)
    encoder = Flat(Pixels(channels=(4, 4), kernels=(8, 2), strides=(8, 1), size=8))
    for kind, config in ((ICM, ICMConfig), (RND, RNDConfig)):
        reward = kind.create(space, config(**SMALL, encoder=encoder, frames=1), KEY)
        old = eqx.tree_at(lambda s: s.next_observation["camera"], steps, steps.next_observation["camera"].copy())
        old.next_observation["camera"][..., :3] = 0  # only the newest frame is seen
        bonus = appraise(reward, steps, ~none)
        np.testing.assert_array_equal(bonus, appraise(reward, old, ~none))
        assert np.isfinite(bonus).all()
        assert all(np.isfinite(v) for v in update(reward, steps, ~none)[1].values())
    assert icm("pixels", space, encoder=encoder, frames=1).view.size == 16 * 16 + 2


def test_whitened_images_have_unit_scale_inside_the_encoder():
    space = Spaces(spaces.Box(0, 255, (4, 4, 2), np.uint8), spaces.Discrete(2), 1)
    images = np.random.default_rng(0).integers(0, 256, (500, 1, 4, 4, 2), dtype=np.uint8)
    with pytest.raises(OffroadError, match="frames is 9, but images have"):
        View.create(space, frames=9)
    first = View.create(space, frames=1, clip=5.0, whiten=True)
    assert np.abs(first.flat(first(images))).max() < 2  # nothing is clipped before any image was counted
    view = View.create(space, frames=1, clip=5.0, whiten=True).update(images, np.ones((500, 1), bool))
    seen = view.flat(view(images))
    assert seen.shape == (500, 1, 16)
    np.testing.assert_allclose([seen.mean(), seen.std()], [0, 1], atol=1e-3)


def test_mistakes_are_named():
    with pytest.raises(OffroadError, match="feature space 'pixel'; did you mean 'pixels'"):
        icm("pixel")
    with pytest.raises(OffroadError, match="one-dimensional Box actions"):
        icm(spaces=Spaces(VECTOR.observation, spaces.Box(0, 1, (2, 2)), 1))
