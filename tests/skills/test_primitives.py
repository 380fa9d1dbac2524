"""Primitives of walks in four directions: what the autoencoder, relabelling, finetuning and files promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from walks import LENGTH, SPACES, free, learnt, tuned, walks

from offroad.agents import BC, BCConfig
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.distributions import Normal
from offroad.skills import Primitives, PrimitivesConfig, Windows
from offroad.skills.primitives import kl

KEY = jax.random.key(0)
UNSEEN = walks(episodes=20, seed=9)


def every(primitives, dataset=UNSEEN):
    windows = primitives.windows(dataset)
    return jax.tree.map(jnp.asarray, windows.at(windows.rows))


def gaussians():
    rng = np.random.default_rng(0)
    return [Normal(*jnp.asarray(rng.normal(size=(2, 5, 3)) * [[[1.0]], [[0.4]]], jnp.float32)) for _ in range(2)]


def test_the_divergence_is_that_of_the_integral():
    q, p = gaussians()
    z = q.mean + jnp.exp(q.log_std) * jax.random.normal(KEY, (200_000, 5, 3))
    sampled = jnp.mean(q.log_prob(z) - p.log_prob(z), axis=0)
    np.testing.assert_allclose(kl(q, p), sampled, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(kl(q, q), 0, atol=1e-6)


def test_the_divergence_is_the_textbooks():
    q, p = gaussians()
    sq, sp = np.exp(q.log_std), np.exp(p.log_std)
    expected = np.log(sp / sq) + (sq**2 + (np.asarray(q.mean) - p.mean) ** 2) / (2 * sp**2) - 0.5
    np.testing.assert_allclose(kl(q, p), expected.sum(-1), rtol=1e-4)


@pytest.mark.parametrize("posterior", ["mlp", "gru"])
def test_the_loss_is_a_sum_over_steps_actions_and_latents(posterior):
    config = PrimitivesConfig(
        batch=6, length=3, latents=2, hidden=(8,), kl_weight=0.3, posterior=posterior, normalise_observation=False
    )
    primitives = Primitives.create(Spaces(SPACES.observation, gym_spaces.Box(-2, 4, (2,))), config, KEY)
    # The first episode terminates after two steps.
    dataset = dataclasses.replace(
        walks(2, 10), terminated=np.arange(20) == 1, truncated=np.isin(np.arange(20), [9, 19]),
        final_observations=np.ones((3, 2), np.float32),
    )  # fmt: skip
    batch = jax.tree.map(jnp.asarray, primitives.windows(dataset).at(np.array([0, 1, 3, 5, 10, 17])))
    assert batch.valid.sum(-1).tolist() == [2, 1, 3, 3, 3, 3]
    _, metrics = jax.jit(Primitives.update)(primitives, batch, KEY)

    posterior, prior = primitives.encode(batch), primitives.prior(batch.observation[:, 0])
    z, unit = posterior.sample(KEY), (batch.action - 1) / 3
    policy = primitives.policy(batch.observation, jnp.repeat(z[:, None], 3, 1))
    std = np.exp(policy.log_std)
    each = -0.5 * ((unit - policy.mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    likelihood = np.array([sum(each[i, t].sum() for t in range(3) if batch.valid[i, t]) for i in range(6)])
    divergence = np.mean(kl(posterior, prior))
    np.testing.assert_allclose(metrics["likelihood"], likelihood.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 0.3 * divergence - likelihood.mean(), rtol=1e-4)
    # What is not valid is not seen.
    junk = dataclasses.replace(batch, action=jnp.where(batch.valid[..., None], batch.action, 7.0))
    np.testing.assert_allclose(primitives.encode(junk).mean, posterior.mean, atol=1e-6)
    np.testing.assert_allclose(primitives.likelihood(junk, z), likelihood, rtol=1e-4)


def test_the_latent_tells_what_the_prior_cannot_know():
    primitives, window = free(), every(free())
    q, p = primitives.encode(window), primitives.prior_of(window)
    encoded, blind = (np.mean(primitives.likelihood(window, z.sample(KEY))) for z in (q, p))
    assert encoded > blind + 5
    assert 0.5 < np.mean(kl(q, p)) < 30


def test_a_recurrent_posterior_learns_it_too():
    config = PrimitivesConfig(batch=64, length=LENGTH, latents=4, hidden=(32,), learning_rate=5e-3, posterior="gru")
    primitives = Primitives.create(SPACES, config, KEY)
    primitives, _ = learnt(primitives, primitives.windows(walks()), 200)
    window = every(primitives)
    q, p = primitives.encode(window), primitives.prior_of(window)
    encoded, blind = (np.mean(primitives.likelihood(window, z.sample(KEY))) for z in (q, p))
    assert encoded > blind + 5


def test_directions_are_linear_in_latent_actions():
    latent = tuned().relabel(UNSEEN, 1.0)
    rows = latent.info["row"]
    windows = tuned().windows(UNSEEN)
    moved = UNSEEN.transitions(windows.last(rows)).next_observation - UNSEEN.observations[rows]
    inputs = np.concatenate([latent.actions, np.ones((len(rows), 1))], 1)
    half = len(rows) // 2
    weights, *_ = np.linalg.lstsq(inputs[:half], moved[:half])
    rest = moved[half:] - inputs[half:] @ weights
    assert 1 - (rest**2).sum() / ((moved[half:] - moved[half:].mean(0)) ** 2).sum() > 0.8


def test_finetuning_fits_the_policy_to_the_frozen_latents():
    before, window = free().freeze(walks(), jax.random.key(1)), every(free())
    z = before._latent(window, KEY)
    assert np.mean(tuned().likelihood(window, z)) > np.mean(before.likelihood(window, z))
    for part in ("posterior", "prior", "observation_norm", "reach"):
        same = jax.tree.map(jnp.array_equal, getattr(tuned(), part), getattr(before, part))
        assert jax.tree.all(same)
    share = np.mean(np.abs(before._encoded(before.windows(walks()), before.windows(walks()).rows, KEY)) < before.reach)
    assert 0.997 < share < 1


def test_relabelled_data_are_the_same_episodes_in_longer_steps():
    data = walks(12, 20, goal=1.0, seed=3)
    assert 0 < data.terminated.sum() < 12
    latent, windows = tuned().relabel(data, 0.9), tuned().windows(data)
    assert latent.actions.shape == (len(windows), 4)
    assert np.abs(latent.actions).max() <= 1
    rows = latent.info["row"]
    np.testing.assert_array_equal(latent.observations, data.observations[rows])
    for i in range(len(latent)):
        end = data.ends[np.searchsorted(data.ends, rows[i])]
        steps = np.arange(rows[i], min(rows[i] + LENGTH, end + 1))
        expected = sum(0.9**k * float(data.rewards[row]) for k, row in enumerate(steps))
        assert latent.rewards[i] == pytest.approx(expected, abs=1e-6)
        assert latent.terminated[i] == data.terminated[steps].any()
        after = data.transitions(steps[-1:]).next_observation[0]
        np.testing.assert_array_equal(latent.transitions(np.array([i])).next_observation[0], after)
    # Discounted by gamma^c, episodes that begin with those of the data are worth the same.
    whole = np.isin(rows[latent.starts], data.starts) & latent.terminated[latent.ends]
    episode = np.searchsorted(data.ends, rows[latent.starts][whole])
    np.testing.assert_allclose(latent.returns(0.9**LENGTH)[whole], data.returns(0.9)[episode], rtol=1e-5)
    # A sample is another latent action than the mean.
    drawn = tuned().relabel(data, 0.9, KEY)
    assert np.abs(drawn.actions - latent.actions).max() > 0
    np.testing.assert_array_equal(drawn.rewards, latent.rewards)


@pytest.mark.parametrize("make", [free, tuned])
def test_saved_primitives_come_back_and_go_on(make, tmp_path):
    primitives = make()
    primitives.save(tmp_path / "walks.npz")
    loaded = Primitives.load(tmp_path / "walks.npz")
    assert (loaded.frozen, loaded.config, loaded.spaces) == (primitives.frozen, primitives.config, primitives.spaces)
    assert jax.tree.structure(loaded) == jax.tree.structure(primitives)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, primitives))


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("junk", "other.npz", "missing"):
        with pytest.raises(OffroadError, match="expected a file written by Primitives"):
            Primitives.load(tmp_path / name)
    free().save(tmp_path / "walks.npz")
    with np.load(tmp_path / "walks.npz") as file:
        arrays = dict(file)
    arrays["reach"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "walks.npz", **arrays)
    with pytest.raises(OffroadError, match="do not fit: for 'reach'"):
        Primitives.load(tmp_path / "walks.npz")


def test_mistakes_are_told():
    with pytest.raises(OffroadError, match="still learning"):
        free().relabel(walks(), 0.9)
    with pytest.raises(OffroadError, match="still learning"):
        free().wrap(BC.create(free().latent_spaces, BCConfig(), KEY))
    with pytest.raises(OffroadError, match="these windows have 3 steps, the primitives 5"):
        free().update(Windows(walks(), 3).sample(np.random.default_rng(0), 8), KEY)
    with pytest.raises(OffroadError, match="needs a one-dimensional Box action space"):
        Primitives.create(Spaces(SPACES.observation, gym_spaces.Discrete(3)), PrimitivesConfig(), KEY)
    with pytest.raises(OffroadError, match="expected at least 1 of each"):
        Primitives.create(SPACES, PrimitivesConfig(latents=0), KEY)
