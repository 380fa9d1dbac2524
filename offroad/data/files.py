"""What all readers of files share: one sentence for whatever is wrong with a file, and NumPy's archives."""

import csv
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from offroad.errors import OffroadError

Getters = Mapping[str, Callable[[], Any]]
"""The arrays of a file by their names, read when they are asked for."""

MAP_ABOVE = 2**28
"""Arrays that are larger than this many bytes and not compressed stay on the disk and are mapped into memory."""

_OTHER = (KeyError, TypeError, AttributeError, RuntimeError, csv.Error, tokenize.TokenError)
"""What NumPy, h5py and csv raise besides, where a file is not what its name says."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever the readers of files raise into one sentence."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, *_OTHER) as error:
        said = str(error).partition("\n")[0]
        raise OffroadError(f"'{path}' cannot be read ({said}); it is damaged, cut short or of another kind") from error
    except MemoryError as error:
        mend = "if it is not damaged, save it on a larger machine as a folder of .npy files, which are mapped"
        raise OffroadError(f"'{path}' does not fit into memory ({error}); {mend}") from error


@contextmanager
def npz(path: Path) -> Iterator[Getters]:
    with zipfile.ZipFile(path) as archive:  # NumPy takes a file that is none for a pickle
        plain = [x for x in archive.infolist() if x.compress_type == zipfile.ZIP_STORED and x.file_size > MAP_ABOVE]
        offsets = {x.filename.removesuffix(".npy"): x.header_offset for x in plain}
    with np.load(path, allow_pickle=False) as file:

        def read(name: str) -> np.ndarray:
            mapped = _map_member(path, offsets[name]) if name in offsets else None
            return file[name] if mapped is None else mapped

        yield {name: lambda name=name: read(name) for name in file.files}


def _map_member(path: Path, header: int) -> np.ndarray | None:
    """The array in a part of an archive that is not compressed, mapped; None if it holds no plain numbers."""
    with path.open("rb") as file:
        file.seek(header + 26)  # a part begins with 30 bytes, the last four of which tell how much stands before it
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(header + 30 + name + extra)
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            return None
        return np.asarray(np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C"))
