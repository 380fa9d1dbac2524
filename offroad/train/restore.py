"""An agent from a run folder, without executing anything that the folder holds."""

from pathlib import Path
from typing import Any

import jax

from offroad.agents import AGENTS, Agent
from offroad.data import config as configuration
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.run import Run


def load_agent(path: str | Path, seed_index: int = 0, like: Agent | None = None) -> Agent:
    """The agent of a run's newest checkpoint; of several seeds that were trained side by side, the one at `seed_index`.

    `like` is an agent of the same structure and shapes; it is needed only for agents that contain more than their
    configuration tells, such as a `ResidualPolicy` on a controller of your own.

    Raises `OffroadError` if `path` is no run, has no checkpoint yet or was written by another version.
    """
    run = Run.open(path)
    found = run.load_latest()
    if found is None:
        raise OffroadError(
            f"the run '{run.path}' has no checkpoint yet; wait for its first one or train it with --resume"
        )
    saved, like = found[1], template(run.config) if like is None else like
    if "keys" not in saved.names:
        return saved.restore("agent", like)
    # Loops that can train several seeds side by side keep a leading axis of seeds, be it one.
    seed = run.config["seed"]
    seeds = len(seed) if isinstance(seed, list) else 1
    if not 0 <= seed_index < seeds:
        raise OffroadError(f"the run '{run.path}' has {seeds} seeds, so there is no seed_index {seed_index}")
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), like)
    return jax.tree.map(lambda x: x[seed_index], saved.restore("agent", stacked))


def template(config: dict[str, Any]) -> Agent:
    """The agent that a run's configuration describes, with shapes and dtypes in place of arrays."""
    name = config["agent"]
    if name not in AGENTS:
        raise OffroadError(
            f"the run's agent {name!r} is not rebuilt from its configuration alone (as are {', '.join(AGENTS)}); "
            "create it as before training and pass it as load_agent(..., like=agent)"
        )
    kind, options = AGENTS[name]
    spaces = Spaces.from_json(config["spaces"])
    settings = configuration.from_json(options, config["agent_config"])
    return jax.eval_shape(lambda key: kind.create(spaces, settings, key), jax.random.key(0))
