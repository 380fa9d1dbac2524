"""Ways to compute the convolutions of an Atari-sized network on a CPU, with their weight gradients.

`offroad.nets.conv.convolve` is the first of them. Each is timed by itself and inside `lax.scan`, where updates run.

    python benchmarks/conv.py        # writes benchmarks/results/conv.json
"""

import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from offroad.nets.conv import convolve

BATCH, SIZE, DEPTH = 64, 84, 4
LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
REPEATS, STEPS = 3, 2


def channels_first(layer, x):
    y = jax.lax.conv_general_dilated(jnp.moveaxis(x, -1, 1), layer.weight, layer.stride, "VALID")
    return jnp.moveaxis(y + layer.bias, 1, -1)


def patches(layer, x):
    """Each output's inputs side by side, then one matrix product."""
    (k, _), (s, _) = layer.kernel_size, layer.stride
    rows, columns = ((n - k) // s + 1 for n in x.shape[1:3])
    parts = [
        x[:, i : i + s * rows : s, j : j + s * columns : s][:, :rows, :columns] for i in range(k) for j in range(k)
    ]
    weight = layer.weight.transpose(2, 3, 1, 0).reshape(-1, layer.out_channels)
    return jnp.concatenate(parts, -1) @ weight + layer.bias[:, 0, 0]


@jax.custom_vjp
def _patch_gradient(layer, x):
    return convolve(layer, x)


def _forward(layer, x):
    return convolve(layer, x), (layer, x)


def _backward(saved, g):
    layer, x = saved
    (dx,) = jax.vjp(lambda x: convolve(layer, x), x)[1](g)
    (dlayer,) = jax.vjp(lambda layer: patches(layer, x), layer)[1](g)
    return dlayer, dx


_patch_gradient.defvjp(_forward, _backward)


def space_to_depth(layer, x):
    """Blocks of stride x stride pixels become channels; a convolution of stride 1 remains."""
    (k, _), (s, _) = layer.kernel_size, layer.stride
    if k % s:
        return convolve(layer, x)
    n, h, w, c = x.shape
    x = x.reshape(n, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // s, w // s, -1)
    weight = layer.weight.reshape(layer.out_channels, c, k // s, s, k // s, s).transpose(2, 4, 3, 5, 1, 0)
    weight = weight.reshape(k // s, k // s, -1, layer.out_channels)
    y = jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer.bias[:, 0, 0]


def main():
    layers, depth = [], DEPTH
    for (out, kernel, stride), key in zip(LAYERS, jax.random.split(jax.random.key(0), 3)):
        layers.append(eqx.nn.Conv2d(depth, out, kernel, stride, key=key))
        depth = out
    layers = tuple(layers)
    images = jax.random.uniform(jax.random.key(1), (BATCH, SIZE, SIZE, DEPTH))
    ways = {
        "channels_last": convolve,
        "channels_first": channels_first,
        "patches": patches,
        "patches_in_weight_gradient": _patch_gradient,
        "space_to_depth": space_to_depth,
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
