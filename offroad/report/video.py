"""Videos: GIF or MP4 under a size limit, and the animated ring road."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import font_manager
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from offroad.errors import OffroadError

Frame = UInt8[ndarray, "H W 3"]

# The slide's legend: one colour each, distinguishable with any of the common colour deficiencies.
ROLES = {"AV off": "#3C4650", "Automated": "#D55E00", "Observed": "#0072B2", "Unobserved": "#AEB6BF"}
INK, SOFT, ROAD, TRACE = "#1d2126", "#5d6670", "#EEF0F2", "#8E98A3"
SCALE = 2  # drawn at twice the size, then averaged down: smooth edges


def write(path: Path, frames: Iterable[Frame], fps: float | int, limit_mb: float | int = 2.0) -> Path:
    """Writes a GIF or an MP4 by its suffix. A GIF gives up frames, size and colours, in turn, until it fits the limit.

    Raises:
        OffroadError: no frames, another suffix, or a GIF that does not fit even at its smallest.
    """
    pictures = [Image.fromarray(f) for f in frames]
    if not pictures:
        raise OffroadError(f"no frames for {path}; expected at least one")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        # Even sizes and this pixel format, because browsers play nothing else.
        width, height = (n - n % 2 for n in pictures[0].size)
        even = np.stack([np.asarray(p)[:height, :width] for p in pictures])
        iio.imwrite(path, even, fps=fps, codec="libx264", plugin="FFMPEG", pixelformat="yuv420p", macro_block_size=2)
        return path
    if path.suffix != ".gif":
        raise OffroadError(f"videos are written as .gif or .mp4, not {path.suffix!r}; rename {path}")
    limit = int(limit_mb * 1e6)
    for skip, scale, colours in (
        (1, 1, 64),
        (1, 1, 32),
        (2, 1, 32),
        (2, 0.75, 32),
        (3, 0.6, 32),
        (4, 0.5, 16),
        (8, 0.35, 8),
    ):
        data = _gif(pictures[::skip], scale, colours, fps / skip)
        if len(data) <= limit:
            path.write_bytes(data)
            return path
    raise OffroadError(f"{len(pictures)} frames do not fit a GIF of {limit_mb} MB; write an .mp4 or show fewer")


@dataclass(frozen=True)
class Ring:
    """What happened on one ring road: rows are time steps.

    Position of the cars' fronts in m along the ring, in driving order (car `i + 1` leads car `i`), speed in m/s, and
    when the automated vehicle `automated` was in charge (a plain human driver otherwise).
    """

    title: str
    position: Float[ndarray, "T cars"]
    speed: Float[ndarray, "T cars"]
    length: float | int
    on: Bool[ndarray, " T"]
    automated: int | None = 0


def ring_animation(
    path: Path,
    rings: Sequence[Ring],
    dt: float | int,
    seconds: float | int = 12.0,
    fps: float | int = 10.0,
    limit_mb: float | int = 2.0,
    car_length: float | int = 5.0,
) -> Path:
    """One ring, or several side by side over the same time, squeezed into a video of `seconds`.

    Below each ring runs its time axis: the mean speed, the band from the slowest to the fastest car, and whether the
    automated vehicle was off or on. `dt` is the time between rows, in seconds.
    """
    steps = min(len(r.position) for r in rings)
    rows = np.linspace(0, steps - 1, max(2, round(seconds * fps))).astype(int).tolist()
    top = float(np.ceil(max(r.speed.max() for r in rings)))
    panels = [_Panel(r, i * _Panel.width, steps, dt, top, car_length) for i, r in enumerate(rings)]
    background = Image.new("RGB", (_Panel.width * len(rings) * SCALE, _Panel.height * SCALE), "white")
    draw = ImageDraw.Draw(background)
    for panel in panels:
        panel.background(draw)
    _legend(draw, _Panel.width * len(rings), _Panel.height - 22)
    return write(path, (_frame(background, panels, row) for row in rows), fps, limit_mb)


def _frame(background: Image.Image, panels: "list[_Panel]", row: int) -> Frame:
    picture = background.copy()
    draw = ImageDraw.Draw(picture)
    for panel in panels:
        panel.foreground(draw, row)
    return np.asarray(picture.reduce(SCALE))


class _Panel:
    """One ring and its time axis, at a horizontal offset; coordinates in final pixels."""

    width, height = 360, 500
    radius, centre = 138, 190
    plot_top, plot_bottom, margin = 372, 428, 34

    def __init__(self, ring: Ring, left: int, steps: int, dt: float | int, top: float | int, car_length: float | int):
        self.ring, self.left, self.steps, self.dt, self.top = ring, left, steps, dt, top
        self.car = car_length * 2 * np.pi * self.radius / ring.length

    def background(self, draw: ImageDraw.ImageDraw) -> None:
        x, r = self.left + self.width / 2, self.radius
        _text(draw, (x, 20), self.ring.title, 15, INK, bold=True)
        for radius, colour in ((r + 11, ROAD), (r - 11, "white")):
            draw.ellipse(_scaled([x - radius, self.centre - radius, x + radius, self.centre + radius]), fill=colour)
        speed = self.ring.speed[: self.steps]
        columns = np.linspace(0, self.steps - 1, 2 * (self.width - 2 * self.margin)).astype(int)
        low, high, mean = (f(speed[columns], axis=1) for f in (np.min, np.max, np.mean))
        at = [self._time_x(c) for c in columns]
        band = [*zip(at, self._speed_y(high)), *zip(at[::-1], self._speed_y(low)[::-1])]
        draw.polygon(_points(band), fill="#E3E7EB")
        draw.line(_points(list(zip(at, self._speed_y(mean)))), fill=TRACE, width=2 * SCALE, joint="curve")
        for value in (0, self.top):
            _text(draw, (self.left + self.margin - 6, self._speed_y(value)), f"{value:.0f}", 10, SOFT, anchor="rm")
        _text(
            draw,
            (self.left + self.margin, self.plot_top - 11),
            "speed of the cars [m/s]: mean and range",
            10,
            SOFT,
            "lm",
        )
        # The on/off marker: a bar in the colour of what drives the automated car.
        on = self.ring.on[: self.steps]
        edges = [0, *(np.flatnonzero(np.diff(on)) + 1), self.steps - 1]
        for start, end in pairwise(edges):
            left, right = self._time_x(start), self._time_x(end)
            colour = ROLES["Automated"] if on[start] else ROLES["AV off"]
            draw.rectangle(_scaled([left, self.plot_bottom + 8, right, self.plot_bottom + 21]), fill=colour)
            if right - left > 50:
                label = "AV on" if on[start] else "AV off"
                _text(draw, ((left + right) / 2, self.plot_bottom + 14.5), label, 10, "white", bold=True)

    def foreground(self, draw: ImageDraw.ImageDraw, row: int) -> None:
        ring, x = self.ring, self.left + self.width / 2
        cars = ring.position.shape[1]
        for car in range(cars):
            _car(
                draw,
                x,
                self.centre,
                self.radius,
                ring.position[row, car] / ring.length,
                self.car,
                self._colour(row, car),
            )
        speed = ring.speed[row]
        _text(draw, (x, self.centre - 16), f"{speed.mean():.1f} m/s", 30, INK, bold=True)
        _text(draw, (x, self.centre + 12), "mean speed", 12, SOFT)
        _text(draw, (x, self.centre + 34), f"slowest {speed.min():.1f}, fastest {speed.max():.1f}", 12, SOFT)
        at = self._time_x(row)
        draw.line(_scaled([at, self.plot_top, at, self.plot_bottom + 21]), fill=INK, width=SCALE + 1)
        y = float(self._speed_y(speed.mean()))
        draw.ellipse(_scaled([at - 4, y - 4, at + 4, y + 4]), fill=INK, outline="white", width=SCALE)
        _text(draw, (self.left + self.width - self.margin, self.plot_top - 11), f"{row * self.dt:.0f} s", 10, INK, "rm")

    def _colour(self, row: int, car: int) -> str:
        if car == self.ring.automated:
            return ROLES["Automated"] if self.ring.on[row] else ROLES["AV off"]
        ahead = None if self.ring.automated is None else (self.ring.automated + 1) % self.ring.position.shape[1]
        return ROLES["Observed"] if car == ahead and self.ring.on[row] else ROLES["Unobserved"]

    def _time_x(self, row: Any) -> Any:
        return self.left + self.margin + (self.width - 2 * self.margin) * row / (self.steps - 1)

    def _speed_y(self, speed: Any) -> Any:
        return self.plot_bottom - (self.plot_bottom - self.plot_top) * np.asarray(speed) / self.top


def _car(
    draw: ImageDraw.ImageDraw,
    x: float | int,
    y: float | int,
    radius: float | int,
    lap: float | int,
    length: float | int,
    colour: str,
) -> None:
    """A car with its front at `lap` (a share of the ring), driving clockwise; its body follows the bend."""
    along = np.array([0.0, 0.1, 0.3, 0.75, 0.95, 1.0])  # rear to front
    half = np.array([3.4, 4.6, 5.0, 5.0, 3.6, 2.4])
    angle = 2 * np.pi * lap - np.pi / 2 - (1 - along) * length / radius
    sides = [
        np.stack([x + (radius + s * half) * np.cos(angle), y + (radius + s * half) * np.sin(angle)], -1)
        for s in (1, -1)
    ]
    draw.polygon(_points([*sides[0].tolist(), *sides[1][::-1].tolist()]), fill=colour)


def _legend(draw: ImageDraw.ImageDraw, width: int, y: float | int) -> None:
    step = 84
    left = (width - step * len(ROLES)) / 2
    for i, (role, colour) in enumerate(ROLES.items()):
        at = left + i * step
        draw.rounded_rectangle(_scaled([at, y - 4, at + 12, y + 4]), 3 * SCALE, fill=colour)
        _text(draw, (at + 17, y), role, 11, INK, "lm")


_FONTS: dict[tuple[int, bool], ImageFont.FreeTypeFont] = {}


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[Any, Any], text: str, size: int, colour: str, anchor: str = "mm",
    bold: bool = False,
) -> None:  # fmt: skip
    if (size, bold) not in _FONTS:
        # Matplotlib ships this font, so pictures look the same on every machine.
        name = font_manager.findfont(
            font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
        )
        _FONTS[size, bold] = ImageFont.truetype(name, size * SCALE)
    draw.text((at[0] * SCALE, float(at[1]) * SCALE), text, colour, _FONTS[size, bold], anchor)


def _scaled(values: Sequence[Any]) -> list[float]:
    return [float(v) * SCALE for v in values]


def _points(points: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
    return [(float(x) * SCALE, float(y) * SCALE) for x, y in points]


def _gif(pictures: list[Image.Image], scale: float | int, colours: int, fps: float | int) -> bytes:
    """One palette for all frames (taken from a few of them): no flicker, and unchanged pixels cost nothing."""
    size = (round(pictures[0].width * scale), round(pictures[0].height * scale))
    if scale != 1:
        pictures = [p.resize(size, Image.Resampling.LANCZOS) for p in pictures]
    sample = pictures[:: max(1, len(pictures) // 4)][:4]
    mosaic = Image.new("RGB", (size[0], size[1] * len(sample)))
    for i, picture in enumerate(sample):
        mosaic.paste(picture, (0, i * size[1]))
    palette = mosaic.quantize(colours, Image.Quantize.MAXCOVERAGE)
    frames = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    return buffer.getvalue()
