"""Checkpoints: arrays in `arrays.npz`, everything else in `state.json`, checksums over both, and no pickle.

A checkpoint is a folder. It is written under a hidden name beside its final one, forced to the disk and then renamed: a
process that is killed at any moment leaves the old checkpoint or the new one, whole.
"""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from offroad.data.strict_json import strict
from offroad.errors import OffroadError

FORMAT = 1


def save(folder: Path, tree: dict[str, Any]) -> None:
    """Writes `tree` as the checkpoint `folder`, replacing one of that name.

    `tree` is a dict of named parts. A part is nested from dicts, lists and tuples, and may hold any other pytree (an
    agent, an optimiser state). Leaves are NumPy or JAX arrays of any numeric or string dtype, typed PRNG keys, integers
    of any size, floats, strings, booleans and None; functions are left out, `Saved.restore` takes the template's.
    Arrays are written one by one straight from their memory.

    Raises `OffroadError` for other leaves, and when the disk is full or not writable: then nothing is left behind and
    what was there before is untouched.
    """
    folder = Path(folder)
    arrays: list[Any] = []
    content = {name: _encode(part, name, arrays) for name, part in tree.items()}
    partial, old = _hidden(folder, "part"), _hidden(folder, "old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _heal(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        content = {"tree": content, "arrays_sha256": _write_arrays(partial / "arrays.npz", arrays)}
        state = {"format": FORMAT, "sha256": _sha256(content), "content": content}
        with open(partial / "state.json", "w") as file:
            json.dump(state, file, allow_nan=False)
            _sync(file)
        _sync_folder(partial)
        if folder.exists():
            folder.rename(old)  # a kill between these two lines is mended by `_heal`
        partial.rename(folder)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OffroadError(
            f"cannot save the checkpoint '{folder}': {error.strerror or error}; earlier checkpoints are untouched: "
            "free some space or mend the permissions, then resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and found whole. Arrays are read from the file when they are asked for."""

    folder: Path
    _tree: dict[str, Any]
    _arrays: np.lib.npyio.NpzFile

    def restore(self, name: str, like: Any, at: str = "") -> Any:
        """The part `name` in the structure of `like`, a pytree whose leaves tell shapes and dtypes.

        `at` is where in the part `like` was, such as ".agent"; what is beside it stays unread.

        JAX arrays come back where `like` has JAX arrays or `ShapeDtypeStruct`s, NumPy arrays where it has those. Raises
        `OffroadError` naming the first leaf that is missing, superfluous or of another kind, shape or dtype.
        """
        root = name + at
        saved = {path: node for path, node in _leaves(self._part(name), name) if path.startswith(root)}
        flat, structure = tree_flatten_with_path(like, is_leaf=lambda x: x is None)
        wanted = {root + keystr(path): leaf for path, leaf in flat}
        for path in [*wanted, *saved]:
            if path not in saved or path not in wanted:
                found, expected = ("nothing", "a leaf") if path not in saved else ("a leaf", "nothing")
                raise self._mismatch(path, found, expected)
        return jax.tree.unflatten(structure, [self._fill(saved[path], leaf, path) for path, leaf in wanted.items()])

    def value(self, name: str) -> Any:
        """The part `name`, which must consist of dicts, lists, tuples and leaves alone; arrays come back as NumPy's."""
        return self._decode(self._part(name), name)

    @property
    def names(self) -> list[str]:
        return list(self._tree)

    def _part(self, name: str) -> Any:
        if name not in self._tree:
            raise OffroadError(f"the checkpoint '{self.folder}' holds no {name!r}, only {', '.join(self._tree)}")
        return self._tree[name]

    def _mismatch(self, path: str, found: str, expected: str) -> OffroadError:
        return OffroadError(
            f"the checkpoint '{self.folder}' does not fit: at {path} found {found}, expected {expected}; "
            "build the template with the configuration that the run was started with"
        )

    def _fill(self, node: Any, leaf: Any, path: str) -> Any:
        if callable(leaf) and isinstance(node, dict) and "function" in node:
            return leaf
        if (found := _describe_saved(node)) != (expected := _describe(leaf)):
            raise self._mismatch(path, found, expected)
        value = self._decode(node, path)
        is_jax = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return jnp.array(value) if is_jax and isinstance(value, np.ndarray) else value

    def _decode(self, node: Any, path: str) -> Any:
        match node:
            case {"dict": items}:
                return {k: self._decode(v, f"{path}[{k!r}]") for k, v in items.items()}
            case list():
                return [self._decode(v, f"{path}[{i}]") for i, v in enumerate(node)]
            case {"tuple": items}:
                return tuple(self._decode(v, f"{path}[{i}]") for i, v in enumerate(items))
            case {"float": text}:
                return float(text)
            case {"key": implementation, "array": index}:
                return jax.random.wrap_key_data(jnp.array(self._arrays[str(index)]), impl=implementation)
            case {"array": index, "dtype": dtype}:
                return self._arrays[str(index)].view(jnp.dtype(dtype))
            case {"scalar": index, "dtype": dtype}:
                return self._arrays[str(index)].view(jnp.dtype(dtype))[()]
            case {"function": kind} | {"pytree": kind}:
                raise OffroadError(
                    f"{path} in the checkpoint '{self.folder}' is a {kind}, which is read with restore(name, like=...)"
                )
        return node


class _Damaged(OffroadError):
    """A checkpoint that is not as it was written."""


def load(folder: Path) -> Saved:
    """Reads a checkpoint. Raises `OffroadError` if it is missing, damaged or of another format."""
    folder = Path(folder)
    _heal(folder)
    if not folder.is_dir():
        raise OffroadError(f"there is no checkpoint '{folder}'")
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        if state["format"] != FORMAT:
            raise OffroadError(
                f"the checkpoint '{folder}' is of format {state['format']!r}, expected {FORMAT}; "
                "read it with the version of offroad that wrote it (see the run's config.json)"
            )
        content = state["content"]
        if _sha256(content) != state["sha256"]:
            raise ValueError("its checksum does not match")
        path = folder / "arrays.npz"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != content["arrays_sha256"]:
                raise ValueError("its checksum does not match")
        return Saved(folder, content["tree"], np.load(path, allow_pickle=False))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"the checkpoint file '{path}' is damaged ({error}); delete '{folder}'") from error
    except OSError as error:
        raise OffroadError(f"cannot read the checkpoint file '{path}': {error.strerror}; mend it and resume") from error


def load_latest(folder: Path) -> Saved | None:
    """The newest checkpoint `step_*` in `folder`, None if there is none.

    Raises `OffroadError` if the newest is damaged, naming the newest one that is whole: falling back to it silently
    would hide that training was lost.
    """
    found = steps(folder)
    if not found:
        return None
    try:
        return load(found[-1])
    except _Damaged as error:
        whole = next((older for older in reversed(found[:-1]) if _is_whole(older)), None)
        mend = f"to continue from '{whole}', which is whole" if whole else "to start again, as no older one is whole"
        raise OffroadError(f"{error} {mend}") from error


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, verified as in `load_latest`."""
    saved = load_latest(folder)
    return saved.folder if saved else None


def steps(folder: Path) -> list[Path]:
    """The checkpoints `step_*` in `folder`, oldest first, unverified."""
    folder = Path(folder)
    for old in folder.glob(".step_*.old"):
        _heal(folder / old.name[1:].removesuffix(".old"))
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def prune(folder: Path, keep: int = 2) -> None:
    """Deletes all but the newest `keep` checkpoints in `folder`, and what killed processes left."""
    for path in steps(folder)[:-keep]:
        path.rename(_hidden(path, "part"))  # so that a kill leaves no half-deleted checkpoint under a good name
    for path in [*folder.glob(".step_*.part"), *folder.glob(".step_*.old")]:
        shutil.rmtree(path, ignore_errors=True)


def _encode(node: Any, path: str, arrays: list[Any]) -> Any:
    """The node as JSON; arrays are appended to `arrays` and referred to by index."""

    def put(array: Any) -> int:
        arrays.append(array)
        return len(arrays) - 1

    match node:
        case dict():
            if odd := [k for k in node if not isinstance(k, str)]:
                raise OffroadError(f"cannot save {path}: its key {odd[0]!r} is a {type(odd[0]).__name__}, expected str")
            return {"dict": {k: _encode(v, f"{path}[{k!r}]", arrays) for k, v in node.items()}}
        case list():
            return [_encode(v, f"{path}[{i}]", arrays) for i, v in enumerate(node)]
        case tuple() if not hasattr(node, "_fields"):
            return {"tuple": [_encode(v, f"{path}[{i}]", arrays) for i, v in enumerate(node)]}
        case np.ndarray() | np.generic() | jax.Array():
            if jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
                key: Any = node
                return {"key": str(jax.random.key_impl(key)), "array": put(jax.random.key_data(key)), **_shape(node)}
            if node.dtype.hasobject or node.dtype.names:
                raise OffroadError(f"cannot save {path}: an array of dtype {node.dtype}, expected numbers or strings")
            return {"scalar" if isinstance(node, np.generic) else "array": put(node), **_shape(node)}
        case None | bool() | int() | str():
            return node
        case float():
            return node if np.isfinite(node) else {"float": strict(node)}
    flat, _ = tree_flatten_with_path(node, is_leaf=lambda x: x is None)
    if len(flat) == 1 and flat[0][1] is node:
        if not callable(node):
            raise OffroadError(
                f"cannot save {path}: a {type(node).__name__}; expected arrays, numbers, strings, booleans, None and "
                "pytrees of them"
            )
        return {"function": getattr(node, "__qualname__", type(node).__qualname__)}
    leaves = {keystr(p): _encode(leaf, path + keystr(p), arrays) for p, leaf in flat}
    return {"pytree": type(node).__qualname__, "leaves": leaves}


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of an encoded node with the paths that JAX gives them in the original."""
    match node:
        case {"dict": items}:
            for k, v in items.items():
                yield from _leaves(v, f"{path}[{k!r}]")
        case list() | {"tuple": list()}:
            for i, v in enumerate(node if isinstance(node, list) else node["tuple"]):
                yield from _leaves(v, f"{path}[{i}]")
        case {"pytree": _, "leaves": leaves}:
            yield from ((path + k, v) for k, v in leaves.items())
        case _:
            yield path, node


def _shape(array: Any) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _describe(leaf: Any) -> str:
    """What must agree between a saved leaf and the template's: dtype and shape, or the type."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return "None" if leaf is None else type(leaf).__name__


def _describe_saved(node: Any) -> str:
    match node:
        case {"dtype": dtype, "shape": shape}:
            return f"{dtype}{shape}"
        case {"float": _}:
            return "float"
        case {"function": _}:
            return "function"
    return _describe(node)


class _Hashing:
    """A file that is written front to back while its checksum is computed."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_arrays(path: Path, arrays: list[Any]) -> str:
    with open(path, "wb") as file:
        hashing = _Hashing(file)
        with zipfile.ZipFile(hashing, "w") as archive:  # pyright: ignore
            for i, array in enumerate(arrays):
                array = np.asarray(array)
                if array.dtype.kind == "V":  # bfloat16 and its like, which the format does not know
                    array = array.view(f"u{array.dtype.itemsize}")
                with archive.open(f"{i}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        _sync(file)
    return hashing.sha256.hexdigest()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def _hidden(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def _heal(folder: Path) -> None:
    """Puts the old checkpoint back if a process was killed just before its replacement took the name."""
    old = _hidden(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def _is_whole(folder: Path) -> bool:
    try:
        load(folder)
    except OffroadError:
        return False
    return True


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
