"""Updates per second of offline learning, beside d3rlpy: the same data, network sizes, batch, machine and one core.

2 x 256 ReLU units, batch 256, CQL with 10 actions from each of its three proposals and no Lagrange multiplier, on
generated data with the sizes of D4RL's ant mazes (29 observations, 8 actions). Timed is what a user calls, sampling and
logging included: `train.offline(...)` here, `algo.fit(...)` there, each after a first call that is not timed. Both
libraries sit in processes of their own, pinned to one core, and take turns; CPU time tells more than wall time where
other programs run. Beside it stands how much arithmetic an update is (XLA's count), and so what share of the core's
speed is used: that of a product of two matrices of 512 by 512 in the same process. `cql lean` has the conservative term
on 64 of the 256 states with 4 actions from each proposal; d3rlpy has no such setting.

    python benchmarks/offline.py --peer PYTHON    # that of an environment with d3rlpy; writes results/offline.json, .md
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from machine import machine

UPDATES = {"bc": 1000, "td3_bc": 400, "iql": 300, "cql": 100, "cql lean": 200}
ROWS, EPISODE, OBSERVATION, ACTION, HIDDEN, BATCH = 100_000, 1000, 29, 8, [256, 256], 256
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def columns():
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((ROWS, OBSERVATION), np.float32),
        "actions": rng.uniform(-0.9, 0.9, (ROWS, ACTION)).astype(np.float32),
        "rewards": rng.standard_normal(ROWS, np.float32),
    }


def ours():
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
    from gymnasium import spaces

    from offroad import train
    from offroad.agents import AGENTS
    from offroad.data.dataset import Dataset
    from offroad.data.spaces import Spaces

    ends = np.arange(ROWS) % EPISODE == EPISODE - 1
    dataset = Dataset(**columns(), terminated=ends, truncated=np.zeros(ROWS, bool))
    of_data = Spaces(spaces.Box(-np.inf, np.inf, (OBSERVATION,)), spaces.Box(-1, 1, (ACTION,)))
    options = {"cql": {"samples": 10}, "cql lean": {"samples": 4, "conservative_states": 64}}

    def create(name):
        kind, config = AGENTS[name.split()[0]]
        settings = config(hidden=tuple(HIDDEN), batch=BATCH, **options.get(name, {}))
        return kind.create(of_data, settings, jax.random.key(0))

    def learn(name, updates):
        agent = create(name)
        # In whole chunks, so that nothing is left to compile.
        return lambda: jax.block_until_ready(train.offline(agent, dataset, updates, progress=False).agent)

    def arithmetic(name):
        """Floating-point operations of an update."""
        batch = dataset.transitions(np.arange(BATCH))
        update = eqx.filter_jit(lambda agent, batch, key: agent.update(batch, key))
        return update.lower(create(name), batch, jax.random.key(0)).compile().compiled.cost_analysis()["flops"]

    def product(_):
        """Floating-point operations per second of CPU time in products of two matrices of 512 by 512."""
        x, multiply = jnp.ones((512, 512)), jax.jit(lambda x: jax.lax.fori_loop(0, 400, lambda _, y: y @ x / 512, x))
        best = min(timed(lambda: jax.block_until_ready(multiply(x)))[0] for _ in range(4))
        return 400 * 2 * 512**3 / best

    return learn, {"versions": lambda _: {"jax": version("jax")}, "flops": arithmetic, "product": product}


def theirs():
    import d3rlpy
    import numpy as np
    import torch
    from d3rlpy.algos import BCConfig, CQLConfig, IQLConfig, TD3PlusBCConfig
    from d3rlpy.logging import NoopAdapterFactory

    torch.set_num_threads(1)
    ends = (np.arange(ROWS) % EPISODE == EPISODE - 1).astype(np.float32)
    dataset = d3rlpy.dataset.MDPDataset(**columns(), terminals=ends)
    encoder = d3rlpy.models.VectorEncoderFactory(HIDDEN)
    both = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder, "batch_size": BATCH}
    configs = {
        "bc": lambda: BCConfig(batch_size=BATCH, encoder_factory=encoder),
        "td3_bc": lambda: TD3PlusBCConfig(**both),
        "iql": lambda: IQLConfig(**both, value_encoder_factory=encoder),
        "cql": lambda: CQLConfig(**both, n_action_samples=10, alpha_learning_rate=0.0),
    }

    def learn(name, updates):
        algorithm = configs[name]().create(device=False)
        algorithm.build_with_dataset(dataset)
        options = {"n_steps_per_epoch": updates, "show_progress": False, "save_interval": 10**9}
        return lambda: algorithm.fit(dataset, n_steps=updates, logger_adapter=NoopAdapterFactory(), **options)

    return learn, {"versions": lambda _: {"d3rlpy": version("d3rlpy"), "torch": version("torch")}}


def timed(call):
    """Seconds of CPU and of wall time."""
    began = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def work(make):
    """Answers every line "WHAT NAME": for a number of updates the seconds of CPU and wall time that they take."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    learn, others = make()
    for line in sys.stdin:
        what, name = line.strip().split(maxsplit=1)
        found = others[what](name) if what in others else timed(learn(name, int(what)))
        print(json.dumps(found), file=answers, flush=True)


class Worker:
    def __init__(self, python, kind):
        root = Path(__file__).parents[1]
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(root) if kind == "ours" else ""}
        command = [python, __file__, "--worker", kind]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, cwd=root)

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agents", nargs="+", default=list(UPDATES), choices=UPDATES)
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work({"ours": ours, "theirs": theirs}[options.worker])
    workers = {"ours": Worker(sys.executable, "ours"), "d3rlpy": Worker(options.peer, "theirs")}
    runs = {}
    for name in options.agents:
        runs[name] = {who: [] for who in workers if who == "ours" or name != "cql lean"}
        for who in runs[name]:
            workers[who].ask(f"{UPDATES[name] if who == 'ours' else UPDATES[name] // 20} {name}")
        for _ in range(options.rounds):
            for who, times in runs[name].items():
                times.append([round(x, 3) for x in workers[who].ask(f"{UPDATES[name]} {name}")])
                print(name, who, times[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    flops = {name: workers["ours"].ask(f"flops {name}") for name in options.agents}
    product = workers["ours"].ask("product all")
    versions = {}
    for worker in workers.values():
        versions |= worker.ask("versions all")
        worker.process.stdin.close()
        worker.process.wait()
    results = {}
    for name, each in runs.items():
        rates = {
            who: {
                "updates_per_cpu_second": round(UPDATES[name] / min(cpu for cpu, _ in times), 1),
                "updates_per_second": round(UPDATES[name] / min(wall for _, wall in times), 1),
                "cpu_and_wall_seconds": times,
            }
            for who, times in each.items()
        }
        if "d3rlpy" in rates:
            ratio = rates["ours"]["updates_per_cpu_second"] / rates["d3rlpy"]["updates_per_cpu_second"]
            rates["times_as_fast_by_cpu"] = round(ratio, 2)
        used = flops[name] * rates["ours"]["updates_per_cpu_second"]
        arithmetic = {"flops_per_update": flops[name], "share_of_the_cores_speed": round(used / product, 2)}
        results[name] = {"updates": UPDATES[name], **arithmetic, **rates}
    path = Path(__file__).parent / "results" / "offline.json"
    old = json.loads(path.read_text())["results"] if path.exists() and len(options.agents) < len(UPDATES) else {}
    found = {
        "machine": machine() | {"used": 1},
        "versions": versions,
        "flops_per_second_of_a_matrix_product": product,
        "results": {**old, **results},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(found))
    print(path.with_suffix(".md").read_text())


def table(found):
    """The results as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        "| agent | updates per second of CPU time | d3rlpy | times as fast | share of the core's speed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, each in found["results"].items():
        rates = [f"{each[who]['updates_per_cpu_second']:,.0f}" if who in each else "" for who in ("ours", "d3rlpy")]
        ratio = f"{each['times_as_fast_by_cpu']:.1f}" if "d3rlpy" in each else ""
        share = f"{100 * each['share_of_the_cores_speed']:.0f} %"
        lines.append(f"| {name} | {rates[0]} | {rates[1]} | {ratio} | {share} |")
    about = f"One core of {found['machine']['cpu'].strip()} that other programs used too; {versions}."
    how = "The best run of those in `benchmarks/results/offline.json`, after compilation; by `benchmarks/offline.py`."
    return "\n".join([*lines, "", about, how]) + "\n"


if __name__ == "__main__":
    main()
