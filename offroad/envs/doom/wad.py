"""Doom's map files, changed without a compiler: lumps, the text of a map, and the numbers in its compiled script.

A WAD is a header, named pieces of data (lumps) one after the other, and a directory. ViZDoom's `my_way_home.wad` holds
one map in UDMF, Doom's text format. Formats: the Unofficial Doom Specs and the UDMF specification.
"""

import re
import struct
from collections.abc import Mapping

from offroad.errors import OffroadError

Lumps = list[tuple[str, bytes]]

_BLOCK = re.compile(r"(vertex|linedef|sidedef|sector|thing)(\s*(?://[^\n]*)?\s*)\{([^}]*)\}")
_FIELD = re.compile(r"(\w+)\s*=\s*([^;]+);")
_GLOBALS = b"MINI"  # the chunk of a compiled script with the first values of its variables
_RANDOM_ANGLE = bytes.fromhex("b00000 0300000100 39")  # push 0, 0; push 1.0; random: the script's start angle
_FIXED_ANGLE = bytes.fromhex("b00000 0300000000 39")


def read(data: bytes) -> Lumps:
    """The lumps of a WAD file in order."""
    if len(data) < 12 or data[:4] not in (b"PWAD", b"IWAD"):
        raise OffroadError(f"data that start with {data[:4]!r} are no WAD file; expected PWAD or IWAD")
    count, directory = struct.unpack("<ii", data[4:12])
    lumps = []
    for i in range(count):
        start, size, name = struct.unpack_from("<ii8s", data, directory + 16 * i)
        lumps.append((name.split(b"\0")[0].decode("ascii"), data[start : start + size]))
    return lumps


def write(lumps: Lumps) -> bytes:
    """The inverse of `read`."""
    body, directory = bytearray(), bytearray()
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode("ascii"))
        body += data
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + bytes(body) + bytes(directory)


def variant(lumps: Lumps, name: str, spot: int, textures: Mapping[str, str], mirror: bool) -> Lumps:
    """`my_way_home`'s map once more, as map `name` (at most 8 letters), with another start and another look.

    Args:
        spot: number of the map spot where episodes start, facing east.
        textures: new names for the texture names of the map's text.
        mirror: turns y around. The map's nodes, the engine's search tree, are left out then: it builds new ones.
    """
    found = []
    for lump, data in lumps:
        if lump == "TEXTMAP":
            data = retexture(data.decode("ascii"), textures)
            data = (mirrored(data) if mirror else data).encode("ascii")
        elif lump == "BEHAVIOR":
            data = with_start(data, spot)
        elif lump == "ZNODES" and mirror:
            continue
        found.append((name if lump == "MAP01" else lump, data))
    return found


def with_start(behaviour: bytes, spot: int) -> bytes:
    """The compiled script with one start spot instead of a range of them, and angle 0 instead of a random one."""
    at = behaviour.find(_GLOBALS)
    if at < 0 or behaviour.count(_RANDOM_ANGLE) != 1:
        raise OffroadError("the map's script is not that of ViZDoom's my_way_home.wad; install vizdoom 1.3")
    # After the chunk's name and size: index of the first variable, then x of the armour, its id, first spot, spots.
    start = at + 8 + 3 * 4
    patched = behaviour[:start] + struct.pack("<ii", spot, 1) + behaviour[start + 8 :]
    return patched.replace(_RANDOM_ANGLE, _FIXED_ANGLE)


def blocks(text: str) -> dict[str, list[dict[str, str]]]:
    """The fields of all vertices, linedefs, sidedefs, sectors and things of a map's text, in order."""
    found: dict[str, list[dict[str, str]]] = {kind: [] for kind in ("vertex", "linedef", "sidedef", "sector", "thing")}
    for kind, _, body in _BLOCK.findall(text):
        found[kind].append({name: value.strip().strip('"') for name, value in _FIELD.findall(body)})
    return found


def retexture(text: str, textures: Mapping[str, str]) -> str:
    """The map's text with other names of textures. Names of walls and of floors are looked up with their kind, as
    `"texturemiddle CEIL4_2"`, since Doom uses some names for both."""

    def swap(match: re.Match[str]) -> str:
        return f'{match[1]} = "{textures.get(f"{match[1]} {match[2]}", match[2])}"'

    return re.sub(r'(texture\w+)\s*=\s*"([^"]*)"', swap, text)


def mirrored(text: str) -> str:
    """The map's text with y turned around: what was on the left is on the right."""

    def negate(value: str) -> str:
        return value[1:] if value.startswith("-") else f"-{value}"

    def turn(match: re.Match[str]) -> str:
        kind, comment, body = match.groups()
        if kind in ("vertex", "thing"):
            body = re.sub(r"\b(y|angle)(\s*=\s*)([^;]+)", lambda m: m[1] + m[2] + negate(m[3]), body)
        elif kind == "linedef":  # a line's front is on its right, so its ends change places
            body = re.sub(r"\bv([12])(?=\s*=)", lambda m: f"v{3 - int(m[1])}", body)
        return f"{kind}{comment}{{{body}}}"

    return _BLOCK.sub(turn, text)
