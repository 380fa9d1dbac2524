"""Two or five critics, 2 x 256 ReLU units on 23 inputs, batch 256: a forward and backward pass on a CPU.

Inside `lax.scan`, as agents' updates run: stacked (`offroad.nets.ensemble.apply_ensemble`) against one call per member.

    python benchmarks/ensemble.py    # writes benchmarks/results/ensemble.json
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP

REPEATS, STEPS = 15, 10


def one_by_one(members, x):
    n = members.layers[0].weight.shape[0]
    return jnp.stack([jax.tree.map(lambda leaf, i=i: leaf[i], members)(x) for i in range(n)])


def main():
    x = jax.random.normal(jax.random.key(1), (256, 23))
    calls = {}
    for n in (2, 5):
        members = ensemble(
            lambda key: MLP([23, 256, 256, 1], key=key, activation="relu", init="uniform"), n, jax.random.key(0)
        )
        for name, way in {"stacked": apply_ensemble, "one_by_one": one_by_one}.items():

            def steps(members, way=way):
                def step(members, _):
                    grads = jax.grad(lambda m: jnp.mean(way(m, x) ** 2))(members)
                    return jax.tree.map(lambda w, g: w - 1e-3 * g, members, grads), None

                return jax.lax.scan(step, members, length=STEPS)[0]

            calls[f"{n}_{name}"] = (jax.jit(steps), members)
    times = {name: [] for name in calls}
    for _ in range(REPEATS + 1):  # interleaved, so that other load meets all alike
        for name, (f, members) in calls.items():
            start = time.process_time(), time.perf_counter()
            jax.block_until_ready(f(members))
            times[name].append([(time.process_time() - start[0]) / STEPS, (time.perf_counter() - start[1]) / STEPS])
    result = {
        name: {"cpu_ms": round(1e3 * min(c for c, _ in t[1:]), 2), "wall_ms": round(1e3 * min(w for _, w in t[1:]), 2)}
        for name, t in times.items()
    }
    path = Path(__file__).parent / "results" / "ensemble.json"
    path.write_text(json.dumps({"jax": jax.__version__, "best_of": REPEATS, **result}, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
