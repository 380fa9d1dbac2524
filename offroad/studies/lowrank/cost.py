"""What the factors cost in training, and that they leave nothing behind."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offroad.nets.mlp import MLP
from offroad.nets.overparameterize import Product, collapse, expand

SIZES = (24, 256, 256, 8)
BATCH = 1024


def factor_by_factor(net: MLP, x: Any) -> Any:
    """Applies one factor after another to the batch, as a stack of linear layers would."""
    for i, layer in enumerate(net.layers):
        weight: Any = layer.weight
        for factor in weight.factors if isinstance(weight, Product) else ():
            x = x @ factor[0].T
        x = x + layer.bias
        x = jax.nn.relu(x) if i < len(net.layers) - 1 else x
    return x


def measure(seed: int, repeats: int) -> dict[str, float]:
    """CPU time of a training step relative to the plain network's, the error of collapsing, instructions afterwards."""
    key = jax.random.key(seed)
    plain = MLP(SIZES, key=key, activation="relu", init="uniform")
    nets = {depth: expand(plain, depth, key=key) for depth in (2, 4)}
    x = jax.random.normal(key, (BATCH, SIZES[0]))
    y = jnp.ones((BATCH, SIZES[-1]))
    steps: dict[str, Callable[[], float]] = {"plain": _timed(lambda net, x: net(x), plain, x, y)}
    for depth, net in nets.items():
        steps[f"d={depth}, factors first"] = _timed(lambda net, x: net(x), net, x, y)
        steps[f"d={depth}, factor by factor"] = _timed(factor_by_factor, net, x, y)
    for step in steps.values():
        step()  # compiles
    rounds = [{name: step() for name, step in steps.items()} for _ in range(repeats)]
    times = {name: float(np.median([r[name] for r in rounds])) for name in steps}
    found = {f"{name}: time relative to plain": times[name] / times["plain"] for name in steps if name != "plain"}
    chain = factor_by_factor(nets[4], x)
    found["collapse: largest error relative to the largest output"] = float(
        jnp.abs(collapse(nets[4])(x) - chain).max() / jnp.abs(chain).max()
    )
    found["collapse: instructions more than the plain network"] = _instructions(collapse(nets[4]), x) - _instructions(
        plain, x
    )
    return found


def _timed(apply: Callable[[Any, Any], Any], net: MLP, x: Any, y: Any) -> Callable[[], float]:
    """A call takes ten steps of Adam; it returns their CPU time in seconds."""
    adam: Any = optax.adam(1e-3)

    @jax.jit
    def step(net: MLP, state: Any) -> Any:
        gradient = jax.grad(lambda n: jnp.mean(jnp.square(apply(n, x) - y)))(net)
        change, state = adam.update(gradient, state)
        return optax.apply_updates(net, change), state  # pyright: ignore[reportArgumentType]

    state = adam.init(net)

    def call() -> float:
        now: Any = (net, state)
        began = time.process_time()
        for _ in range(10):
            now = step(*now)
        jax.block_until_ready(now)
        return time.process_time() - began

    return call


def _instructions(net: MLP, x: Any) -> int:
    """Of the compiled program that acts on a batch."""
    return jax.jit(lambda net, x: net(x)).lower(net, x).compile().as_text().count(" = ")  # pyright: ignore[reportOptionalMemberAccess]
