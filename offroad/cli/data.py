"""The commands about data sets, and how a command loads one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from offroad.cli.parsing import Whole
from offroad.errors import OffroadError, unknown

Ends = Literal["terminated", "truncated"] | None


@dataclass
class DataInspect:
    """Say what a data set holds, what is wrong with it, and with which method and settings to begin.

    Example: offroad data inspect log.csv --ends terminated
    """

    file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE")]
    """An .npz, .hdf5, .csv or .parquet file, a folder of .npy files, or a Minari data set."""
    env: str | None = None
    """The environment that the data are from: its spaces must fit, and its action bounds are held against them."""
    ends: Ends = None
    """What the end of an episode means where the file has no flags."""
    columns: tuple[str, ...] = ()
    """Names in the file, such as rewards=click observations=age,height; terminated= ignores that column."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        from rich.console import Console

        from offroad import make_vec
        from offroad.data import doctor
        from offroad.data.spaces import Spaces
        from offroad.data.strict_json import dumps

        dataset = load(self.file, self.ends, self.columns)
        diagnosis = doctor.examine(dataset, Spaces.of(make_vec(self.env)) if self.env else None, self.file)
        if self.json:
            print(dumps(diagnosis.to_json(), indent=1))
        else:
            doctor.show(diagnosis, Console())
        return 0


def load(file: Path, ends: Ends, columns: tuple[str, ...]) -> Any:
    """The data set in a file whose columns are named by words such as `rewards=click`."""
    from offroad.data import readers

    names: dict[str, str | tuple[str, ...] | None] = {}
    for part in columns:
        name, equals, found = part.partition("=")
        if not equals:
            raise OffroadError(f"the column {part!r} has no '='; expected for example rewards=click")
        names[name] = tuple(found.split(",")) if "," in found else found or None
    return readers.load(file, ends=ends, **names)


@dataclass
class DataMake:
    """Generate a data set: of the mazes by D4RL's recipe, of kitchen and pendulum by a script.

    Example: offroad data make antmaze-medium-diverse --out antmaze-medium-diverse.npz
    """

    name: Positional[str]
    """BODYmaze-MAZE-KIND: ant or point; umaze, medium or large; diverse, play or nothing. Or kitchen-KIND, or
    pendulum-mixed."""
    out: Path
    """The file, an .npz."""
    steps: Whole = 1_000_000
    """Rows of the data set."""
    seed: int = 0
    """Other seeds, other episodes."""

    def run(self) -> int:
        from offroad.envs import recipes
        from offroad.train.progress import Progress

        if self.name not in recipes.NAMES:
            raise unknown("data set that can be made", self.name, recipes.NAMES)
        if self.out.suffix != ".npz" or not self.out.parent.is_dir():
            raise OffroadError(f"--out is '{self.out}'; expected the name of an .npz file in a folder that exists")
        with Progress(self.steps) as progress:
            made = recipes.make(self.name, self.steps, self.seed, progress=progress.update)
        made.save(self.out)
        print(made.summary)
        print(f"{self.out}; next: offroad data inspect {self.out}")
        return 0
