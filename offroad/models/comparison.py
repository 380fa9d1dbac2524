"""Every alternative on the part of a log that none of them has seen: errors over one step and over many.

Shapes: W windows of H steps, n joints, m inputs.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from offroad.errors import OffroadError
from offroad.models.fitting import (
    LEAST,
    FitConfig,
    Problem,
    add_networks,
    fit_linear,
    fit_networks,
    prepare,
    tune_linear,
)
from offroad.models.identification import identify
from offroad.models.logs import Log
from offroad.models.regression import minimise
from offroad.models.residual import Limb, ResidualModel, gather, networks
from offroad.models.simulators import MujocoSimulator, Simulator

Step = Callable[[ndarray, ndarray, ndarray], tuple[ndarray, ndarray]]
"""`(q, qd, u) -> (q, qd)` of a batch, one row of the log later."""


def corrected(simulator: Simulator, model: ResidualModel | None) -> Step:
    """The steps of a simulator, told by a model what to do (None: the log's own inputs)."""
    if model is None:
        return lambda q, qd, u: simulator.step(q, qd, u, np.zeros_like(q))
    told = eqx.filter_jit(model)

    def step(q: ndarray, qd: ndarray, u: ndarray) -> tuple[ndarray, ndarray]:
        control, force = told(*(jnp.asarray(x, jnp.float32) for x in (q, qd, u)))
        return simulator.step(q, qd, np.asarray(control, float), np.asarray(force, float))

    return step


class EndToEnd(eqx.Module):
    """Networks that predict the change of state from state and input, without any simulator."""

    networks: Any
    model: ResidualModel  # its features
    size: Float[Array, " out"]

    def __call__(
        self, q: Float[Array, "*batch n"], qd: Float[Array, "*batch n"], u: Float[Array, "*batch m"]
    ) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
        change = self.size * jax.vmap(lambda net: net(self.model.features(q, qd, u)))(self.networks).mean(0)
        joints = len(self.model.limbs[0].joints)
        for i, limb in enumerate(self.model.limbs):
            own, signs = jnp.array(limb.joints), jnp.array(limb.joint_signs)
            q = q.at[..., own].add(change[..., i, :joints] * signs)
            qd = qd.at[..., own].add(change[..., i, joints:] * signs)
        return q, qd


def fit_end_to_end(problem: Problem) -> EndToEnd:
    """With the networks, the rows and the budget of the residual model, on windows last as well."""
    log, rows, config, model = problem.log, problem.rows, problem.config, problem.model
    nothing = np.zeros((len(rows), 0))
    here, there = (jnp.asarray(gather(_still(model.limbs), log.q[r], log.qd[r], nothing)) for r in (rows, rows + 1))
    change = there - here  # [rows, limbs, 2 joints]
    change = change.reshape(-1, change.shape[-1])
    size = change.std(0) + 1e-12
    x = model.features(*(jnp.asarray(v[rows], jnp.float32) for v in (log.q, log.qd, log.u)))
    x, y = x.reshape(-1, x.shape[-1]), change / size
    hidden = config.hidden or FitConfig.hidden
    nets = networks(x.shape[-1], hidden, y.shape[-1], config.members, jax.random.key(problem.seed))
    late = len(x) - len(x) // 10
    nets = minimise(
        lambda net, batch: jnp.mean((net(batch[0]) - batch[1]) ** 2),
        nets, (x[:late], y[:late]), (x[late:], y[late:]),
        updates=config.updates, batch=config.batch, rate=config.rate, key=jax.random.key(problem.seed + 2),
    )  # fmt: skip
    found = EndToEnd(nets, model, size)
    if not config.tuning:
        return found
    starts = log.windows(config.horizon, config.windows)
    index = starts[:, None] + np.arange(config.horizon + 1)
    data = tuple(jnp.asarray(v[index], jnp.float32) for v in (log.q, log.qd, log.u))
    spread = data[0].std((0, 1)) + 1e-9, data[1].std((0, 1)) + 1e-9

    def loss(net: Any, batch: Any) -> Float[Array, ""]:
        alone = EndToEnd(jax.tree.map(lambda w: w[None], net), model, size)
        q, qd, u = (jnp.swapaxes(v, 0, 1) for v in batch)

        def step(state: Any, now: Any) -> tuple[Any, Array]:
            state = alone(state[0], state[1], now[2])
            wrong = [jnp.mean(((a - b) / s) ** 2) for a, b, s in zip(state, now, spread)]
            return state, wrong[0] + wrong[1]

        _, wrong = jax.lax.scan(step, (q[0], qd[0]), (q[1:], qd[1:], u[:-1]))
        return jnp.log(wrong.mean())

    late = len(starts) - len(starts) // 10
    nets = minimise(
        loss, nets, tuple(v[:late] for v in data), tuple(v[late:] for v in data),
        updates=config.tuning, batch=config.tuning_batch, rate=config.tuning_rate,
        key=jax.random.key(problem.seed + 3),
    )  # fmt: skip
    return eqx.tree_at(lambda m: m.networks, found, nets)


def fit_physical(problem: Problem, seconds: float | int) -> tuple[MujocoSimulator, dict[str, float]]:
    """System identification with the budget of the residual model: as many windows of as many rows, and `seconds` of
    wall time, those of the residual model's fit, unless it converges before."""
    assert isinstance(problem.simulator, MujocoSimulator)
    config, limbs = problem.config, problem.model.limbs
    return identify(
        problem.simulator, problem.log, limbs=limbs, horizon=config.horizon, windows=config.windows, seconds=seconds
    )


def _still(limbs: tuple[Limb, ...]) -> tuple[Limb, ...]:
    """The limbs without inputs."""
    return tuple(replace(limb, inputs=(), input_signs=(), controls=limb.controls) for limb in limbs)


def mean_squared_errors(
    step: Step, log: Log, horizon: int, windows: int = 200
) -> tuple[Float[ndarray, "H n"], Float[ndarray, "H n"]]:
    """Of positions and velocities after 1 to `horizon` rows of predictions fed back, from up to `windows` starts.

    The inputs are the log's. A prediction that is not finite counts as ten times the joint's own spread.
    """
    starts = log.windows(horizon, windows)
    if not len(starts):
        raise OffroadError(f"the held-out log has no episode of more than {horizon} rows; shorten the horizons")
    q, qd = log.q[starts], log.qd[starts]
    limits = 10 * log.q.std(0) + 1e-9, 10 * log.qd.std(0) + 1e-9
    errors: tuple[list[ndarray], list[ndarray]] = [], []
    for t in range(horizon):
        q, qd = step(q, qd, log.u[starts + t])
        for found, true, limit, kept in zip((q, qd), (log.q, log.qd), limits, errors):
            wrong = np.nan_to_num(np.abs(found - true[starts + t + 1]), nan=np.inf)
            kept.append(np.mean(np.minimum(wrong, limit) ** 2, 0))
    return np.array(errors[0]), np.array(errors[1])


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: of every alternative the errors of positions and velocities after each step `[H, n]`."""

    model: ResidualModel
    errors: dict[str, tuple[ndarray, ndarray]]
    spread: tuple[Float[ndarray, "n"], Float[ndarray, "n"]]  # variance of positions and velocities of the held-out log
    dt: float
    identified: dict[str, float]  # physical parameters: factors, or values where there were none
    seconds: dict[str, float]  # wall time of each fit, the checks of the log included where it needs them

    def shares(self, name: str) -> Float[ndarray, "H"]:
        """The squared error of positions after each step as a share of their variance, averaged over joints."""
        return (self.errors[name][0] / np.maximum(self.spread[0], 1e-12)).mean(-1)


def compare(
    simple: Any,
    log: Log,
    *,
    horizon: int | None = None,
    held: float = 0.2,
    form: str = "auto",
    joints: tuple[str, ...] | None = None,
    limbs: Sequence[Limb] | None = None,
    delay: int | None = None,
    config: FitConfig | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Fits every alternative to the first part of the log and grades it on the last share `held` of every episode.

    The alternatives: the simple simulator as it is; its physical parameters identified (MuJoCo only); a linear map
    (identification of the actuators), on single steps and on windows; the residual model, without and with windows; an
    end-to-end network. All but the first know the delay, and all that learn on windows have the same budget (see
    `fit_physical`, `fit_end_to_end`). `horizon` in rows is by default 128, or what the held-out log
    allows; other arguments as of `fit`. `say` is told what comes next.
    """
    seen, unseen = log.split(held)
    if len(seen.starts(1)) < LEAST:
        raise OffroadError(
            f"the log has {len(log.q)} rows, of which {len(unseen.q)} are kept to grade what was learnt; that leaves "
            f"{len(seen.starts(1))} steps to learn from, expected at least {LEAST}; record for longer"
        )
    clock, seconds = time.monotonic, {}
    say("checking the log")
    began = clock()
    problem = prepare(
        simple, seen, form=form, joints=joints, limbs=limbs, delay=delay, config=config, ignore=ignore, seed=seed
    )
    prepared = clock() - began
    late = unseen.delayed(problem.model.delay)
    longest = int(np.unique(late.episode, return_counts=True)[1].max(initial=0)) - 1
    horizon = min(128, longest) if horizon is None else horizon
    simulator, steps, identified = problem.simulator, {}, {}
    errors = {}
    if log.u.shape[1] == len(simulator.controls):
        errors["simple"] = mean_squared_errors(corrected(simulator, None), unseen, horizon)

    def learnt(name: str, learn: Callable[[], ResidualModel], before: str | None = None) -> ResidualModel:
        say(name)
        began = clock()
        model = learn()
        seconds[name] = clock() - began + (seconds[before] if before else prepared)
        steps[name] = corrected(simulator, model)
        return model

    single, windows = "linear identification", "linear identification, windows"
    linear = learnt(single, lambda: fit_linear(problem))
    tuned = learnt(windows, lambda: tune_linear(problem, linear), single)
    learnt("residual, single steps", lambda: fit_networks(problem, linear), single)
    model = learnt("residual", lambda: add_networks(problem, tuned), windows)
    if isinstance(simulator, MujocoSimulator) and log.u.shape[1] == len(simulator.controls):
        say("identifying physical parameters")
        began = clock()
        fitted, identified = fit_physical(problem, seconds["residual"])
        seconds["physical identification"] = clock() - began
        steps["physical identification"] = corrected(fitted, None)
    say("end-to-end network")
    began = clock()
    plain = eqx.filter_jit(fit_end_to_end(problem))
    seconds["end-to-end network"] = clock() - began
    steps["end-to-end network"] = lambda *x: tuple(
        np.asarray(v, float) for v in plain(*(jnp.asarray(a, jnp.float32) for a in x))
    )
    say("errors on the held-out log")
    errors |= {name: mean_squared_errors(step, late, horizon) for name, step in steps.items()}
    return Comparison(model, errors, (late.q.var(0), late.qd.var(0)), log.dt, identified, seconds)
