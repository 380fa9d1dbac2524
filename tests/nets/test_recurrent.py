import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offroad.nets.recurrent import GRU

KEY = jax.random.key(0)
T, N, D, H = 6, 3, 4, 5


@pytest.fixture
def gru():
    return GRU(D, H, KEY)


def test_a_sequence_equals_its_steps(gru):
    x = jax.random.normal(KEY, (T, N, D))
    reset = jax.random.bernoulli(KEY, 0.3, (T, N))
    last, out = gru(gru.initial(N), x, reset)
    memory = gru.initial(N)
    for t in range(T):
        memory, now = gru(memory, x[t : t + 1], reset[t : t + 1])
        np.testing.assert_allclose(now[0], out[t], atol=1e-6)
    np.testing.assert_allclose(last, memory, atol=1e-6)


def test_no_reset_equals_the_cell_in_a_loop(gru):
    x = jax.random.normal(KEY, (T, N, D))
    start = jax.random.normal(KEY, (N, H))
    _, out = gru(start, x, jnp.zeros((T, N), bool))
    memory = start[1]
    for t in range(T):
        memory = gru.cell(x[t, 1], memory)
        np.testing.assert_allclose(out[t, 1], memory, atol=1e-6)


def test_a_reset_forgets_the_past_and_cuts_gradients(gru):
    x = jax.random.normal(KEY, (T, N, D))
    start = jax.random.normal(KEY, (N, H))
    reset = jnp.zeros((T, N), bool).at[3, 1].set(True)
    _, out = gru(start, x, reset)
    _, fresh = gru(gru.initial(N), x[3:], jnp.zeros((T - 3, N), bool))
    np.testing.assert_allclose(out[3:, 1], fresh[:, 1], atol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(gru(start, x, reset)[1][-1]))(x)
    assert not jnp.any(grad[:3, 1])
    assert jnp.all(jnp.any(grad[3:, 1] != 0, axis=-1))
    assert jnp.all(jnp.any(grad[:, jnp.array([0, 2])] != 0, axis=-1))


def test_recalls_a_bit_seen_before_a_delay(gru):
    bits = jax.random.bernoulli(KEY, 0.5, (64,)).astype(jnp.float32)
    x = jnp.zeros((T, 64, D)).at[0, :, 0].set(2 * bits - 1)
    reset = jnp.zeros((T, 64), bool)
    optimiser = optax.adam(3e-2)

    def loss(net):
        logit = net(net.initial(64), x, reset)[1][-1, :, 0]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(5 * logit, bits))

    @eqx.filter_jit
    def step(net, state):
        value, grads = eqx.filter_value_and_grad(loss)(net)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(net, updates), state, value

    state = optimiser.init(eqx.filter(gru, eqx.is_array))
    for _ in range(100):
        gru, state, value = step(gru, state)
    assert value < 0.1
