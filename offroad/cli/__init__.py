"""The command line. Nothing heavy is imported before a command needs it, so that help comes at once."""

import os
import select
import sys

from offroad.cli.commands import Demo, Export, List, Play, Report, Reproduce
from offroad.cli.data import DataInspect, DataMake
from offroad.cli.fitting import FitResidual
from offroad.cli.parsing import overview, parse
from offroad.cli.training import Train, with_options
from offroad.errors import OffroadError, unknown

COMMANDS: dict[str, type] = {
    "list": List,
    "reproduce": Reproduce,
    "train": Train,
    "play": Play,
    "report": Report,
    "export": Export,
    "demo": Demo,
    "fit residual": FitResidual,
    "data inspect": DataInspect,
    "data make": DataMake,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 2 for a user's mistake, 130 for an interruption."""
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, not at exit, where nothing could be caught
        return status
    except BrokenPipeError:
        if not _reader_gone():
            raise  # another pipe: a world that died
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 141  # what a shell shows for SIGPIPE
    except OffroadError as error:
        print(f"offroad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS))
        return 0
    if argv[0] == "--version":
        from offroad import __version__

        print(f"offroad {__version__}")
        return 0
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name, rest = " ".join(argv[:words]), argv[words:]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = with_options(rest) if name == "train" else COMMANDS[name]
    try:
        return parse(command, name, rest).run()
    except SystemExit as stop:  # help was shown
        return int(stop.code or 0)


def _reader_gone() -> bool:
    """Whether nobody reads what is printed any more, as in `offroad list | head`."""
    gone = select.poll()
    gone.register(sys.stdout, 0)  # asks for errors only
    return bool(gone.poll(0))
