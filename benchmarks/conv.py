"""Ways to compute the convolutions of an Atari-sized network on a CPU, with their weight gradients.

Each is timed by itself and inside `lax.scan`, where updates run: `gradient` and `in_scan`, milliseconds a step.

    python benchmarks/conv.py        # writes benchmarks/results/conv.json
"""

import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from offroad.nets.conv import by_matrix_product, by_xla

BATCH, SIZE, DEPTH = 64, 84, 4
LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
REPEATS, STEPS = 2, 2


def channels_first(layer, x):
    y = jax.lax.conv_general_dilated(jnp.moveaxis(x, -1, 1), layer.weight, layer.stride, "VALID")
    return jnp.moveaxis(y + layer.bias, 1, -1)


@jax.custom_vjp
def weight_gradient_only(layer, x):
    """XLA's convolution with a matrix product in place of its weight gradient."""
    return by_xla(layer, x)


def _forward(layer, x):
    return by_xla(layer, x), (layer, x)


def _backward(saved, g):
    layer, x = saved
    (dx,) = jax.vjp(lambda x: by_xla(layer, x), x)[1](g)
    (dlayer,) = jax.vjp(lambda layer: by_matrix_product(layer, x), layer)[1](g)
    return dlayer, dx


weight_gradient_only.defvjp(_forward, _backward)


def main():
    layers, depth = [], DEPTH
    for (out, kernel, stride), key in zip(LAYERS, jax.random.split(jax.random.key(0), 3)):
        layers.append(eqx.nn.Conv2d(depth, out, kernel, stride, key=key))
        depth = out
    layers = tuple(layers)
    images = jax.random.uniform(jax.random.key(1), (BATCH, SIZE, SIZE, DEPTH))
    ways = {
        "matrix_product": by_matrix_product,
        "xla_channels_last": by_xla,
        "xla_channels_first": channels_first,
        "matrix_product_in_weight_gradient": weight_gradient_only,
    }
    calls = {}
    for name, way in ways.items():

        def loss(layers, x, way=way):
            for layer in layers:
                x = jax.nn.relu(way(layer, x))
            return jnp.mean(x**2)

        def steps(layers, x, loss=loss):
            def step(layers, _):
                return jax.tree.map(lambda w, g: w - 1e-3 * g, layers, jax.grad(loss)(layers, x)), None

            return jax.lax.scan(step, layers, length=STEPS)[0]

        calls[name] = {"gradient": (jax.jit(jax.grad(loss)), 1), "in_scan": (jax.jit(steps), STEPS)}
    times = {name: {kind: [] for kind in kinds} for name, kinds in calls.items()}
    for _ in range(REPEATS + 1):  # interleaved, so that other load meets all alike
        for name, kinds in calls.items():
            for kind, (f, n) in kinds.items():
                start = time.process_time(), time.perf_counter()
                jax.block_until_ready(f(layers, images))
                times[name][kind].append([(time.process_time() - start[0]) / n, (time.perf_counter() - start[1]) / n])
    result = {
        name: {
            kind: {
                "cpu_ms": round(1e3 * min(c for c, _ in t[1:]), 1),
                "wall_ms": round(1e3 * min(w for _, w in t[1:]), 1),
            }
            for kind, t in kinds.items()
        }
        for name, kinds in times.items()
    }
    out = {"jax": jax.__version__, "images": [BATCH, SIZE, SIZE, DEPTH], "layers": LAYERS, "best_of": REPEATS, **result}
    path = Path(__file__).parent / "results" / "conv.json"
    path.write_text(json.dumps(out, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
