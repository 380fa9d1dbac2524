"""From a simple simulator and a log to a correction: targets, linear map, networks, and steps in a row.

1. Targets: what the simulator must be told to make each step of the log, by discrete inverse dynamics.
2. A linear map of state and input to the targets by least squares: a system identification, and the floor.
3. Bounded networks for what the linear map leaves over.
4. Both again on windows of several steps. There the error e of a simulation along the log obeys, to first order,
   e' = d + A e + B (k(s + e, u) - target), whose matrices come from finite differences of the simulator: it need not
   be differentiable, and gradients flow through the feedback of the model's own mistakes.

Shapes: T rows, n joints, W windows of H steps, o outputs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from offroad.errors import OffroadError, unknown
from offroad.models import checks
from offroad.models.logs import Log
from offroad.models.regression import minimise
from offroad.models.residual import FORMS, Limb, ResidualModel, empty, gather, networks, whole
from offroad.models.simulators import Simulator, simulator

UNACTUATED = 0.05
"""The share of a joint's acceleration that no control produces, above which inputs cannot correct the simulator."""

LEAST = 200
"""The fewest steps of a log that anything is learnt from."""


@dataclass(frozen=True)
class FitConfig:
    """How to fit; the defaults are meant to do for logs of seconds to minutes."""

    hidden: tuple[int, ...] = (64, 64)  # none: only the linear map
    members: int = 5
    updates: int = 2000  # of the networks on single steps
    batch: int = 512
    rate: float = 3e-3
    horizon: int = 64  # steps in a row
    windows: int = 600
    tuning: int = 300  # updates on windows; 0: none
    tuning_batch: int = 16
    tuning_rate: float = 1e-3
    max_delay: int = 10  # rows
    bound: float = 1.5  # of the networks, in multiples of the 99.9 % quantile of what they must give


@dataclass(frozen=True)
class Problem:
    """A log, freed of its delay, with the targets of its rows."""

    simulator: Simulator
    log: Log
    rows: ndarray  # those followed by another one
    targets: Float[ndarray, "rows o"]
    model: ResidualModel  # that adds nothing: what is known before learning
    config: FitConfig
    seed: int


def fit(
    simple: Any,
    log: Log,
    *,
    form: str = "auto",
    joints: tuple[str, ...] | None = None,
    limbs: Sequence[Limb] | None = None,
    delay: int | None = None,
    config: FitConfig | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> ResidualModel:
    """A correction that makes the simple simulator do what the log shows.

    **Arguments:** `simple`: a `Simulator`, a MuJoCo model, or an environment that has one. `form`: "action" or "delta"
    (new controls), "dynamics" (additional forces), "auto": "action" if controls can make every step of the log, else
    "dynamics". `joints`: those of a MuJoCo model that the log holds; the others are held. `limbs`: parts that share
    weights; by default the robot is one. `delay`: rows between an input and its effect; by default it is searched for.
    `ignore`: names in `checks.CHECKS` of checks to leave out.

    Raises `OffroadError` for a log that cannot be used, with what is wrong.
    """
    problem = prepare(
        simple, log, form=form, joints=joints, limbs=limbs, delay=delay, config=config, ignore=ignore, seed=seed
    )
    return add_networks(problem, tune_linear(problem, fit_linear(problem)))


def prepare(
    simple: Any,
    log: Log,
    *,
    form: str = "auto",
    joints: tuple[str, ...] | None = None,
    limbs: Sequence[Limb] | None = None,
    delay: int | None = None,
    config: FitConfig | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Problem:
    """Checks the log, finds its delay and its targets, and decides the form; arguments as of `fit`."""
    if form not in (*FORMS, "auto"):
        raise unknown("form", form, (*FORMS, "auto"))
    config, notes = config or FitConfig(), list(log.notes)
    checks.check_ignored(ignore)
    simple = simulator(simple, joints).with_dt(log.dt)
    checks.check_sizes(log, simple)
    inputs, controls = log.u.shape[1], len(simple.controls)
    if inputs != controls and form in ("delta", "dynamics"):
        raise OffroadError(
            f"the form {form!r} passes the real inputs on, but the log has {inputs} and the simulator {controls} "
            "controls; "
            "use form='action'"
        )
    if "constant" not in ignore:
        checks.check_constant(log)
    if "units" not in ignore:
        checks.check_ranges(log, simple)
        checks.check_velocities(log)
    if len(log.starts(1)) < LEAST:
        raise OffroadError(f"the log has {len(log.starts(1))} steps, expected at least {LEAST}; record for longer")
    if delay is not None and (delay < 0 or len(log.starts(delay + 1)) < LEAST):
        raise OffroadError(
            f"the delay is {delay} rows, expected 0 or more that leave at least {LEAST} steps of the log's "
            f"{len(log.starts(1))}"
        )
    rows, needed, forces = targets(simple, log)
    if "units" not in ignore:
        checks.check_size(log, needed, simple)
    lag, explained, without = checks.search_delay(log, needed, rows, config.max_delay)
    if "signal" not in ignore:
        checks.check_signal(log, explained, without)
    if delay is None and lag:
        notes.append(f"inputs take effect {lag} rows ({lag * log.dt:.3g}) late")
    lag = lag if delay is None else delay
    if lag:
        log = log.delayed(lag)
        rows, needed, forces = targets(simple, log)
    if "units" not in ignore:
        checks.check_gauge(log, rows, needed)
    if form != "dynamics" and "actuation" not in ignore:
        change = log.qd[rows + 1] - log.qd[rows]
        zero = np.zeros_like(forces)
        left = log.qd[rows + 1] - simple.step(log.q[rows], log.qd[rows], needed, zero)[1]
        share = checks.unactuated(log, rows, left, change)
        if share.max(initial=0.0) > UNACTUATED:
            joint = int(np.argmax(share))
            found = (
                f"no control can correct the simulator: {100 * share[joint]:.0f} % of the acceleration of joint "
                f"{simple.joints[joint]!r} is out of the reach of all {controls} controls"
            )
            if form != "auto" or inputs != controls:
                raise OffroadError(f"{found}; use form='dynamics', or correct the simulator by hand")
            notes.append(f"{found}: forces are added to its dynamics instead")
            form = "dynamics"
    form = "action" if form == "auto" else form
    if form != "dynamics" and not simple.touches(log.q):
        notes.append(
            "the inertia gauge is not identified: nothing in the log touched anything, so that forces that are too "
            "large "
            "and masses that are too large look alike; add a log with contact or a known load if contact matters"
        )
    limbs = tuple(limbs or (whole(log.q.shape[1], inputs, controls),))
    _check_limbs(limbs, log, controls)
    target = forces if form == "dynamics" else needed - start_of(simple, log, rows) * (form == "delta")
    model = empty(
        limbs, None, 0, form=form, joints=simple.joints, controls=simple.controls, inputs=inputs, dt=log.dt,
        delay=lag, notes=tuple(notes),
    )  # fmt: skip
    return Problem(simple, log, rows, target, _scaled(model, log, rows, target), config, seed)


def start_of(simple: Simulator, log: Log, rows: ndarray) -> Float[ndarray, "rows c"]:
    """The controls that the simulator would be given without a correction: the log's inputs, if there are as many."""
    controls = len(simple.controls)
    return log.u[rows] if log.u.shape[1] == controls else np.zeros((len(rows), controls))


def targets(simple: Simulator, log: Log) -> tuple[ndarray, ndarray, ndarray]:
    """The rows that are followed by another one; controls, and forces besides the log's inputs, that lead there."""
    rows = log.starts(1)
    here, there = (log.q[rows], log.qd[rows]), (log.q[rows + 1], log.qd[rows + 1])
    return rows, *simple.inverse(*here, *there, start_of(simple, log, rows))


def _check_limbs(limbs: tuple[Limb, ...], log: Log, controls: int) -> None:
    sizes = {(len(x.joints), len(x.inputs), len(x.controls)) for x in limbs}
    if len(sizes) > 1:
        raise OffroadError(f"limbs share their weights, but differ in size (joints, inputs, controls): {sorted(sizes)}")
    for name, size in (("joints", log.q.shape[1]), ("inputs", log.u.shape[1]), ("controls", controls)):
        largest = max((i for limb in limbs for i in getattr(limb, name)), default=-1)
        if largest >= size:
            raise OffroadError(f"a limb names {name[:-1]} {largest}, but there are {size}: 0 to {size - 1}")


def _local(problem_model: ResidualModel, target: Float[ndarray, "rows o"]) -> Float[ndarray, "rows limbs out"]:
    """The targets of each limb in its own frame."""
    parts = []
    for limb in problem_model.limbs:
        dynamics = problem_model.form == "dynamics"
        index, signs = (limb.joints, limb.joint_signs) if dynamics else (limb.controls, limb.control_signs)
        parts.append(target[:, list(index)] * np.array(signs))
    return np.stack(parts, 1)


def _scaled(model: ResidualModel, log: Log, rows: ndarray, target: ndarray) -> ResidualModel:
    """The model with the scales, the gate and the ranges of the log."""
    x = np.asarray(gather(model.limbs, log.q[rows], log.qd[rows], log.u[rows]), float)
    x = x.reshape(-1, x.shape[-1])
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
    z = (x - mean) / scale
    precision = np.linalg.inv(np.cov(z.T) + 1e-3 * np.eye(z.shape[1]))
    distance = np.sqrt(np.einsum("ni,ij,nj->n", z, precision, z))
    unit = np.maximum(_local(model, target).reshape(-1, model.unit.shape[0]).std(0), 1e-12)
    values = mean, scale, unit, precision, np.quantile(distance, 0.995), z.min(0), z.max(0)
    return eqx.tree_at(
        lambda m: (m.mean, m.scale, m.unit, m.precision, m.radius, m.low, m.high),
        model,
        tuple(jnp.asarray(v, jnp.float32) for v in values),
    )


# --- what is learnt --------------------------------------------------------------------------------------------------


def _rows(problem: Problem) -> tuple[Array, Array]:
    """Features and targets of all limbs as rows `[rows * limbs, ...]`, standardised, in order of time."""
    log, rows, model = problem.log, problem.rows, problem.model
    x = model.features(*(jnp.asarray(v[rows], jnp.float32) for v in (log.q, log.qd, log.u)))
    y = jnp.asarray(_local(model, problem.targets), jnp.float32) / model.unit
    return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])


def fit_linear(problem: Problem) -> ResidualModel:
    """Least squares on single steps."""
    x, y = (np.asarray(v, float) for v in _rows(problem))
    x = np.column_stack([x, np.ones(len(x))])
    fit = np.linalg.solve(x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1]), x.T @ y)
    return eqx.tree_at(lambda m: m.linear, problem.model, jnp.asarray(fit.T, jnp.float32))


def tune_linear(problem: Problem, model: ResidualModel) -> ResidualModel:
    """The linear map again on windows of several steps."""
    if not problem.config.tuning:
        return model
    stacked = model.linear[None]
    return eqx.tree_at(lambda m: m.linear, model, _tuned(problem, model, lambda w: _with_linear(model, w), stacked)[0])


def add_networks(problem: Problem, model: ResidualModel) -> ResidualModel:
    """Networks for what the linear map leaves over: on single steps, then on windows."""
    model = fit_networks(problem, model)
    if model.networks is None or not problem.config.tuning:
        return model

    def alone(member: Any) -> ResidualModel:
        one = jax.tree.map(lambda w: w[None], member)
        return eqx.tree_at(lambda m: m.networks, model, one)

    return eqx.tree_at(lambda m: m.networks, model, _tuned(problem, model, alone, model.networks))


def fit_networks(problem: Problem, model: ResidualModel) -> ResidualModel:
    """Networks for what the linear map leaves over, on single steps alone."""
    config = problem.config
    if not config.hidden:
        return model
    x, y = _rows(problem)
    left = y - (x @ model.linear[:, :-1].T + model.linear[:, -1])
    bound = config.bound * jnp.quantile(jnp.abs(left), 0.999, axis=0) + 1e-6
    drawn, trained = jax.random.split(jax.random.key(problem.seed))
    nets = networks(x.shape[-1], config.hidden, y.shape[-1], config.members, drawn)
    size = jnp.maximum(left.std(0), 1e-9)

    def loss(net: Any, batch: Any) -> Float[Array, ""]:
        return jnp.mean(((bound * jnp.tanh(net(batch[0])) - batch[1]) / size) ** 2)

    late = len(x) - len(x) // 10
    nets = minimise(
        loss, nets, (x[:late], left[:late]), (x[late:], left[late:]),
        updates=config.updates, batch=config.batch, rate=config.rate, key=trained,
    )  # fmt: skip
    return eqx.tree_at(lambda m: (m.networks, m.bound), model, (nets, bound), is_leaf=lambda v: v is None)


def _with_linear(model: ResidualModel, weights: Any) -> ResidualModel:
    return eqx.tree_at(lambda m: m.linear, model, weights)


def _tuned(problem: Problem, model: ResidualModel, build: Any, members: Any) -> Any:
    """The members, such that `build(member)` errs least over windows of the log."""
    data = _windows(problem)
    config, late = problem.config, len(data["q"]) - len(data["q"]) // 10
    n = problem.log.q.shape[1]
    forces = model.form == "dynamics"
    size = jnp.concatenate([data["q"].std((0, 1)), data["qd"].std((0, 1))]) + 1e-9

    def loss(member: Any, batch: Any) -> Float[Array, ""]:
        learnt = build(member)

        def step(error: Array, now: Any) -> tuple[Array, Array]:
            control, force = learnt(now["q"] + error[:, :n], now["qd"] + error[:, n:], now["u"])
            wrong = (force if forces else control) - now["given"]
            after = jnp.einsum("wij,wj->wi", now["by_state"], error) + jnp.einsum("wij,wj->wi", now["by_input"], wrong)
            after = after + now["defect"]
            return after, after

        first = jnp.zeros((batch["q"].shape[0], 2 * n))
        _, errors = jax.lax.scan(step, first, jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), batch))
        return jnp.log(jnp.mean((errors / size) ** 2))  # its size is not known beforehand; Adam's rate is

    return minimise(
        loss, members, jax.tree.map(lambda v: v[:late], data), jax.tree.map(lambda v: v[late:], data),
        updates=config.tuning, batch=config.tuning_batch, rate=config.tuning_rate,
        key=jax.random.key(problem.seed + 1),
    )  # fmt: skip


def _windows(problem: Problem) -> dict[str, Array]:
    """Windows `[W, H, ...]` of the log in order of time, and the simulator linearised in each of their rows."""
    log, config, simple = problem.log, problem.config, problem.simulator
    chosen = log.windows(config.horizon, config.windows)
    if not len(chosen):
        raise OffroadError(f"no episode of the log has more than {config.horizon} rows; lower FitConfig.horizon")
    rows = chosen[:, None] + np.arange(config.horizon)
    flat = np.unique(rows)
    q, qd, u = log.q[flat], log.qd[flat], log.u[flat]
    target = problem.targets[np.searchsorted(problem.rows, flat)]
    dynamics = problem.model.form == "dynamics"
    given = target + start_of(simple, log, flat) if problem.model.form == "delta" else target
    nothing = np.zeros_like(q)
    arguments = (q, qd, u, given) if dynamics else (q, qd, given, nothing)
    here, by_state, by_control, by_force = simple.linearise(*arguments)
    there = np.concatenate([log.q[flat + 1], log.qd[flat + 1]], -1)
    by_input = by_force if dynamics else by_control
    columns = {"q": q, "qd": qd, "u": u, "given": given, "defect": here - there, "by_state": by_state}
    index = np.searchsorted(flat, rows)
    return {k: jnp.asarray(v[index], jnp.float32) for k, v in (columns | {"by_input": by_input}).items()}
