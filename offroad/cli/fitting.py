"""The command `offroad fit residual`."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from offroad.errors import OffroadError


@dataclass
class FitResidual:
    """Correct a simulator by a log of the real robot, and say what the correction is worth.

    Example: offroad fit residual --simple HamrSimple-v0 --log log.csv
    """

    simple: str
    """The simulator: an environment id, or a MuJoCo XML file."""
    log: Path
    """The log, .csv, .parquet or .npz: columns q_0, q_1, ..., u_0, ..., and time; qd_0, ... and episode if known."""
    out: Path | None = None
    """The folder for the model and the report; by default runs/fit-LOG."""
    joints: tuple[str, ...] = ()
    """The joints of the simulator that the log holds, in its order; by default all hinges and sliders."""
    q: tuple[str, ...] = ()
    """The columns of positions, if they are not q_0, q_1, ...: --q hip knee."""
    u: tuple[str, ...] = ()
    """The columns of inputs, if they are not u_0, u_1, ...: --u volts."""
    qd: tuple[str, ...] = ()
    """The columns of velocities, if they are not qd_0, qd_1, ..."""
    time: str | None = None
    """The column of times, if it is not time."""
    episode: str | None = None
    """The column that tells recordings apart, if it is not episode."""
    form: Literal["auto", "action", "delta", "dynamics"] = "auto"
    """What is corrected: the simulator's controls (action, delta) or its forces (dynamics)."""
    dt: float | None = None
    """The time between two rows, if the log has no column time."""
    delay: int | None = None
    """Rows between an input and its effect; by default it is searched for."""
    ignore: tuple[Literal["constant", "units", "signal", "actuation"], ...] = ()
    """Checks of the log to leave out."""
    gaps: Literal["error", "split"] = "error"
    """What a gap in time means: an error, or the begin of another episode."""
    seed: int = 0
    """Seed of the networks."""

    def run(self) -> int:
        from offroad.fit import fit_residual

        out = self.out or Path("runs") / f"fit-{self.log.stem}"
        named = {name: value for name in ("q", "u", "qd", "time", "episode") if (value := getattr(self, name))}
        try:
            fit_residual(
                self.simple, self.log, out, joints=self.joints, columns=named, form=self.form, dt=self.dt,
                delay=self.delay, gaps=self.gaps, ignore=self.ignore, seed=self.seed,
            )  # fmt: skip
        except OffroadError as error:
            raise OffroadError(as_options(str(error))) from error
        print(f"model: {out} (offroad.models.load)")
        return 0


def as_options(message: str) -> str:
    """A message with what it says of Python's arguments, `gaps='split'`, as options of the command: `--gaps split`."""
    names = "|".join(field.name for field in fields(FitResidual))

    def option(match: re.Match[str]) -> str:
        words = re.findall(r"[\w.]+", match[2] or "")
        return " ".join([f"--{match[1]}", *words])

    return re.sub(rf"\b({names})=(\([^)]*\)|'[^']*'|\.\.\.)?", option, message)
