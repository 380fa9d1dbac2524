"""From the words of a command line to a command: types of options, overview and errors in one line."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from offroad.errors import OffroadError, unknown


def _whole(text: str) -> int:
    number = float(text.replace("_", ""))
    if not number.is_integer() or number < 0:
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


Whole = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=lambda words: _whole(words[0]),
        is_instance=lambda x: isinstance(x, int),
        str_from_instance=lambda x: [f"{x:_}"],
    ),
]


EnvOptions = Annotated[tuple[str, ...], UseAppendAction, tyro.conf.arg(name="env-option", metavar="KEY=VALUE")]


def env_options(words: tuple[str, ...], rom: str | Path | None = None) -> dict[str, Any]:
    """`start=sparse mirror=true levels=[0,1]` as keyword arguments: JSON where the value is JSON, else text."""
    options: dict[str, Any] = {} if rom is None else {"rom": str(rom)}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name.isidentifier() and equals):
            raise OffroadError(f"--env-option {word} is no option; expected KEY=VALUE, such as start=sparse")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def overview(commands: Mapping[str, type]) -> str:
    lines = ["usage: offroad COMMAND ...", "", "Reinforcement learning off the paved road.", ""]
    for name, command in commands.items():
        sentence, _, example = (command.__doc__ or "").partition("\n\n")
        lines += [f"  {name:12} {sentence}", f"  {'':12}   {example.strip().removeprefix('Example: ')}"]
    return "\n".join([*lines, "", "offroad COMMAND --help shows a command's options."])


def parse(command: type, name: str, argv: list[str]) -> Any:
    """The command with its options. Raises `OffroadError` in one line where tyro prints a box."""

    def attempt(args: list[str]) -> Any:
        return tyro.cli(
            command, prog=f"offroad {name}", args=args, return_unknown_args=True, config=(FlagCreatePairsOff,)
        )

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, extra = attempt(argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╮╰╯ ") for line in said.getvalue().splitlines()][1:]  # without the title
        message = " ".join(itertools.takewhile(lambda line: not line.startswith("──"), lines))
        raise OffroadError(f"{' '.join(message.split())}; offroad {name} --help shows all options") from None
    if extra:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            attempt([*argv, "--help"])
        raise unknown("option", extra[0].split("=")[0], set(re.findall(r"--[a-z][\w.-]*", shown.getvalue())))
    return parsed
