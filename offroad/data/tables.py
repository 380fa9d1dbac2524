"""Logs as tables, CSV or Parquet: a row for each step, numbers in columns; an array of width d is d columns."""

import csv as csv_module
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from offroad.data.files import Getters
from offroad.errors import OffroadError


@contextmanager
def csv(path: Path) -> Iterator[Getters]:
    """The columns of a CSV file whose first line is their names."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *lines = list(csv_module.reader(file)) or [[]]
    if not header:
        raise OffroadError(f"'{path}' is empty; expected a first line of column names, and a row for each step")
    if twice := [name for i, name in enumerate(header) if name in header[:i]]:
        raise OffroadError(
            f"the first line of '{path}' names {twice[0]!r} twice; expected a name of its own for each column"
        )
    lines = [line for line in lines if line]
    for row, line in enumerate(lines):
        if len(line) != len(header):
            raise OffroadError(
                f"row {row} of '{path}' has {len(line)} fields, its header {len(header)}; is it cut short?"
            )
    columns = list(zip(*lines)) if lines else [()] * len(header)
    yield _grouped({name: lambda cells=cells: _numbers(cells) for name, cells in zip(header, columns)})


@contextmanager
def parquet(path: Path) -> Iterator[Getters]:
    """The columns of a Parquet file; lists of equal lengths become arrays of that width."""
    file = _pyarrow().parquet.ParquetFile(path)

    def read(name: str) -> np.ndarray:
        column = file.read(columns=[name]).column(name).combine_chunks()
        if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
            return column.to_numpy(zero_copy_only=False)
        values, rows = column.flatten().to_numpy(zero_copy_only=False), len(column)
        if rows and (len(values) % rows or len(set(column.value_lengths().to_pylist())) > 1):
            raise OffroadError(f"column {name!r} of '{path}' has lists of different lengths; expected one length")
        return values.reshape(rows, -1)

    yield _grouped({name: lambda name=name: read(name) for name in file.schema_arrow.names})


def columns_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a table for arrays `[steps]` or `[steps, d]`: the inverse of how tables are read."""
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim > 2:
            raise OffroadError(f"{name!r} has shape {array.shape}, which no table holds; save it as .npz or .hdf5")
        array = array.astype(np.uint8) if array.dtype == bool else array
        columns |= {name: array} if array.ndim == 1 else {f"{name}_{i}": array[:, i] for i in range(array.shape[1])}
    return columns


def write_csv(path: Path, arrays: dict[str, np.ndarray]) -> None:
    columns = columns_of(arrays)
    with open(path, "w", newline="") as file:
        writer = csv_module.writer(file)
        writer.writerow(columns)
        # str of a NumPy float is the shortest number that is read back as the same one.
        writer.writerows(zip(*([str(x) for x in column] for column in columns.values())))


def write_parquet(path: Path, arrays: dict[str, np.ndarray]) -> None:
    pyarrow = _pyarrow()
    pyarrow.parquet.write_table(pyarrow.table(columns_of(arrays)), path)


def _grouped(columns: dict[str, Callable[[], np.ndarray]]) -> Getters:
    """Numbered columns `x_0`, `x_1`, ... as one array `x`; each also by its own name, but not in dicts (`x/y_0`)."""
    groups: dict[str, dict[int, str]] = {}
    for name in columns:
        if numbered := re.fullmatch(r"(.+)_(\d+)", name):
            groups.setdefault(numbered[1], {})[int(numbered[2])] = name
    groups = {stem: names for stem, names in groups.items() if 0 in names}  # not the year in `sales_2024`

    def stacked(stem: str) -> np.ndarray:
        names = groups[stem]
        if missing := sorted(set(range(len(names))) - names.keys()):
            raise OffroadError(
                f"of the columns {', '.join(names.values())} there is no {stem}_{missing[0]}; number them from 0 on "
                "without a gap, or name those that are meant"
            )
        return np.stack([columns[names[number]]() for number in range(len(names))], axis=-1)

    apart = {name: get for name, get in columns.items() if "/" not in name or not re.fullmatch(r".+_\d+", name)}
    return {**{stem: lambda stem=stem: stacked(stem) for stem in groups}, **apart}


def _numbers(cells: tuple[str, ...]) -> np.ndarray:
    """Whole numbers, else floats (an empty cell is NaN), else truth values, else the strings as they are."""
    words = np.array(cells)
    for kind in (np.int64, np.float64):
        try:
            return (words if kind is np.int64 else np.where(words == "", "nan", words)).astype(kind)
        except (ValueError, OverflowError):
            continue
    lower = np.char.lower(words)
    return lower == "true" if np.isin(lower, ("true", "false")).all() else words


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OffroadError("Parquet files need the package pyarrow: pip install 'offroad[parquet]'") from None
    return pyarrow
