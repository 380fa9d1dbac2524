"""The command line, from a first training to an exported policy, and what it answers to mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio.v3 as imageio
import jaxtyping
import numpy as np
import pytest

import offroad
from offroad import cli
from offroad.cli.parsing import env_options
from offroad.errors import OffroadError
from offroad.tasks.demonstrations import Demonstrations
from offroad.train.restore import load_agent
from offroad.train.run import Run


class Corridor(gym.Env):
    """Walk right to the end of a corridor. It draws itself without any library."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 5, render_mode: str | None = None):
        self.length, self.render_mode, self.position = length, render_mode, 0

    def _observation(self):
        return np.array([self.position / self.length], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self._observation(), {}

    def step(self, action):
        self.position = max(self.position + (1 if action else -1), 0)
        return self._observation(), -1.0, self.position == self.length, False, {}

    def render(self):
        frame = np.zeros((33, 64, 3), np.uint8)
        frame[:, 10 * self.position : 10 * self.position + 10] = 255
        return frame


@pytest.fixture(scope="module", autouse=True)
def _corridor():
    gym.register("Corridor-v0", Corridor, max_episode_steps=20)
    yield
    del gym.registry["Corridor-v0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of PPO in the corridor."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    argv = ["train", "ppo", "--env", "Corridor-v0", "--steps", "6e3", "--num-envs", "4", "--rollout", "64"]
    assert cli.main([*argv, "--hidden", "16", "--discount", "0.9", "--out", str(folder)]) == 0
    return folder


def test_the_first_training(run, capsys):
    config = Run.open(run).config
    assert config["env"]["id"] == "Corridor-v0"
    assert config["agent_config"]["hidden"] == [16]
    assert load_agent(run).config.discount == 0.9
    scores = [line["eval/return"] for line in Run.open(run).metrics() if "eval/return" in line]
    assert len(scores) >= 10
    assert scores[-1] == -5  # straight to the end

    assert cli.main(["list", "--runs", str(run.parent)]) == 0
    assert str(run) in capsys.readouterr().out


def test_resuming(run, capsys):
    argv = ["train", "ppo", "--env", "Corridor-v0", "--steps", "6_500", "--num-envs", "4", "--rollout", "64"]
    argv += ["--hidden", "16", "--discount", "0.9", "--out", str(run)]
    assert cli.main(argv) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*argv, "--resume", "--gae", "0.9"]) == 2
    assert "gae was 0.95, now 0.9" in capsys.readouterr().err
    assert cli.main([*argv, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "done after 6,656 steps: mean return -5" in said  # more steps than before continue too


def test_playing_writes_a_video(run, capsys):
    assert cli.main(["play", str(run), "--episodes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["episode 1: return -5", "episode 2: return -5"]
    frames = imageio.imread(lines[2])
    assert frames.shape == (12, 32, 64, 3)  # each episode has six frames; the odd row was cut
    assert frames[5][:, 50:60].mean() > 200 > 50 > frames[5][:, :40].mean()


def test_a_run_with_a_bonus_is_played_and_exported(tmp_path, capsys):
    argv = ["train", "ppo", "--env", "Corridor-v0", "--num-envs", "2", "--rollout", "16", "--minibatch", "32"]
    assert cli.main([*argv, "--reward-weight", "0"]) == 2
    assert "add --bonus NAME" in capsys.readouterr().err
    argv += ["--steps", "64", "--hidden", "8", "--bonus", "rnd", "--reward-weight", "0", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 0
    run = Run.open(tmp_path / "run")
    settings = run.config["agent_config"]
    assert (settings["reward"]["type"], settings["intrinsic"], settings["extrinsic"]) == ("RNDConfig", 1.0, 0.0)
    assert [line["intrinsic/share"] for line in run.metrics() if "intrinsic/share" in line][-1] == 1
    assert cli.main([*argv, "--steps", "96", "--resume"]) == 0
    assert cli.main([*argv, "--steps", "128", "--resume", "--bonus-weight", "2"]) == 2
    assert "intrinsic was 1.0, now 2.0" in capsys.readouterr().err
    assert cli.main(["play", str(tmp_path / "run"), "--episodes", "1"]) == 0
    assert "episode 1: return " in capsys.readouterr().out
    jaxtyping.config.update("jaxtyping_disable", True)  # see test_export
    try:
        assert cli.main(["export", str(tmp_path / "run")]) == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "curious trained in Corridor-v0" in (tmp_path / "run" / "export" / "policy.py").read_text()


@pytest.mark.parametrize(
    ("agent", "bonus", "message"),
    [
        ("ppo", "rdn", "unknown bonus 'rdn'; did you mean 'rnd'?"),
        ("dqn", "e3b", "the bonus e3b remembers an episode, which dqn's replay does not keep in order; train ppo"),
    ],
)
def test_a_bonus_that_cannot_be(tmp_path, capsys, agent, bonus, message):
    out = tmp_path / "run"
    assert cli.main(["train", agent, "--env", "Corridor-v0", "--bonus", bonus, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_playing_where_nothing_can_be_drawn(run, capsys):
    assert cli.main(["play", str(run), "--window"]) == 2
    assert "'Corridor-v0' cannot draw itself as 'human', only as rgb_array" in capsys.readouterr().err


def test_options_of_the_environment(tmp_path, capsys):
    folder = tmp_path / "short"
    argv = ["train", "ppo", "--env", "Corridor-v0", "--env-option", "length=3", "--steps", "3e3", "--num-envs", "4"]
    assert cli.main([*argv, "--rollout", "64", "--hidden", "16", "--discount", "0.9", "--out", str(folder)]) == 0
    assert Run.open(folder).config["env"] == {"id": "Corridor-v0", "kwargs": {"length": 3}}
    assert "mean return -3" in capsys.readouterr().out
    assert cli.main(["play", str(folder), "--episodes", "1"]) == 0
    assert "episode 1: return -3" in capsys.readouterr().out
    assert cli.main(["play", str(folder), "--episodes", "1", "--env-option", "length=6"]) == 0
    assert "episode 1: return -6" in capsys.readouterr().out
    assert cli.main(["play", str(folder), "--env-option", "lenght=6"]) == 2
    assert "environment 'Corridor-v0' has no option 'lenght'; its options: length" in capsys.readouterr().err


def test_options_are_json_or_text():
    words = ("start=10", "textures=held-out", "levels=[0,1]", "mirror=true", "rom=a=b.nes", "angle=null", "look=")
    assert env_options(words) == {
        "start": 10, "textures": "held-out", "levels": [0, 1], "mirror": True, "rom": "a=b.nes", "angle": None,
        "look": "",
    }  # fmt: skip


def test_a_rom_is_named_by_its_path(tmp_path, capsys):
    """One error for each mistake, whichever command is told of the ROM."""
    wrong = tmp_path / "game.nes"
    wrong.write_bytes(b"NES")
    mario = ["train", "ppo", "--env", "offroad/Mario-v0"]
    for rom, message in (("none.nes", "there is no ROM at"), ("game.nes", "SHA-256")):
        assert cli.main([*mario, "--rom", str(tmp_path / rom)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert str(tmp_path / rom) in said
        assert said.count("\n") == 1
    assert cli.main(["train", "ppo", "--env", "Corridor-v0", "--rom", str(wrong)]) == 2
    assert "environment 'Corridor-v0' has no option 'rom'" in capsys.readouterr().err


def test_options_that_makers_pass_on_are_named():
    gym.register("Passing-v0", lambda flat=True, **rest: Corridor(**rest), kwargs={"flat": False})
    try:
        with pytest.raises(OffroadError, match=r"'Passing-v0' has no option 'wide'; its options: length, render_mode$"):
            offroad.make_vec("Passing-v0", 2, wide=1)
    finally:
        del gym.registry["Passing-v0"]


def test_exporting(run, capsys):
    jaxtyping.config.update("jaxtyping_disable", True)  # see test_export
    try:
        assert cli.main(["export", str(run)]) == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["policy.py", "policy.npz", "policy.onnx"]
    assert "ppo trained in Corridor-v0" in written[0].read_text()
    walk = "from policy import Policy; print([int(Policy()([x / 5])) for x in range(5)])"
    command = [sys.executable, "-c", walk]
    assert subprocess.check_output(command, cwd=written[0].parent, text=True) == "[1, 1, 1, 1, 1]\n"


def test_reporting(run, tmp_path, capsys):
    assert cli.main(["report", str(run)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == run / "report.html"
    assert "Corridor-v0" in page.read_text()
    other = shutil.copytree(run, tmp_path / "other")
    assert cli.main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").exists()


MISTAKES = {
    "trian": "unknown command 'trian'; did you mean 'train'?",
    "train ppi --env CartPole-v1": "unknown agent 'ppi'; did you mean 'ppo'?",
    "train ppo --env CartPole-v7": "unknown environment 'CartPole-v7'; did you mean 'CartPole-v1'?",
    "train ppo --env CartPole-v1 --lerning-rate 1": "unknown option '--lerning-rate'; did you mean '--learning-rate'?",
    "train ppo --env CartPole-v1 --lerning-rate=1": "unknown option '--lerning-rate'; did you mean '--learning-rate'?",
    "train ppo --env CartPole-v1 --learning-rate x": "Error parsing --learning-rate",
    "train ppo --env CartPole-v1 --steps 1.5": "'1.5' is not a whole number",
    "train ppo": "Missing from offroad train: --env",
    "train": "Missing from offroad train",
    "train bc --env Pendulum-v1": "bc learns from data; name a file with --data",
    "train ppo --data log.csv": "ppo learns from its own experience alone; use one of bc, ",
    "train sac --env CartPole-v1 --steps 2e4": "sac needs a one-dimensional Box",
    "train sac --env Pendulum-v1 --steps 5e3": "--learning-starts 10000 leaves nothing to learn",
    "train ppo --env Corridor-v0 --env-option lenght=3": "has no option 'lenght'; its options: length, render_mode",
    "train ppo --env Corridor-v0 --env-option length": "--env-option length is no option; expected KEY=VALUE",
    "reproduce trafic": "unknown study 'trafic'",
    "play {run}/../frist": "did you mean '{run}/../first'?",
    "export {run}/..": "did you mean '{run}'?",
    "report {run}/checkpoints": "is not a run folder",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_answered_in_one_line(command, run, capsys):
    argv = [part.replace("{run}", str(run)) for part in command.split()]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("offroad: ")
    assert error.count("\n") == 1
    assert MISTAKES[command].replace("{run}/..", str(run.parent)).replace("{run}", str(run)) in error.replace(
        f"{run}/..", str(run.parent)
    )


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_for_newcomers(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"offroad {command}" in shown
    assert f"Example: offroad {command}" in shown or not command


def test_an_interruption_keeps_what_was_learnt(tmp_path):
    argv = ["train", "ppo", "--env", "CartPole-v1", "--num-envs", "4", "--rollout", "32", "--out", "run"]
    command = [sys.executable, "-m", "offroad.cli", *argv]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert "the same command with --resume continues" in error
    logged = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert Run.open(tmp_path / "run").load_latest()[0] == logged[-1] > 0


@pytest.mark.parametrize("argument", ["list", "--version"])
def test_who_reads_no_further_is_no_mistake(argument):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "offroad.cli", argument]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_comes_at_once():
    """What is slow to import is not imported for it."""
    heavy = "import sys; from offroad import cli; cli.main(['--help']); print({'jax', 'mujoco'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True).endswith("set()\n")


def test_demonstrations_are_recorded(tmp_path, capsys):
    out = tmp_path / "shown" / "stack.npz"
    assert cli.main(["demo", "stack", "--blocks", "1", "--episodes", "3", "--out", str(out)]) == 0
    assert "3 episodes" in capsys.readouterr().out
    shown = Demonstrations.load(out)
    assert len(shown.lengths) == 3
    assert shown.states is not None
    assert cli.main(["demo", "stak"]) == 2
    assert "did you mean 'stack'" in capsys.readouterr().err
    assert cli.main(["demo", "stack", "--blocks", "99"]) == 2
    assert "expected 1 to 9" in capsys.readouterr().err
