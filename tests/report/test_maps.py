"""Maps are drawn the right way up, between their walls."""

import numpy as np
from PIL import Image

from offroad.report import maps


def test_heat_shows_the_north_on_top(tmp_path):
    values = np.zeros((4, 4))
    values[3, 0] = 5.0  # the north-western square
    walls = np.array([[[0.0, 0.0], [4.0, 0.0]], [[4.0, 0.0], [4.0, 4.0]]])
    path = maps.heat(tmp_path / "map.png", {"here": values}, walls, (0, 4, 0, 4), "visits", {"vest": (3.0, 1.0)})
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = picture.shape[:2]
    coloured = np.ptp(picture, axis=-1) > 60
    columns = coloured[:, : int(width * 0.7)]  # without the bar
    rows, across = np.nonzero(columns)
    north_west = (rows < height * 0.45) & (across < width * 0.35)
    assert north_west.mean() > 0.8


def test_heat_takes_several_maps_and_empty_ones(tmp_path):
    both = {"one": np.ones((2, 3)), "none": np.zeros((2, 3))}
    path = maps.heat(tmp_path / "maps.png", both, np.zeros((1, 2, 2)), (0, 3, 0, 2), "bonus", log=False)
    assert Image.open(path).width > Image.open(path).height
