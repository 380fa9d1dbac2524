"""Linear networks: ranks before and after training, by initialisation and optimiser; solutions in closed form."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Array, Float

from offroad.nets.mlp import ACTIVATIONS
from offroad.nets.overparameterize import Product
from offroad.nets.spectrum import effective_rank, gram_rank, singular_values

NETWORKS = ("linear", "relu", "tanh")  # by their activation
OPTIMISERS = ("momentum", "Adam", "L-BFGS", "diagonal CMA-ES", "random search")
INITIALISATIONS = ("normal", "uniform", "orthogonal", "normal x 0.1")
Factors = tuple[Float[Array, "runs n n"], ...]
Rows = Float[Any, "runs rows n"]  # inputs or targets, NumPy's or JAX's


def factors(kind: str, runs: int, size: int, depth: int, key: Any) -> Factors:
    """Square factors of variance 1 / size for each run."""
    kind, scale = (kind[: -len(" x 0.1")], 0.1) if kind.endswith(" x 0.1") else (kind, 1.0)
    keys, shape = jax.random.split(key, depth), (runs, size, size)
    draw: Callable[[Any], Array] = {
        "normal": lambda k: jax.random.normal(k, shape) / np.sqrt(size),
        "uniform": lambda k: jax.random.uniform(k, shape, minval=-1, maxval=1) * np.sqrt(3 / size),
        "orthogonal": lambda k: jax.random.orthogonal(k, size, (runs,)),
    }[kind]
    return tuple(scale * draw(k) for k in keys)


def product(chain: Factors) -> Float[Array, "runs n n"]:
    return Product(tuple(x[:, None] for x in chain), chain[0].shape[1:], False).value()


def initial_rank(activation: str, depth: int, draws: int, key: Any) -> float:
    """The mean rank of the Gram matrix of 128 normal inputs behind `depth` random layers of width 32."""
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, (draws, 128, 32))
    for weight in factors("normal", draws, 32, depth, key):
        x = x @ weight
        # A factor on all weights changes nothing but for tanh, where gain 1 is meant.
        x = x if activation == "linear" else ACTIVATIONS[activation](x)
    return float(gram_rank(np.asarray(x)).mean())


class Problems:
    """One least-squares problem Y = X W* for each run: fewer rows than inputs, targets of unit variance."""

    def __init__(self, seeds: list[int], size: int, rank: int, rows: int):
        xs, ws = [], []
        for seed in seeds:
            random = np.random.default_rng(seed)
            w = random.normal(size=(size, rank)) @ random.normal(size=(rank, size))
            ws.append(w * np.sqrt(size) / np.linalg.norm(w))
            xs.append(random.normal(size=(rows, size)))
        self.x, self.w = np.array(xs), np.array(ws)
        self.y = self.x @ self.w

    def test(self, w: Any) -> np.ndarray:
        """The expected squared error for normal inputs, as a share of the targets' variance."""
        return np.square(np.asarray(w, float) - self.w).sum((1, 2)) / self.w.shape[1]

    def fit(self, w: Any) -> np.ndarray:
        """The same on the training rows."""
        return np.square(self.x @ np.asarray(w, float) - self.y).mean((1, 2)) / np.square(self.y).mean((1, 2))


def rank_of(w: Any) -> np.ndarray:
    return effective_rank(singular_values(w))


def loss_of(chain: Factors, x: Rows, y: Rows) -> Float[Array, " runs"]:
    return jnp.mean(jnp.square(x @ product(chain) - y), axis=(1, 2))


@partial(jax.jit, static_argnames=("kind", "steps"))
def descend(chain: Factors, x: Rows, y: Rows, kind: str, rate: Any, steps: int) -> Factors:
    """Gradient descent on all rows: `adam`, or `momentum` (0.9, with gradients clipped to length 1 in each run)."""
    adam = kind == "adam"
    optimiser = optax.scale_by_adam() if adam else optax.trace(0.9)

    def step(carry: Any, _: Any) -> Any:
        chain, state = carry
        gradient = jax.grad(lambda c: jnp.sum(loss_of(c, x, y)) * x.shape[-1] ** (0 if adam else 1))(chain)
        if not adam:
            length = jnp.sqrt(sum(jnp.sum(jnp.square(g), (1, 2), keepdims=True) for g in gradient))
            gradient = jax.tree.map(lambda g: g / jnp.maximum(length, 1.0), gradient)
        change, state = optimiser.update(gradient, state)
        return (jax.tree.map(lambda c, g: c - rate * g, chain, change), state), None

    return jax.lax.scan(step, (chain, optimiser.init(chain)), length=steps)[0][0]


def quasi_newton(chain: Factors, x: Rows, y: Rows, steps: int) -> Factors:
    """L-BFGS of SciPy, one run after another."""
    runs, size, _ = chain[0].shape
    value_and_gradient = jax.jit(jax.value_and_grad(lambda c, x, y: jnp.sum(loss_of(c, x, y))))
    found = []
    for run in range(runs):
        start = np.concatenate([np.asarray(c[run]).ravel() for c in chain])

        def objective(flat: np.ndarray, run: int = run) -> tuple[float, np.ndarray]:
            parts = tuple(jnp.asarray(p, jnp.float32).reshape(1, size, size) for p in np.split(flat, len(chain)))
            value, gradient = value_and_gradient(parts, x[run : run + 1], y[run : run + 1])
            return float(value), np.concatenate([np.asarray(g, float).ravel() for g in gradient])

        options = {"maxiter": steps}
        flat = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        found.append(np.split(flat, len(chain)))
    return tuple(jnp.asarray(np.array(part), jnp.float32).reshape(runs, size, size) for part in zip(*found))


@partial(jax.jit, static_argnames=("steps",))
def random_search(chain: Factors, x: Rows, y: Rows, key: Any, steps: int) -> Factors:
    """Keeps a random step if it lowers the loss; steps grow after a success and shrink so as to balance one in five."""

    def step(carry: Any, key: Any) -> Any:
        chain, best, sigma = carry
        noise = [jax.random.normal(k, c.shape) for k, c in zip(jax.random.split(key, len(chain)), chain)]
        trial = tuple(c + sigma[:, None, None] * n for c, n in zip(chain, noise))
        value = loss_of(trial, x, y)
        better = value < best
        chain = tuple(jnp.where(better[:, None, None], t, c) for t, c in zip(trial, chain))
        return (chain, jnp.where(better, value, best), sigma * jnp.where(better, 1.22, 1.22**-0.25)), None

    start = (chain, loss_of(chain, x, y), jnp.full(x.shape[0], 0.1))
    return jax.lax.scan(step, start, jax.random.split(key, steps))[0][0]


@partial(jax.jit, static_argnames=("steps",))
def evolution(chain: Factors, x: Rows, y: Rows, key: Any, steps: int) -> Factors:
    """CMA-ES with a diagonal covariance (Ros and Hansen 2008), which hundreds of factors' entries need; its constants.

    The mean at the end is what is returned.
    """
    runs, size, _ = chain[0].shape
    n = len(chain) * size * size
    population = 4 + int(3 * np.log(n))
    parents = population // 2
    weights = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    weights /= weights.sum()
    mass = 1 / np.square(weights).sum()
    c_sigma, c_c = (mass + 2) / (n + mass + 5), (4 + mass / n) / (n + 4 + 2 * mass / n)
    damping = 1 + 2 * max(0, np.sqrt((mass - 1) / (n + 1)) - 1) + c_sigma
    speed = (n + 2) / 3  # of the diagonal, relative to a full covariance
    c_1 = min(1, speed * 2 / ((n + 1.3) ** 2 + mass))
    c_mu = min(1 - c_1, speed * 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
    expected = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))

    def unflat(flat: Array) -> Factors:
        return tuple(jnp.moveaxis(flat.reshape(-1, len(chain), size, size), 1, 0))

    many_x, many_y = (jnp.repeat(a, population, 0) for a in (x, y))

    def step(carry: Any, key: Any) -> Any:
        mean, sigma, variance, path_sigma, path_c = carry
        z = jax.random.normal(key, (runs, population, n))
        move = jnp.sqrt(variance)[:, None] * z
        trial = mean[:, None] + sigma[:, None, None] * move
        values = loss_of(unflat(trial.reshape(-1, n)), many_x, many_y).reshape(runs, population)
        order = jnp.argsort(values, axis=1)[:, :parents, None]
        moves = jnp.take_along_axis(move, order, 1)
        step_mean = jnp.einsum("p,rpn->rn", weights, moves)
        mean = mean + sigma[:, None] * step_mean
        path_sigma = (1 - c_sigma) * path_sigma + np.sqrt(c_sigma * (2 - c_sigma) * mass) * step_mean / jnp.sqrt(
            variance
        )
        path_c = (1 - c_c) * path_c + np.sqrt(c_c * (2 - c_c) * mass) * step_mean
        spread = jnp.einsum("p,rpn->rn", weights, moves**2)
        variance = (1 - c_1 - c_mu) * variance + c_1 * path_c**2 + c_mu * spread
        length = jnp.linalg.norm(path_sigma, axis=1)
        return (mean, sigma * jnp.exp(c_sigma / damping * (length / expected - 1)), variance, path_sigma, path_c), None

    start = jnp.stack(chain, 1).reshape(runs, n)
    zero = jnp.zeros_like(start)
    carry = (start, jnp.full(runs, 0.1), jnp.ones_like(start), zero, zero)
    return unflat(jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0])


# --- the fair baselines


def minimum_norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(x) @ y


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Weight decay, converged: the squared error's sum + strength * |W|^2."""
    xt = np.swapaxes(x, -1, -2)
    return np.linalg.solve(xt @ x + strength * np.eye(x.shape[-1]), xt @ y)


def nuclear_norm(x: np.ndarray, y: np.ndarray, strength: float, steps: int = 300) -> np.ndarray:
    """Half the squared error's sum + strength * the sum of singular values, by accelerated proximal gradient."""
    rate = 1 / np.linalg.norm(x, 2, axis=(1, 2))[:, None, None] ** 2
    w = ahead = np.zeros((len(x), x.shape[2], y.shape[2]))
    t = 1.0
    for _ in range(steps):
        u, s, v = np.linalg.svd(ahead - rate * np.swapaxes(x, 1, 2) @ (x @ ahead - y), full_matrices=False)
        new = (u * np.maximum(s - strength * rate[:, 0], 0)[:, None]) @ v
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        w, ahead, t = new, new + (t - 1) / following * (new - w), following
    return w


def tuned(solve: Callable[..., np.ndarray], problems: Problems, strengths: tuple[float, ...]) -> np.ndarray:
    """`solve` on all rows with the strength that is best over all runs and rows, each fifth of them held out once."""
    x, y = problems.x, problems.y
    folds = np.array_split(np.arange(x.shape[1]), 5)

    def error(strength: float) -> float:
        wrong = []
        for held in folds:
            w = solve(np.delete(x, held, 1), np.delete(y, held, 1), strength)
            wrong.append(np.square(x[:, held] @ w - y[:, held]).mean((0, 2)))
        return float(np.concatenate(wrong).mean())

    return solve(x, y, min(strengths, key=error))
