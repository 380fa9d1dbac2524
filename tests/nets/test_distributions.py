import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from offroad.nets.distributions import Categorical, Normal, TanhNormal

KEY = jax.random.key(0)


def test_normal_density_integrates_to_one_and_gives_the_entropy():
    normal = Normal(jnp.array([0.3]), jnp.array([-0.5]))
    x = jnp.linspace(-8, 8, 20001)[:, None]
    log_p = jax.vmap(normal.log_prob)(x)
    step = 16 / 20000
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_p)) * step, 1, rtol=1e-4)
    np.testing.assert_allclose(-jnp.sum(jnp.exp(log_p) * log_p) * step, normal.entropy(), rtol=1e-4)


def test_normal_components_add_and_log_std_broadcasts():
    mean = jax.random.normal(KEY, (5, 3))
    log_std = jnp.array([-1.0, 0.0, 0.5])
    value = mean + 0.3
    joint = Normal(mean, log_std)
    parts = [Normal(mean[:, i : i + 1], log_std[None, i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(
        joint.log_prob(value), sum(p.log_prob(value[:, i : i + 1]) for i, p in enumerate(parts)), rtol=1e-5
    )
    np.testing.assert_allclose(joint.entropy(), sum(p.entropy() for p in parts), rtol=1e-5)
    assert joint.entropy().shape == (5,)


def test_normal_samples_have_its_moments():
    x = Normal(jnp.full((20000, 1), 2.0), jnp.array([-1.0])).sample(KEY)
    np.testing.assert_allclose([x.mean(), x.std()], [2, np.exp(-1)], rtol=0.02)


def test_tanh_normal_density_integrates_to_one():
    policy = TanhNormal(jnp.array([0.4]), jnp.array([-0.7]))
    x = jnp.linspace(-1, 1, 40001)[1:-1, None]
    p = jnp.exp(jax.vmap(policy.log_prob)(x))
    np.testing.assert_allclose(jnp.sum(p) * 2 / 40000, 1, rtol=1e-3)


def test_tanh_normal_sample_carries_its_own_log_prob():
    policy = TanhNormal(jax.random.normal(KEY, (64, 3)), jnp.full((64, 3), -0.5))
    action, log_prob = policy.sample_and_log_prob(KEY)
    np.testing.assert_allclose(log_prob, policy.log_prob(action), rtol=1e-3, atol=2e-3)
    np.testing.assert_array_equal(action, policy.sample(KEY))
    np.testing.assert_allclose(policy.mode(), jnp.tanh(policy.mean))


def test_gradients_equal_finite_differences():
    mean, log_std = jnp.array([[0.2, -0.4]]), jnp.array([[-0.3, 0.1]])
    inside = jnp.array([[0.5, -0.2]])
    for f in (
        lambda m, s: Normal(m, s).log_prob(inside),
        lambda m, s: TanhNormal(m, s).log_prob(inside),
        lambda m, s: TanhNormal(m, s).sample_and_log_prob(KEY),
        lambda m, s: Categorical(m + s).entropy(),
    ):
        check_grads(jax.jit(f), (mean, log_std), order=1, modes=["rev"], rtol=1e-2)


def test_extremes_are_finite_with_finite_gradients():
    def loss(mean, log_std):
        action, log_prob = TanhNormal(mean, log_std).sample_and_log_prob(KEY)
        return jnp.sum(action) + jnp.sum(log_prob) + jnp.sum(TanhNormal(mean, log_std).log_prob(jnp.sign(mean)))

    for mean in (-50.0, -10.0, 10.0, 50.0):
        for log_std in (-5.0, 2.0):
            value, grads = jax.value_and_grad(loss, (0, 1))(jnp.full((4, 2), mean), jnp.full((4, 2), log_std))
            assert jnp.isfinite(value)
            assert all(jnp.all(jnp.isfinite(g)) for g in grads)


def test_categorical_against_the_closed_form():
    p = jnp.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    choice = Categorical(jnp.log(p) + 3.0)
    np.testing.assert_allclose(choice.log_prob(jnp.array([2, 0])), jnp.log(jnp.array([0.7, 0.5])), rtol=1e-5)
    np.testing.assert_allclose(choice.entropy(), -jnp.sum(p * jnp.log(p), -1), rtol=1e-5)
    np.testing.assert_array_equal(choice.mode(), [2, 0])
    drawn = Categorical(jnp.broadcast_to(jnp.log(p[0]), (20000, 3))).sample(KEY)
    np.testing.assert_allclose(np.bincount(drawn) / 20000, p[0], atol=0.015)


def test_categorical_with_forbidden_choices_and_huge_logits():
    logits = jnp.array([[0.0, -jnp.inf, 0.0], [1e4, 0.0, -1e4]])
    np.testing.assert_allclose(Categorical(logits).entropy(), [np.log(2), 0], atol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(Categorical(x).entropy()))(logits)
    assert jnp.all(jnp.isfinite(grad))
    assert 1 not in Categorical(jnp.broadcast_to(logits[0], (1000, 3))).sample(KEY)
