"""`offroad train AGENT --data FILE`: from a file to an agent, and what is answered to files that are no data."""

from dataclasses import replace

import numpy as np
import pytest

from offroad import cli
from offroad.data.dataset import Dataset
from offroad.data.writers import save
from offroad.train.restore import load_agent
from offroad.train.run import Run

FAST = ["--updates", "40", "--hidden", "4", "--batch", "8"]


def swings(actions=1, n=200, scale=2.0):
    """Of a pendulum's shapes. The torque is a tenth of the angle's cosine, in one episode of ten it is the opposite."""
    rng = np.random.default_rng(0)
    seen, ends = rng.uniform(-1, 1, (n, 3)).astype(np.float32), np.arange(n) % 20 == 19
    good = (np.arange(n) // 20) % 10 == 3
    torque = scale * np.where(good[:, None], -seen[:, :1], seen[:, :1]).repeat(actions, 1)
    return Dataset(seen, torque, good.astype(np.float32), np.zeros(n, bool), ends)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "swings.npz"
    save(swings(), path)
    return path


def test_from_a_file_to_agents_that_are_judged_in_the_environment(file, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train", "bc", "--data", str(file), "--env", "Pendulum-v1", "--seeds", "3", "4", "--out", str(out), *FAST]
    assert cli.main([*argv, "--eval-episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "bc from 10 episodes, 200 steps" in said
    assert "done after 40 steps: mean return -" in said
    assert f"offroad play {out}" in said
    assert Run.open(out).config["seed"] == [3, 4]
    assert [len(line["eval/return"]) for line in Run.open(out).metrics() if "eval/return" in line] == [2]
    assert load_agent(out, 1).spaces.action.high == 2  # the environment's
    assert cli.main([*argv, "--eval-episodes", "1", "--reward-shift", "1"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*argv, "--eval-episodes", "1", "--reward-shift", "1", "--resume"]) == 2
    assert "data.sha256 was" in capsys.readouterr().err


def test_without_an_environment_the_data_tell_the_spaces(file, tmp_path, capsys):
    """The best tenth of the episodes is cloned, which does the opposite of the others."""
    out = tmp_path / "run"
    argv = ["train", "bc", "--data", str(file), "--out", str(out), "--updates", "300", "--learning-rate", "0.01"]
    assert cli.main([*argv, "--top", "0.1", "--hidden", "16"]) == 0
    said = capsys.readouterr().out
    assert "bc from 1 episodes, 20 steps" in said
    assert "offroad play" not in said
    agent = load_agent(out)
    assert 1.5 < float(agent.spaces.action.high[0]) < 2.1
    torque = agent.act(np.float32([[0.8, 0, 0], [-0.8, 0, 0]]))[0]
    assert torque[0, 0] < -0.5 < 0.5 < torque[1, 0]
    assert cli.main(["play", str(out)]) == 2
    assert "knows no environment" in capsys.readouterr().err
    assert cli.main(["report", str(out)]) == 0


def test_rewards_are_rescaled_and_actions_clipped(tmp_path, monkeypatch, capsys):
    import offroad.train

    given = []

    def keep(agent, data, *args, **options):
        given.append(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(offroad.train, "offline", keep)
    save(swings(scale=3.0), tmp_path / "wild.npz")
    argv = ["train", "td3_bc", "--data", str(tmp_path / "wild.npz"), "--env", "Pendulum-v1", *FAST]
    assert cli.main([*argv, "--reward-scale", "10", "--reward-shift", "-5"]) == 130
    assert set(given[0].rewards.tolist()) == {-5.0, 5.0}
    assert np.abs(given[0].actions).max() == 2
    assert "rows have actions beyond -2 to 2; they are clipped" in capsys.readouterr().out


def damaged(path, kind):
    """A file of that kind that is no data, or not what the environment needs."""
    save(swings(actions=2 if kind == "wide" else 1), path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "corrupt":
        content = bytearray(path.read_bytes())
        middle = slice(len(content) // 3, len(content) // 2)
        content[middle] = bytes(x ^ 0xFF for x in content[middle])
        path.write_bytes(content)
    elif kind == "empty":
        nothing = np.zeros((0, 3), np.float32)
        columns = {"observations": nothing, "actions": nothing[:, :1], "rewards": nothing[:, 0]}
        np.savez(path, **columns, terminated=np.zeros(0, bool), truncated=np.zeros(0, bool))
    return path


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("truncated", "log.npz", "log.npz"),
        ("truncated", "log.hdf5", "log.hdf5"),
        ("corrupt", "log.npz", "log.npz"),
        ("empty", "log.npz", "log.npz' is empty; expected at least one row"),
        ("wide", "log.npz", "has for 'actions' shape (2,) per row, the environment has shape (1,)"),
    ],
)
def test_files_that_cannot_be_learnt_from(tmp_path, kind, name, message, capsys):
    path, out = damaged(tmp_path / name, kind), tmp_path / "run"
    argv = ["train", "cql", "--data", str(path), "--env", "Pendulum-v1", "--out", str(out), *FAST]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("offroad: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data nowhere.npz", "nowhere.npz"),
        ("--data {file} --seeds", "--seeds names no seed"),
        ("--data {file} --top 2", "the fraction of best episodes is 2"),
        ("--data {file} --columns rewards", "has no '='"),
        ("--data {file} --env Pendulum-v7", "did you mean 'Pendulum-v1'"),
        ("--data {file} --updatse 4", "did you mean '--updates'"),
        ("--data {file} --batch 0", "batch is 0; expected at least 1 row"),
        ("--data {file} --env Pendulum-v1 --eval-episodes 0", "num_envs is 0; expected at least 1 copy"),
        ("--data {nan}", "row 0 of 'actions' is NaN or infinite"),
    ],
)
def test_mistakes_are_answered_in_one_line(file, tmp_path, monkeypatch, options, message, capsys):
    monkeypatch.chdir(tmp_path)
    save(replace(swings(), actions=np.full((200, 1), np.nan)), "nan.npz")
    assert cli.main(["train", "iql", *options.replace("{file}", str(file)).replace("{nan}", "nan.npz").split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
