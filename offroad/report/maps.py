"""Pictures of a place seen from above: where somebody was, or where something was paid, between walls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy import ndarray

from offroad.report import plots


def heat(
    path: Path,
    maps: Mapping[str, Float[ndarray, "rows columns"]],
    walls: Float[ndarray, "W 2 2"],
    extent: tuple[float | int, float | int, float | int, float | int],
    label: str,
    marks: Mapping[str, tuple[float | int, float | int]] | None = None,
    log: bool = True,
) -> Path:
    """One map for each title, side by side, in common colours; zeros stay white.

    Args:
        maps: numbers for each square; the first row is the lowest, the first column on the left.
        walls: from end to end, in the units of `extent`.
        extent: left, right, bottom and top of the maps.
        label: of the colours.
        marks: names of places and where they are.
        log: colours go by the logarithm, for counts.
    """
    largest = max(max(float(values.max()) for values in maps.values()), 1e-9)
    smallest = min(
        [float(values[values > 0].min()) for values in maps.values() if (values > 0).any()] or [largest / 10]
    )
    norm = LogNorm(min(smallest, largest * 0.99), largest) if log else None
    height = 3.6 * (extent[3] - extent[2]) / (extent[1] - extent[0])
    fig = Figure((3.6 * len(maps) + 0.8, height + 0.4), dpi=160, layout="constrained", facecolor="white")
    axes = fig.subplots(1, len(maps), squeeze=False)[0]
    FigureCanvasAgg(fig)
    image: Any = None
    for ax, (title, values) in zip(axes, maps.items()):
        limits = {"norm": norm} if log else {"vmin": 0.0, "vmax": largest}
        shown = np.ma.masked_where(values <= 0, values)
        image = ax.imshow(shown, origin="lower", extent=extent, cmap="YlOrRd", interpolation="nearest", **limits)
        _walls(ax, walls, marks or {})
        ax.set_title(title, color=plots.INK, fontsize=10)
    bar = fig.colorbar(image, ax=list(axes), pad=0.02, fraction=0.05)
    bar.set_label(label, color=plots.SOFT, fontsize=9)
    bar.ax.tick_params(colors=plots.SOFT, labelsize=8.5, length=0)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return plots._save(fig, path)


def _walls(ax: Axes, walls: Float[ndarray, "W 2 2"], marks: Mapping[str, tuple[float | int, float | int]]) -> None:
    ax.add_collection(LineCollection(list(walls), colors=plots.INK, linewidths=1.0))
    for name, (x, y) in marks.items():
        ax.plot(x, y, "o", color=plots.COLOURS[0], ms=5, mec="white", mew=0.8)
        ax.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", color=plots.INK, fontsize=8)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
