"""Pictures in one calm style: Matplotlib's object interface only, so that drawing changes no global state."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy import ndarray
from PIL import Image

from offroad.report import statistics

# Okabe and Ito's palette, which people with any of the common colour deficiencies can tell apart, and two more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B7280", "#7F3C8D", "#111827")
INK, SOFT, LINE = "#1d2126", "#5d6670", "#dfe3e7"

# label: (steps [T], one curve per seed [T, seeds])
Curves = Mapping[str, tuple[ndarray, ndarray]]


def learning_curves(
    path: Path,
    curves: Curves,
    ylabel: str,
    references: Mapping[str, float | int] | None = None,
    size: tuple[float, float] = (7.2, 3.8),
) -> Path:
    """The IQM over seeds against environment steps, with its 95 % interval; `references` are dashed lines."""
    fig, ax = _canvas(size)
    for colour, (label, (steps, scores)) in zip(_cycle(len(curves)), curves.items()):
        middle, low, high = statistics.curve(np.asarray(scores, float))
        seeds = f" ({scores.shape[1]} seeds)" if scores.shape[1] > 1 else ""
        few = {"marker": "o", "markersize": 4} if len(steps) < 3 else {}
        ax.plot(steps, middle, color=colour, lw=1.8, label=f"{label}{seeds}", **few)
        ax.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    for label, value in (references or {}).items():
        ax.axhline(value, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.annotate(
            label, (0.99, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            color=SOFT, fontsize=8.5, ha="right",
        )  # fmt: skip
    ax.set_xlabel("environment steps")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(curves) > 1 or any(scores.shape[1] > 1 for _, scores in curves.values()):
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _save(fig, path)


def lines(
    path: Path,
    x: Float[ndarray, " points"],
    curves: Mapping[str, Float[ndarray, "points seeds"]],
    xlabel: str,
    ylabel: str,
    references: Mapping[str, Float[ndarray, " points"]] | None = None,
) -> Path:
    """One marked line per arm, the IQM over seeds with its 95 % interval; `references` are dashed lines."""
    fig, ax = _canvas((7.2, 4.2))
    for colour, (label, scores) in zip(_cycle(len(curves)), curves.items()):
        middle, low, high = statistics.curve(np.asarray(scores, float))
        ax.plot(x, middle, "o-", color=colour, lw=1.6, ms=4, label=label)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    for style, (label, values) in zip(((0, (4, 3)), (0, (1, 2))), (references or {}).items()):
        ax.plot(x, values, color=SOFT, lw=1.2, ls=style, label=label, zorder=1)
    if np.array_equal(x, np.round(x)):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no tower of one block and a half
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return _save(fig, path)


def dots(
    path: Path, arms: Mapping[str, list[float]], xlabel: str, references: Mapping[str, float | int] | None = None
) -> Path:
    """One row per arm: every seed as a faint dot, the IQM as a strong one with its 95 % interval as a bar."""
    fig, ax = _canvas((7.2, 1.1 + 0.42 * len(arms)))
    for row, (colour, values) in enumerate(zip(_cycle(len(arms)), arms.values())):
        found = statistics.estimate(values)
        ax.plot(values, [row] * len(values), "o", color=colour, alpha=0.25, ms=5, mew=0)
        ax.plot([found.low, found.high], [row, row], color=colour, lw=3, solid_capstyle="round")
        ax.plot(found.value, row, "o", color=colour, ms=8, mec="white", mew=1.2)
    for label, value in (references or {}).items():
        ax.axvline(value, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.annotate(
            label, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            color=SOFT, fontsize=8.5, ha="center",
        )  # fmt: skip
    ax.set_yticks(range(len(arms)), list(arms))
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.tick_params(axis="y", labelcolor=INK, labelsize=10)
    ax.grid(axis="x", color=LINE, lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    return _save(fig, path)


def space_time(
    path: Path,
    position: Float[ndarray, "T cars"],
    speed: Float[ndarray, "T cars"],
    length: float | int,
    dt: float | int,
    highlight: int | None = None,
    switched_on: float | int | None = None,
) -> Path:
    """Every car's way along a ring road of `length` m, coloured by speed in m/s; rows are `dt` seconds apart.

    `highlight` draws the line of one car (the automated one) in ink, `switched_on` marks a time in seconds.
    """
    every = max(1, len(position) // 800)
    position, speed = position[::every] % length, speed[::every]
    time = np.arange(len(position)) * dt * every
    fig, ax = _canvas((7.2, 4.2))
    steps = np.stack(np.broadcast_arrays(time[:, None], position), -1)  # [T, cars, 2]
    parts = np.stack([steps[:-1], steps[1:]], 2)  # [T - 1, cars, 2 ends, 2]
    onward = np.abs(np.diff(position, axis=0)) < length / 2  # not across the seam
    colours = LineCollection(
        list(parts[onward]), array=speed[:-1][onward], cmap="cividis", linewidths=1.3, capstyle="round",
        clim=(0, float(np.ceil(speed.max()))),
    )  # fmt: skip
    ax.add_collection(colours)
    if highlight is not None:
        own = parts[:, highlight][onward[:, highlight]]
        ax.add_collection(LineCollection(list(own), colors=COLOURS[1], linewidths=1.6, label="automated car"))
    if switched_on is not None:
        ax.axvline(switched_on, color=INK, lw=1.2, ls=(0, (4, 3)))
        ax.annotate(
            "AV on", (switched_on, 1), xycoords=("data", "axes fraction"), xytext=(3, 4), textcoords="offset points",
            color=INK, fontsize=9,
        )  # fmt: skip
    ax.set_xlim(0, time[-1])
    ax.set_ylim(0, length)
    ax.grid(visible=False)
    ax.set_xlabel("time [s]")
    ax.set_ylabel("position on the ring [m]")
    bar = fig.colorbar(colours, ax=ax, pad=0.02, fraction=0.05)
    bar.set_label("speed [m/s]", color=SOFT, fontsize=9)
    bar.ax.tick_params(colors=SOFT, labelsize=8.5, length=0)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if highlight is not None:
        ax.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return _save(fig, path)


def _canvas(size: tuple[float, float]) -> tuple[Figure, Axes]:
    fig = Figure(figsize=size, dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)
    ax = fig.add_subplot()
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(LINE)
    ax.tick_params(colors=SOFT, labelsize=9, length=0)
    ax.xaxis.label.set(color=SOFT, fontsize=9.5)
    ax.yaxis.label.set(color=SOFT, fontsize=9.5)
    ax.grid(axis="y", color=LINE, lw=0.8)
    ax.set_axisbelow(True)
    return fig, ax


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _save(fig: Figure, path: Path) -> Path:
    """A PNG of 256 colours: smaller, and no difference to the eye."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    fig.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)
    return path
