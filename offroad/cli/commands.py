"""The commands that need little: showing, reproducing, reporting, exporting, demonstrating."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from offroad.cli.parsing import EnvOptions, Whole, env_options


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

        from offroad import agents, rewards, studies

        def title(module: str) -> str:
            return (inspect.getdoc(sys.modules[module]) or "").partition("\n")[0]

        runs = [path.parent for path in sorted(self.runs.glob("**/config.json"))]
        for heading, rows in {
            "environments (and every other Gymnasium id)": {n: "" for n in gym.registry if n.startswith("offroad/")},
            "agents": {name: title(kind.__module__) for name, (kind, _) in agents.AGENTS.items()},
            "bonuses": {name: title(kind.__module__) for name, (kind, _) in rewards.REWARDS.items()},
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
    """How much to spend: quick (minutes), cpu (hours) or, where there is one, paper (on the scale of the paper)."""
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
    env_options: EnvOptions = ()
    """An option of the environment that is to differ from training, such as textures=held-out; may be repeated."""
    rom: Path | None = None
    """A ROM that you own, for offroad/Mario-v0, where it is not the one of the training."""

    def run(self) -> int:
        from offroad.play import play

        options = env_options(self.env_options, self.rom)
        video, returns = play(self.run_folder, self.episodes, self.window, self.seed, options)
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
        about = f"{config['agent']} trained in {config['env']['id']}" if "env" in config else f"{config['agent']}"
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
