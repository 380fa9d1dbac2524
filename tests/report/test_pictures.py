"""Tables, plots and videos: what they write can be read back and says what the data say."""

import io

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from offroad.errors import OffroadError
from offroad.report import plots, tables, video

RESULTS = {
    "profile": "quick",
    "config": {"seeds": 3, "steps": 1_000_000},
    "arms": {
        "human": {"seeds": [0, 1, 2], "metrics": {"speed [m/s]": [2.0, 2.0, 2.0], "a|b": [1.0, None, 1.0]}},
        "ppo": {"seeds": [0, 1, 2], "metrics": {"speed [m/s]": [3.0, 3.5, 4.0]}},
    },
}


def test_tables_agree_and_state_interval_seeds_and_budget():
    for text in (tables.markdown(RESULTS), tables.to_html(RESULTS)):
        for expected in ("speed [m/s]", "2.00", "3.5 [3.0, 4.0]", "not finite in 1 of 3", "95 %", "1,000,000"):
            assert expected in text
    rows = tables.markdown(RESULTS).splitlines()
    assert {line.replace("\\|", "").count("|") for line in rows[:4]} == {5}


def test_the_terminal_shows_every_claim_and_whether_it_holds():
    claims = [
        {"claim": "faster [m/s]", "measured": 1.23456, "required": "above 1", "holds": True},
        {"claim": "not evaluated yet", "measured": "no arm", "required": "0", "holds": None},
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.terminal({"claims": claims}))
    shown = console.export_text()
    for expected in ("holds", "faster [m/s]", "1.235", "above 1", "open"):
        assert expected in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25_000_000, "25,000,000"),
        (3.14159, "3.142"),
        (2.0, "2"),
        (float("nan"), "not finite"),
        (True, "yes"),
        ("x", "x"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert tables.number(value) == text


def wave(steps=60, cars=22, length=230.0):
    time = np.arange(steps)[:, None]
    speed = 3 + 2 * np.sin(time / 5 + np.arange(cars))
    return np.cumsum(speed, 0) * 0.5 + np.arange(cars) * length / cars, speed


def test_plots_write_pictures_and_leave_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    position, speed = wave()
    curve = (np.arange(10), np.random.default_rng(0).normal(size=(10, 3)))
    paths = [
        plots.learning_curves(tmp_path / "new" / "a.png", {"PPO": curve, "SAC": curve}, "return", {"published": 1.0}),
        plots.dots(tmp_path / "b.png", {"human": [1.0, 2.0], "ppo": [3.0]}, "speed [m/s]", {"uniform": 3.0}),
        plots.space_time(tmp_path / "c.png", position, speed, 230.0, 0.5, highlight=0, switched_on=10.0),
    ]
    for path in paths:
        assert len(np.unique(iio.imread(path)[..., :3].reshape(-1, 3), axis=0)) > 20
    assert dict(matplotlib.rcParams) == before


def test_gif_fits_its_limit_by_giving_up_quality(tmp_path):
    noise = list(np.random.default_rng(0).integers(0, 255, (16, 96, 96, 3), dtype=np.uint8))
    large = video.write(tmp_path / "large.gif", noise, fps=10)
    small = video.write(tmp_path / "small.gif", noise, fps=10, limit_mb=0.02)
    assert small.stat().st_size <= 20_000 < large.stat().st_size
    with Image.open(large) as whole, Image.open(small) as part:
        assert whole.n_frames == 16  # pyright: ignore[reportAttributeAccessIssue]
        assert part.size < whole.size
    with pytest.raises(OffroadError, match="do not fit"):
        video.write(tmp_path / "none.gif", noise, fps=10, limit_mb=1e-5)
    with pytest.raises(OffroadError, match=r"not '\.avi'"):
        video.write(tmp_path / "a.avi", noise, fps=10)
    with pytest.raises(OffroadError, match="no frames"):
        video.write(tmp_path / "b.gif", [], fps=10)


def test_mp4_plays_back_what_was_written(tmp_path):
    frames = [np.full((33, 49, 3), level, np.uint8) for level in (20, 120, 220)]
    back = iio.imread(video.write(tmp_path / "a.mp4", frames, fps=5), plugin="FFMPEG")
    assert back.shape == (3, 32, 48, 3)
    np.testing.assert_allclose(back.mean((1, 2, 3)), [20, 120, 220], atol=6)


def has(picture, role):
    colour = np.array([int(video.ROLES[role][i : i + 2], 16) for i in (1, 3, 5)])
    ring = picture[40:340].astype(int)  # without the time axis and the legend
    return bool((np.abs(ring - colour).max(-1) < 4).any())


def test_ring_shows_each_role_only_while_it_exists():
    position, speed = wave(40)
    rings = video.Ring("ring", position, speed, 230.0, np.arange(40) >= 20)
    panel = video._Panel(rings, 0, 40, 0.5, 6.0, 5.0)
    blank = Image.new("RGB", (360 * video.SCALE, 500 * video.SCALE), "white")
    off, on = (video._frame(blank, [panel], row) for row in (0, 30))
    assert [has(off, r) for r in video.ROLES] == [True, False, False, True]
    assert [has(on, r) for r in video.ROLES] == [False, True, True, True]


def test_ring_animation_places_rings_side_by_side(tmp_path):
    position, speed = wave(40)
    off = video.Ring("AV off", position, speed, 230.0, np.zeros(40, bool))
    path = video.ring_animation(tmp_path / "r.gif", [off, off], 0.5, seconds=1.0)
    with Image.open(path) as gif:
        assert gif.size == (720, 500)
        assert gif.n_frames == 10  # pyright: ignore[reportAttributeAccessIssue]
    assert path.stat().st_size < 2e6
