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

    Of a `Curious` agent it is the one inside, which acts: the configuration does not tell all of its reward.

    `like` is an agent of the same structure and shapes; it is needed only for agents that contain more than their
    configuration tells, such as a `ResidualPolicy` on a controller of your own, or to have a `Curious` agent whole.

    Raises `OffroadError` if `path` is no run, has no checkpoint yet or was written by another version.
    """
    run = Run.open(path)
    found = run.load_latest()
    if found is None:
        raise OffroadError(
            f"the run '{run.path}' has no checkpoint yet; wait for its first one or train it with --resume"
        )
    saved, at = found[1], ""
    if like is None:
        config, at = _inside(run.config)
        like = template(config)
    if "keys" not in saved.names:
        return saved.restore("agent", like, at)
    # Loops that can train several seeds side by side keep a leading axis of seeds, be it one.
    seed = run.config["seed"]
    seeds = len(seed) if isinstance(seed, list) else 1
    if not 0 <= seed_index < seeds:
        raise OffroadError(f"the run '{run.path}' has {seeds} seeds, so there is no seed_index {seed_index}")
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), like)
    return jax.tree.map(lambda x: x[seed_index], saved.restore("agent", stacked, at))


def _inside(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration as if the agent inside of a `Curious` one had been trained, and where that agent is."""
    if config["agent"] != "curious":
        return config, ""
    inner = config["agent_config"]["agent"]
    name = next((name for name, (_, options) in AGENTS.items() if options.__name__ == inner["type"]), inner["type"])
    return config | {"agent": name, "agent_config": inner}, ".agent"


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
