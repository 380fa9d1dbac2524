"""The command line. Nothing heavy is imported before a command needs it, so that help comes at once."""

import contextlib
import io
import itertools
import re
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional
from tyro.constructors import PrimitiveConstructorSpec

from offroad.errors import OffroadError, unknown
from offroad.fit_command import FitResidual


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 2 for a user's mistake, 130 for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0
        if argv[0] == "--version":
            from offroad import __version__

            print(f"offroad {__version__}")
            return 0
        words = 2 if " ".join(argv[:2]) in COMMANDS else 1
        name, rest = " ".join(argv[:words]), argv[words:]
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        return _parse(_with_options(name, rest), name, rest).run()
    except OffroadError as error:
        print(f"offroad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # help was shown
        return int(stop.code or 0)


# --- the commands ----------------------------------------------------------------------------------------------------


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


@dataclass
class List:
    """Show the environments, agents, studies and finished runs that the other commands take.

    Example: offroad list
    """

    runs: Path = Path("runs")
    """The folder in which to look for runs."""

    def run(self) -> int:
        import inspect

        import gymnasium as gym

        from offroad import agents, studies

        def title(module: str) -> str:
            return (inspect.getdoc(sys.modules[module]) or "").partition("\n")[0]

        runs = [path.parent for path in sorted(self.runs.glob("**/config.json"))]
        for heading, rows in {
            "environments (and every other Gymnasium id)": {n: "" for n in gym.registry if n.startswith("offroad/")},
            "agents": {name: title(kind.__module__) for name, (kind, _) in agents.AGENTS.items()},
            "studies": {name: studies.load(name).title for name in studies.names()},
            f"runs in {self.runs}": {str(path): "" for path in runs},
        }.items():
            print(heading)
            print("\n".join(f"  {name:24}  {text}".rstrip() for name, text in rows.items()) or "  none")
        return 0


@dataclass
class Reproduce:
    """Run the experiment behind a published claim and say whether the claim holds.

    Example: offroad reproduce traffic --profile quick
    """

    study: Positional[str]
    """The study; `offroad list` shows all."""
    profile: str = "quick"
    """How much to spend: quick (minutes), cpu (an hour or two) or paper (as published)."""
    seeds: int | None = None
    """Number of seeds; by default the profile's."""
    arms: tuple[str, ...] = ()
    """Only these arms; by default all."""
    out: Path | None = None
    """Results folder; by default results/STUDY/PROFILE."""

    def run(self) -> int:
        from offroad import studies
        from offroad.studies.study import reproduce

        reproduce(studies.load(self.study), self.profile, self.seeds, self.arms or None, self.out)
        return 0


@dataclass
class Train:
    """Train an agent in an environment and save it, with its curves, in a run folder.

    Example: offroad train ppo --env CartPole-v1 --steps 1e5
    """

    agent: Positional[str]
    """The agent; `offroad list` shows all."""
    env: str
    """Environment id, of this library or of Gymnasium."""
    steps: Whole = 1_000_000
    """Environment steps, summed over all copies; 1e6 and 1_000_000 work too."""
    num_envs: int = 1
    """Copies of the environment that run side by side."""
    seed: int = 0
    """Seed of the agent, the environments and exploration."""
    out: Path | None = None
    """Run folder; by default runs/ENV-AGENT-SEED."""
    resume: bool = False
    """Continue the run in that folder after an interruption."""
    eval_every: Whole | None = None
    """Steps between evaluations on seeds that training never sees; by default a tenth of the run."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    checkpoint_every: Whole | None = None
    """Steps between checkpoints; by default a tenth of the run."""
    wandb: bool = False
    """Log to Weights & Biases too."""

    def run(self) -> int:
        import jax

        from offroad import make_vec
        from offroad.agents import AGENTS
        from offroad.data.spaces import Spaces
        from offroad.train import Schedule, off_policy, on_policy

        config, options = self.config, self.trainer  # pyright: ignore[reportAttributeAccessIssue]
        if getattr(options, "learning_starts", 0) >= self.steps:
            raise OffroadError(
                f"--learning-starts {options.learning_starts} leaves nothing to learn in --steps {self.steps}; "
                "lower the one or raise the other"
            )
        out = self.out or Path("runs") / f"{self.env.replace('/', '-')}-{self.agent}-{self.seed}"
        env, eval_env = make_vec(self.env, self.num_envs), make_vec(self.env, self.eval_episodes)
        agent = AGENTS[self.agent][0].create(Spaces.of(env), config, jax.random.key(self.seed))
        tenth = max(self.steps // 10, 1)
        schedule = Schedule(
            evaluate=tenth if self.eval_every is None else self.eval_every,
            checkpoint=tenth if self.checkpoint_every is None else self.checkpoint_every,
            episodes=self.eval_episodes,
        )
        print(f"{self.agent} in {self.num_envs} x {self.env}, run folder {out}")
        result = (on_policy if isinstance(options, OnPolicy) else off_policy)(
            agent,
            env,
            self.steps,
            seed=self.seed,
            out=out,
            resume=self.resume,
            eval_env=eval_env,
            schedule=schedule,
            wandb=self.wandb,
            **vars(options),
        )
        if result.interrupted:
            print(f"interrupted at step {result.step:,}; the same command with --resume continues", file=sys.stderr)
            return 130
        _print_score(out, result.step, self.eval_episodes)
        return 0


@dataclass
class OnPolicy:
    rollouts_per_call: int = 1
    """Updates per compiled call, for environments written in JAX."""
    devices: int = 1
    """Spread environments and batches over this many devices."""


@dataclass
class OffPolicy:
    learning_starts: Whole = 10_000
    """Steps of random actions before learning begins."""
    train_every: int = 8
    """Steps of each copy between learning phases."""
    update_ratio: float = 1.0
    """Gradient steps per environment step."""
    devices: int = 1
    """Spread environments and batches over this many devices."""


@dataclass
class Play:
    """Watch a trained agent: a video of its episodes, or a window.

    Example: offroad play runs/CartPole-v1-ppo-0
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    episodes: int = 3
    """How many episodes."""
    window: bool = False
    """Show a window instead of writing RUN/videos/play.mp4."""
    seed: int = 0
    """Other seeds, other episodes."""

    def run(self) -> int:
        from offroad.play import play

        video, returns = play(self.run_folder, self.episodes, self.window, self.seed)
        for i, value in enumerate(returns, 1):
            print(f"episode {i}: return {value:.6g}")
        if video:
            print(video)
        return 0


@dataclass
class Report:
    """Write one HTML page about one run, several runs side by side, or a study's results.

    Example: offroad report runs/CartPole-v1-ppo-0 runs/CartPole-v1-ppo-1
    """

    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, or the results folder of one study."""
    out: Path | None = None
    """The page; by default report.html in the first folder."""

    def run(self) -> int:
        from offroad.report import html
        from offroad.train.run import Run

        if len(self.folders) == 1 and (self.folders[0] / "results.json").is_file():
            print(html.study(self.folders[0]))
            return 0
        for folder in self.folders:
            Run.open(folder)
        print(html.runs(self.folders, self.out or self.folders[0] / "report.html"))
        return 0


@dataclass
class Export:
    """Write a trained policy as policy.onnx and as policy.py with policy.npz, which needs NumPy alone.

    Example: offroad export runs/CartPole-v1-ppo-0
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    out: Path | None = None
    """Where to write; by default RUN/export."""

    def run(self) -> int:
        from offroad.export import export_policy
        from offroad.train.restore import load_agent
        from offroad.train.run import Run

        agent, config = load_agent(self.run_folder), Run.open(self.run_folder).config
        about = f"{config['agent']} trained in {config['env']['id']}"
        written = export_policy(agent, self.out or self.run_folder / "export", about)
        print("\n".join(map(str, written)))
        if not any(path.suffix == ".onnx" for path in written):
            print("no policy.onnx: it needs the package onnx (pip install 'offroad[export]')", file=sys.stderr)
        return 0


@dataclass
class Demo:
    """Record demonstrations: episodes in which a scripted expert succeeds.

    Example: offroad demo stack --blocks 4 --episodes 100
    """

    expert: Positional[str]
    """The expert: stack."""
    blocks: Whole = 3
    """How many blocks."""
    episodes: Whole = 100
    """How many successful episodes."""
    task: str = "tower"
    """What to build: tower, towers, pyramid or pick."""
    decision: str = "long"
    """Decisions of 184 ms (long) or of 40 ms (short)."""
    seed: int = 0
    """Other seeds, other episodes."""
    out: Path = Path("demonstrations.npz")
    """The file."""

    def run(self) -> int:
        from offroad.demo import demo

        found, tried = demo(
            self.expert,
            blocks=self.blocks,
            episodes=self.episodes,
            task=self.task,
            decision=self.decision,
            seed=self.seed,
        )
        found.save(self.out)
        print(f"{len(found.lengths)} episodes, {found.lengths.sum()} steps; the expert ended {tried} to get them")
        print(self.out)
        return 0


@dataclass
class DataInspect:
    """Say what a data set holds, what is wrong with it, and with which method and settings to begin.

    Example: offroad data inspect log.csv --ends terminated
    """

    file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE")]
    """An .npz, .hdf5, .csv or .parquet file, a folder of .npy files, or a Minari data set."""
    env: str | None = None
    """The environment that the data are from: its spaces must fit, and its action bounds are held against them."""
    ends: Literal["terminated", "truncated"] | None = None
    """What the end of an episode means where the file has no flags."""
    columns: tuple[str, ...] = ()
    """Names in the file, such as rewards=click observations=age,height; terminated= ignores that column."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        from rich.console import Console

        from offroad import make_vec
        from offroad.data import doctor
        from offroad.data.readers import load
        from offroad.data.spaces import Spaces
        from offroad.data.strict_json import dumps

        columns: dict[str, str | tuple[str, ...] | None] = {}
        for part in self.columns:
            name, equals, names = part.partition("=")
            if not equals:
                raise OffroadError(f"the column {part!r} has no '='; expected for example rewards=click")
            columns[name] = tuple(names.split(",")) if "," in names else names or None
        dataset = load(self.file, ends=self.ends, **columns)
        diagnosis = doctor.examine(dataset, Spaces.of(make_vec(self.env)) if self.env else None)
        if self.json:
            print(dumps(diagnosis.to_json(), indent=1))
        else:
            doctor.show(diagnosis, Console())
        return 0


COMMANDS: dict[str, type] = {
    "list": List,
    "reproduce": Reproduce,
    "train": Train,
    "play": Play,
    "report": Report,
    "export": Export,
    "demo": Demo,
    "data inspect": DataInspect,
    "fit residual": FitResidual,
}


# --- parsing ---------------------------------------------------------------------------------------------------------


def _overview() -> str:
    lines = ["usage: offroad COMMAND ...", "", "Reinforcement learning off the paved road.", ""]
    for name, command in COMMANDS.items():
        sentence, _, example = (command.__doc__ or "").partition("\n\n")
        lines += [f"  {name:12} {sentence}", f"  {'':12}   {example.strip().removeprefix('Example: ')}"]
    return "\n".join([*lines, "", "offroad COMMAND --help shows a command's options."])


def _with_options(name: str, argv: list[str]) -> type:
    """The command; `train` with the options of its agent and trainer, whose defaults depend on the environment."""
    if name != "train" or not argv or argv[0].startswith("-"):
        return COMMANDS[name]
    from offroad.agents import AGENTS, OFFLINE

    if argv[0] not in AGENTS:
        raise unknown("agent", argv[0], AGENTS)
    if argv[0] in OFFLINE:
        raise OffroadError(
            f"{argv[0]} learns from data, not from an environment; use offroad.train.offline with a data set or a "
            "replay of demonstrations in Python"
        )
    compiled, trainer = _is_compiled(argv), OnPolicy() if argv[0] == "ppo" else OffPolicy()
    config = AGENTS[argv[0]][1]
    default, copies = config(), 8
    if isinstance(trainer, OnPolicy):
        # Many short rollouts instead of one long one: as much data per update, collected faster.
        copies = 256 if compiled else 16
        default = replace(default, rollout=128, minibatch=4096) if compiled else replace(default, rollout=128)
    elif compiled:
        copies, trainer.train_every = 64, 1
    flat = tyro.conf.arg(name="")
    fields = [
        ("num_envs", int, field(default=copies)),
        ("config", Annotated[config, flat], field(default=default)),
        ("trainer", Annotated[type(trainer), flat], field(default_factory=lambda: trainer)),
    ]
    return make_dataclass("Train", fields, bases=(Train,), namespace={"__doc__": Train.__doc__})


def _is_compiled(argv: list[str]) -> bool:
    """Whether the environment after `--env` is written in JAX."""
    words = [word for arg in argv for word in arg.split("=", 1)]
    if "--env" not in words[:-1]:
        return False
    from offroad import make_vec
    from offroad.train.collect import is_compiled

    env = make_vec(words[words.index("--env") + 1])
    env.close()
    return is_compiled(env)


def _parse(command: type, name: str, argv: list[str]) -> Any:
    """The command with its options. Raises `OffroadError` in one line where tyro prints a box."""

    def parse(args: list[str]) -> Any:
        return tyro.cli(
            command, prog=f"offroad {name}", args=args, return_unknown_args=True, config=(FlagCreatePairsOff,)
        )

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, extra = parse(argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╮╰╯ ") for line in said.getvalue().splitlines()][1:]  # without the title
        message = " ".join(itertools.takewhile(lambda line: not line.startswith("──"), lines))
        raise OffroadError(f"{' '.join(message.split())}; offroad {name} --help shows all options") from None
    if extra:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            parse([*argv, "--help"])
        raise unknown("option", extra[0].split("=")[0], set(re.findall(r"--[a-z][\w.-]*", shown.getvalue())))
    return parsed


def _print_score(out: Path, step: int, episodes: int) -> None:
    from offroad.train.run import Run

    scores = [line["eval/return"] for line in Run.open(out).metrics() if "eval/return" in line]
    print(f"done after {step:,} steps: mean return {scores[-1]:.6g} over {episodes} episodes on seeds of their own")
    print(f"next: offroad play {out}, offroad report {out}, offroad export {out}")


if __name__ == "__main__":
    sys.exit(main())
