"""What the maze's walls, floor and ceiling look like: sets of Freedoom's textures for training, and others held out.

No texture, and no family of textures (names with the same letters), is in sets of both kinds; none is in the shipped
map. None is animated: an animated wall is a small television, which rewards those who look at it. The shipped map has
one such wall, so the set `original` shows a still stone wall (`GSTONE2`) there.
"""

import hashlib
from collections.abc import Sequence

from offroad.errors import OffroadError, unknown

# The shipped map's eight kinds of walls, in the order of the sets below; then floor and ceiling.
WALLS = ("BIGBRIK1", "BIGDOOR2", "CEIL4_2", "COMP01", "CRATE2", "FLOOR1_6", "SFALL2", "SILVER2", "TLITE6_1")
FLAT = "FLAT1_1"

ORIGINAL = {"texturemiddle SFALL2": "GSTONE2"}

# Eight walls (the last of the shipped map's nine kinds looks like the first), then floor and ceiling.
SETS = {
    "train-0": "A-CONCTE CEMENT1 MODWALL3 A-CAMO1 BIGBRIK2 A-MOSBRI BRONZE1 A-BROWN1 / FLAT20 FLOOR6_1",
    "train-1": "SHAWN2 STARG3 ROCK4 GSTONE1 ASHWALL2 BSTONE2 MARBLE1 METAL1 / CEIL3_3 FLOOR5_1",
    "train-2": "A-VINES ICKWALL1 GRAYVINE BRONZE3 BRICK3 A-DBRI1 MARBLE3 METAL5 / FLOOR7_1 FLAT14",
    "train-3": "A-BRICK2 A-MUD A-MYWOOD BRICK5 PANEL6 A-TILE PANEL4 SILVER1 / FLAT5_4 MFLR8_1",
    "train-4": "A-BRICK1 A-BROWN3 CRATE1 PANBOOK ROCK1 BROWNGRN COMPBLUE REDWALL / MFLR8_4 FLAT8",
    "train-5": "GRAY1 A-ROCK BROWN1 BRICK10 CUBICLE BROWN96 BLAKWAL1 BRICK1 / FLOOR0_1 FLAT10",
    "train-6": "BRICK7 MODWALL1 A-MOULD GRAYBIG GRAY7 BIGDOOR4 CEMENT7 GSTVINE1 / CEIL5_1 CEIL1_1",
    "train-7": "BSTONE1 COMPTALL A-PBRIK8 ICKWALL3 A-MARBLE BROWNHUG ASHWALL4 SKINMET1 / RROCK10 FLOOR4_6",
    "held-out-0": "ZIMMER8 AQTILE01 WOOD5 STONE AQBRIK01 ZIMMER5 AQCONC02 AQPANL05 / AQF021 AQF055",
    "held-out-1": "WOOD8 AQSECT01 AQSECT12 WOOD1 AQPANL01 TEKBRON1 ZIMMER1 ZIMMER3 / AQF065 AQF031",
    "held-out-2": "TEKWALL4 TEKGREN3 AQMETL19 STONE6 AQMETL03 AQRUST05 STONE2 AQMETL08 / AQF001 GRASS1",
    "held-out-3": "AQRUST09 AQSECT08 TEKWALL1 TEKGREN1 AQCONC13 STONE4 AQRUST01 AQTILE03 / AQF045 AQF011",
}
GROUPS = {kind: tuple(name for name in SETS if name.startswith(kind)) for kind in ("train", "held-out")}


def chosen(names: str | Sequence[str]) -> tuple[str, ...]:
    """The sets meant by a name, a group (`"train"`, `"held-out"`) or several of them, each once."""
    found: list[str] = []
    for name in (names,) if isinstance(names, str) else names:
        if name not in ("original", *SETS, *GROUPS):
            raise unknown("texture set", name, ("original", *SETS, *GROUPS))
        found += GROUPS.get(name, (name,))
    if not found:
        raise OffroadError(f"no textures are given; known sets: {', '.join(('original', *SETS, *GROUPS))}")
    return tuple(dict.fromkeys(found))


def replacements(name: str) -> dict[str, str]:
    """Which texture takes the place of which in the map's text; keys as in `wad.retexture`."""
    if name == "original":
        return ORIGINAL
    walls, flats = (part.split() for part in SETS[name].split(" / "))
    middles = {f"texturemiddle {old}": new for old, new in zip(WALLS, (*walls, walls[0]))}
    return middles | {f"texturefloor {FLAT}": flats[0], f"textureceiling {FLAT}": flats[1]}


def digest(names: str | Sequence[str]) -> str:
    """The first 16 letters of a SHA-256 of the sets' contents, for reports."""
    text = "\n".join(f"{name}: {SETS.get(name, ORIGINAL)}" for name in chosen(names))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
