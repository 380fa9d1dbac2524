"""A run that is killed at any moment and resumed is, to the bit, the run that was left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import jax_envs
import pytest
from tiny import cheetah, same, train_ppo, train_sac

from offroad.train import Schedule
from offroad.train.log import read_metrics

TESTS = str(Path(__file__).parents[1])
CHILD = """
import sys
sys.path.insert(0, {tests!r})
from tiny import cheetah, train_ppo, train_sac
from jax_envs import point
from offroad.train import Schedule
{train}({env}(4), 10**9, out={out!r}, resume=True, schedule=Schedule(checkpoint=1))
"""


def lines(folder):
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in read_metrics(folder)]


@pytest.mark.parametrize("train", [train_ppo, train_sac])
@pytest.mark.parametrize("env", [jax_envs.point, cheetah])
def test_killed_at_random_moments_a_run_continues_to_the_bit(tmp_path, train, env):
    rng = random.Random(f"{train.__name__} {env.__name__}")
    out, metrics, seen = tmp_path / "killed", tmp_path / "killed" / "metrics.jsonl", 0
    code = CHILD.format(tests=TESTS, train=train.__name__, env=env.__name__, out=str(out))
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        until = seen + rng.randrange(2, 6)  # so many lines have been logged
        while len(read_metrics(metrics)) < until and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.05)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        seen = len(read_metrics(metrics))
    steps = 32 * (seen + 2)
    resumed = train(env(4), steps, out=out, resume=True)
    alone = train(env(4), steps, out=tmp_path / "alone")
    assert resumed.step == alone.step == steps
    assert same(resumed.agent, alone.agent)
    assert lines(metrics) == lines(tmp_path / "alone" / "metrics.jsonl")
    assert len(lines(metrics)) == seen + 2
    assert [line["step"] for line in resumed.history] == [line["step"] for line in alone.history]


def test_an_environment_that_cannot_be_saved_says_so_and_goes_on(tmp_path, capsys):
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    train_ppo(env, 32, out=tmp_path, schedule=Schedule(checkpoint=1))
    assert capsys.readouterr().out == ""
    result = train_ppo(env, 64, out=tmp_path, resume=True)
    assert "the environment's state cannot be saved" in capsys.readouterr().out
    assert result.step >= 64
