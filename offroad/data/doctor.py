"""The data doctor: what a data set holds, every defect in one line, and with which settings and method to begin."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offroad.data.bounds import action_bounds
from offroad.data.dataset import Dataset, flatten
from offroad.data.known import recognise
from offroad.data.spaces import Spaces

NEIGHBOURS = 2000
"""So many random rows are compared with each other for the measure of coverage."""
LONG = 200
"""Episodes of more steps than this are long: sparse rewards are hard to carry back over them."""


@dataclass(frozen=True)
class Diagnosis:
    """`columns`: shape, type and range of every array. `facts`: the measures by topic. `defects`: a line each.
    `settings` and `method` to begin with; `reason`: why this method."""

    columns: dict[str, dict[str, Any]]
    facts: dict[str, dict[str, Any]]
    defects: list[str]
    settings: dict[str, str]
    method: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return vars(self)


@dataclass
class _Chart:
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)


def examine(dataset: Dataset, spaces: Spaces | None = None, file: Path | None = None) -> Diagnosis:
    """Looks at every row. With `spaces`, of the environment, actions are held against its bounds, and shapes must be
    its own: raises `OffroadError` if they are not. With the `file` that it is from, tells if it is a published one."""
    if spaces is not None:
        dataset.check(spaces)
    published = recognise(file) if file is not None else None
    chart = _Chart(defects=published.remarks(dataset) if published else [])
    _numbers(dataset, chart)
    _flags(dataset, chart)
    _actions(dataset, chart, spaces)
    _duplicates(dataset, chart)
    _rewards(dataset, chart)
    _coverage(dataset, chart)
    _propensities(dataset, chart)
    settings = _settings(dataset, chart.facts)
    method, reason = _method(dataset, chart.facts)
    columns = {name: _column(array) for name, array in dataset.arrays().items()}
    return Diagnosis(columns, chart.facts, chart.defects, settings, method, reason)


def _column(array: np.ndarray) -> dict[str, Any]:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array.reshape(-1)
    known = finite.size > 0
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "min": finite.min().item() if known else None,
        "mean": float(finite.mean(dtype=np.float64)) if known else None,
        "max": finite.max().item() if known else None,
    }


def _numbers(dataset: Dataset, chart: _Chart) -> None:
    """What is not finite, and features of observations that never change or differ much in scale."""
    for name, array in dataset.arrays().items():
        if array.dtype.kind == "f" and (bad := int((~np.isfinite(array)).sum())):
            row = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            mend = "leave these episodes out (Dataset.take) or impute them"
            chart.defects.append(f"{name} contain {bad} numbers that are NaN or infinite, first at row {row}; {mend}")
    scales, constant = [], []
    for name, array in flatten({"observations": dataset.observations}).items():
        if array.dtype.kind == "f":
            deviation = np.std(array.reshape(len(array), -1), axis=0, dtype=np.float64)
            constant += [f"{name}[{i}]" for i in np.flatnonzero(deviation == 0)] if len(dataset) > 1 else []
            scales += deviation[np.isfinite(deviation) & (deviation > 0)].tolist()
    ratio = max(scales) / min(scales) if scales else 1.0
    chart.facts["observations"] = {
        "constant features": len(constant),
        "ratio of scales": ratio,
        "largest deviation": max(scales, default=1.0),
    }
    if constant:
        chart.defects.append(f"{_list(constant)} never change and tell nothing; leave them out, in the environment too")


def _flags(dataset: Dataset, chart: _Chart) -> None:
    """How episodes end, and where a boundary may be missing or a time limit be stored as a terminal."""
    ends, lengths = dataset.ends, dataset.lengths
    terminated = dataset.terminated[ends]
    unsampled = len(dataset) - len(dataset.rows)
    chart.facts["episodes"] = {
        "number": len(ends),
        "shortest": int(lengths.min()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "terminated": int(terminated.sum()),
        "truncated": int((~terminated).sum()),
        "rows that cannot be sampled": unsampled,
    }
    chart.defects += dataset.notes
    if unsampled:
        chart.defects.append(
            f"{unsampled} episodes were cut off and what came next is unknown; their last rows are left out of training"
        )
    at_limit = float((lengths[terminated] == lengths.max()).mean()) if terminated.any() else 0.0
    limits_unknown = len(ends) > 1 and lengths.max() > 1 and bool(terminated[:-1].all())
    if limits_unknown and at_limit >= 0.5:
        chart.defects.append(
            f"{at_limit:.0%} of the terminated episodes last exactly {lengths.max()} steps: a time limit is stored as "
            "a terminal; load with truncated='NAME OF THAT COLUMN', terminated=None"
        )
    elif limits_unknown:
        chart.defects.append(
            "every episode ends in a terminal row; if some only ran out of time (as in D4RL's kitchen), they must be "
            "truncated instead"
        )
    if both := int((dataset.terminated & dataset.truncated).sum()):
        chart.defects.append(f"{both} rows are both terminated and truncated; they are taken as terminated")
    if (first := _jump(dataset)) is not None:
        row, times = first
        chart.defects.append(
            f"observations jump {times:.0f} times farther than 99 % of the steps do after row {row}, inside an "
            "episode; is an end missing there?"
        )


def _jump(dataset: Dataset, factor: float = 10) -> tuple[int, float] | None:
    """The first step inside an episode that is implausibly long for this data set, in units of the 99 % quantile."""
    features = _features(dataset)
    if features is None or len(dataset) < 100:
        return None
    steps = np.abs(np.diff(features, axis=0)).max(axis=1)
    steps[dataset.ends[:-1]] = 0
    usual = np.quantile(steps, 0.99)
    if usual <= 0 or steps.max() <= factor * usual:
        return None
    row = int(np.argmax(steps > factor * usual))
    return row, float(steps[row] / usual)


def _actions(dataset: Dataset, chart: _Chart, spaces: Spaces | None) -> None:
    """Bounds, the share of numbers at them, and dimensions that never change; or how often each choice was taken."""
    for name, array in flatten({"actions": dataset.actions}).items():
        facts: dict[str, Any] = chart.facts.setdefault(name, {})
        if array.dtype.kind != "f":
            choices, counts = np.unique(array, return_counts=True)
            share = float(counts.max() / len(array))
            facts |= {"choices": len(choices), "rarest": int(counts.min()), "most frequent": share}
            if spaces is not None and isinstance(space := spaces.action, gym_spaces.Discrete):
                if bad := [int(c) for c in choices if not space.start <= c < space.start + space.n]:
                    chart.defects.append(
                        f"{name} contain {bad[0]}, which {space} does not; number them from {space.start}"
                    )
                if never := space.n - len(choices) + len(bad):
                    chart.defects.append(f"{never} of {space.n} actions were never taken; nothing is known of them")
            continue
        array = array[np.isfinite(array).reshape(len(array), -1).all(axis=1)]  # the others were told
        if not len(array):
            continue
        low, high, known = action_bounds(array, spaces)
        inside = 1e-5 * (high - low)
        beyond = int(((array < low) | (array > high)).any(axis=tuple(range(1, array.ndim))).sum())
        facts |= {
            "lowest": float(array.min()),
            "highest": float(array.max()),
            "bounds": f"{np.min(low):g} to {np.max(high):g}" + ("" if known else " (guessed)"),
            "rows beyond": beyond,
            "share at the bounds": float(((array <= low + inside) | (array >= high - inside)).mean()),
        }
        if beyond:
            chart.defects.append(
                f"{name} reach {facts['lowest']:g} to {facts['highest']:g}, in {beyond} rows beyond {facts['bounds']}; "
                "clip them"
            )
        if facts["share at the bounds"] > 0 and not beyond:
            chart.defects.append(
                f"{round(facts['share at the bounds'] * array.size)} numbers of {name} lie at their bounds, where the "
                "likelihood of a squashed Gaussian is infinite; clip them slightly inside"
            )
        still = np.flatnonzero(np.ptp(array.reshape(len(array), -1), axis=0) == 0)
        if len(still) and len(array) > 1:
            chart.defects.append(f"{_list([f'{name}[{i}]' for i in still])} never change; their effect is unknown")


def _duplicates(dataset: Dataset, chart: _Chart) -> None:
    """Rows with the same observation, action and reward. Of data without fractions they are natural."""
    arrays = flatten({"o": dataset.observations, "a": dataset.actions, "r": dataset.rewards})
    hashes = np.zeros(len(dataset), np.uint64)
    random = np.random.default_rng(0)
    for array in arrays.values():
        for column in np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8).T:
            hashes += column * random.integers(2**63, dtype=np.uint64)
            hashes ^= hashes >> np.uint64(29)
    repeated = len(dataset) - len(np.unique(hashes))
    chart.facts["duplicates"] = {"rows": repeated, "share": repeated / len(dataset)}
    features = _features(dataset)
    if repeated > 0.001 * len(dataset) and features is not None and np.any(features % 1 != 0):
        chart.defects.append(
            f"{repeated} rows ({repeated / len(dataset):.1%}) repeat an earlier one; was a file appended twice?"
        )


def _rewards(dataset: Dataset, chart: _Chart) -> None:
    rewards, returns = (x[np.isfinite(x)] for x in (dataset.rewards, dataset.returns()))
    rewards, returns = (x if len(x) else np.zeros(1) for x in (rewards, returns))
    values, counts = np.unique(rewards, return_counts=True)
    usual, spread = float(values[np.argmax(counts)]), float(np.std(rewards, dtype=np.float64))
    chart.facts["rewards"] = {
        "usual": usual,
        "share of the usual": float(counts.max() / len(rewards)),
        "different": len(values),
        "deviation": spread,
    }
    quantiles = np.quantile(returns, (0, 0.25, 0.5, 0.75, 1)).tolist()
    names = ("lowest", "first quarter", "median", "third quarter", "highest")
    chart.facts["returns"] = {**dict(zip(names, quantiles)), "mean": float(returns.mean())}
    if not np.isfinite(dataset.rewards).any():  # which was told
        return
    if len(values) == 1:
        chart.defects.append(f"every reward is {usual:g}; there is nothing to tell good actions from bad ones")
    elif not 0.01 <= spread <= 10 and not _is_sparse(chart.facts):
        chart.defects.append(f"rewards deviate by {spread:.3g} per step; scale them to about 1, as critics expect")


def _coverage(dataset: Dataset, chart: _Chart) -> None:
    """How different actions are in similar states, as a share of how different they are in any two states.

    For each of some random rows, the row with the nearest observation: near 0, behaviour is a deterministic policy, and
    nothing is known of other actions; near 1, it does not look at the state, and all actions are known everywhere.
    """
    features = _features(dataset)
    if features is None or len(dataset) < 20:
        return
    random = np.random.default_rng(0)
    rows = random.permutation(len(dataset))[:NEIGHBOURS]
    x = features[rows]
    squares = (x**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * x @ x.T
    own = np.searchsorted(dataset.ends, rows)  # neighbours in time are no evidence: a policy's noise may be smooth
    if len(np.unique(own)) > 1:
        distances[own[:, None] == own[None, :]] = np.inf
    np.fill_diagonal(distances, np.inf)
    nearest = np.argmin(distances, axis=1)
    parts = [a[rows].reshape(len(rows), -1) for a in flatten({"": dataset.actions}).values()]
    actions = np.nan_to_num(np.concatenate(parts, axis=1), posinf=0, neginf=0)
    discrete = actions.dtype.kind != "f"
    others = actions[random.permutation(len(rows))]
    near, apart = (_distance(actions, y, discrete) for y in (actions[nearest], others))
    chart.facts["coverage"] = {"action diversity in similar states": float(min(near / apart, 1)) if apart else 0.0}


def _distance(a: np.ndarray, b: np.ndarray, discrete: bool) -> float:
    return float((a != b).mean() if discrete else np.square(a - b).sum(axis=1).mean())


def _propensities(dataset: Dataset, chart: _Chart) -> None:
    if dataset.propensities is None:
        return
    p = dataset.propensities.astype(np.float64)
    impossible = (p <= 0) | ((p > 1) & (np.asarray(dataset.actions).dtype.kind != "f"))
    good = p[~impossible & np.isfinite(p)]
    weights = 1 / good
    size = float(weights.sum() ** 2 / (weights**2).sum()) if len(good) else 0.0
    chart.facts["propensities"] = {
        "smallest": float(p.min()),
        "largest": float(p.max()),
        "effective share of rows": size / len(p),  # Kish: for the uniform policy
    }
    if impossible.any():
        chart.defects.append(
            f"{impossible.sum()} propensities are no probabilities of what was done (first {p[impossible][0]:g} at row "
            f"{np.argmax(impossible)}); expected above 0 and at most 1"
        )
    elif size < 0.05 * len(p):
        chart.defects.append(
            f"the weights 1/propensity are worth {size:.0f} of {len(p)} rows; estimates from them will be wide"
        )
    actions = dataset.actions
    if isinstance(actions, np.ndarray) and actions.dtype.kind != "f" and len(good) > 100 and not impossible.any():
        # The mean of 1 / (probability of what was done) is the number of actions that could have been done.
        number, error = len(np.unique(actions)), weights.std() / np.sqrt(len(weights))
        if abs(weights.mean() - number) > 5 * error + 0.02 * number:
            chart.defects.append(
                f"the mean of 1/propensity is {weights.mean():.3g}, but {number} actions were taken; the propensities "
                "are not those of the logged choices, or some actions were never possible"
            )


# --- proposals -------------------------------------------------------------------------------------------------------


def _settings(dataset: Dataset, facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    length = facts["episodes"]["median"]
    gamma = 0.0 if length <= 1 else float(np.clip(1 - 2 / length, 0.9, 0.995 if _is_sparse(facts) else 0.99))
    rewards, shift = facts["rewards"], "none"
    if _is_sparse(facts) and rewards["different"] == 2 and rewards["usual"] == 0:
        shift = "r - 1 for IQL, 10 r - 5 for CQL: with zeros almost everywhere critics stay at zero"
    elif rewards["different"] > 1 and not 0.01 <= rewards["deviation"] <= 10:
        shift = f"r / {rewards['deviation']:.3g}"
    settings = {"discount": f"{gamma:.3g}", "rewards": shift}
    for name in flatten({"actions": dataset.actions}):
        if facts[name].get("rows beyond") or facts[name].get("share at the bounds"):
            settings[f"clip {name}"] = f"{facts[name]['bounds'].removesuffix(' (guessed)')}, less 1e-5 of the range"
    if facts["observations"]["ratio of scales"] > 10:
        settings["normalise observations"] = "yes: their scales differ by more than 10"
    elif not 0.3 <= facts["observations"]["largest deviation"] <= 3:
        found = facts["observations"]["largest deviation"]
        settings["normalise observations"] = f"yes: networks expect deviations near 1, the largest is {found:.3g}"
    return settings


def _method(dataset: Dataset, facts: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The first of these cases that holds."""
    episodes, returns, rewards = facts["episodes"], facts["returns"], facts["rewards"]
    diversity = facts.get("coverage", {}).get("action diversity in similar states", 1.0)
    discrete = any("choices" in facts[name] for name in flatten({"actions": dataset.actions}))
    spread = returns["highest"] - returns["lowest"]
    if rewards["different"] == 1:
        return "BC", "the rewards tell nothing"
    if episodes["longest"] == 1:
        if dataset.propensities is None:
            return "BC", "decisions of one step without propensities: no other policy's value can be told without bias"
        return "off-policy evaluation", "decisions of one step with propensities: compare policies before training"
    if discrete:
        return "CQL (discrete)", "the actions are discrete, and CQL keeps to those that were tried"
    if diversity < 0.05:
        if spread > 0.5 * abs(returns["highest"]):
            return "10 %-BC", "behaviour is nearly deterministic, and some episodes are much better than others"
        return "BC", "behaviour is nearly deterministic and always about as good: nothing to improve on from these data"
    if len(dataset) < 10_000:
        return "IQL", "few rows: it never asks a critic about actions that are not in the data"
    if _is_sparse(facts) and episodes["median"] > LONG:
        return "IQL, then CQL+OPAL", "rewards are rare in long episodes: carry value over skills of several steps"
    if _is_sparse(facts):
        return "IQL, then CQL", "rewards are rare, episodes short enough to carry value back step by step"
    return "ReBRAC", "rewards are dense and behaviour varied; IQL is the more cautious choice"


def _is_sparse(facts: dict[str, dict[str, Any]]) -> bool:
    return facts["rewards"]["different"] > 1 and facts["rewards"]["share of the usual"] > 0.9


def _features(dataset: Dataset, most: int = 1000) -> np.ndarray | None:
    """Observations side by side `[steps, features]`, each scaled to deviation 1; None for images and the like."""
    parts = [x.reshape(len(x), -1) for x in flatten({"": dataset.observations}).values()]
    if sum(x.shape[1] for x in parts) > most:
        return None
    x = np.nan_to_num(np.concatenate(parts, axis=1).astype(np.float32), posinf=0, neginf=0)
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def _list(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- for people ------------------------------------------------------------------------------------------------------


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Prints tables of what was found, the defects and the proposal."""
    console.print(_table(("array", *next(iter(diagnosis.columns.values()))), diagnosis.columns))
    for topic, facts in diagnosis.facts.items():
        console.print(Text.assemble((f"\n{topic}: ", "bold"), ", ".join(f"{k} {_number(v)}" for k, v in facts.items())))
    console.print(Text(f"\ndefects: {len(diagnosis.defects) or 'none'}", "bold"))
    for line in diagnosis.defects:
        console.print(Text(f"- {line}"), soft_wrap=True)
    console.print(Text("\nproposal", "bold"))
    console.print(Text(f"method: {diagnosis.method} ({diagnosis.reason})"), soft_wrap=True)
    for name, value in diagnosis.settings.items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)


def _table(header: tuple[str, ...], rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in header:
        table.add_column(name)
    for name, row in rows.items():
        table.add_row(Text(name), *(Text(_number(value)) for value in row.values()))
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
