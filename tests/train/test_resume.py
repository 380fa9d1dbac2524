"""A run that is killed at any moment and resumed is, to the bit, the run that was left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import jax
import jax_envs
import pytest
from tiny import cheetah, same, stack, stack_episodes, train_ppo, train_sac

from offroad.agents import DDPG, DDPGConfig, Imitation
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.relational import Relational
from offroad.tasks import (
    CompactReplay,
    CurriculumVectorEnv,
    DemonstrationReplay,
    DemonstrationResets,
    Demonstrations,
    GoalTask,
    HindsightReplay,
    Stage,
    SuccessGated,
    Uniform,
)
from offroad.train import Schedule, off_policy
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


def train_stack(steps, demonstrations=None, share=0.8, **options):
    """DDPG with hindsight and a curriculum, or with all that issue from demonstrations as well.

    A goal on the right counts as success, so that the curriculum moves at once.
    """
    stages = [Stage("near", {"blocks": 1, "goal_distance": Uniform(0.02, 0.1)}), Stage("two", {"blocks": 2})]
    curriculum = SuccessGated(stages, promote=0.5, demote=0.4, window=2, rehearsal=0.5)
    config = DDPGConfig(hidden=(8,), batch=16)
    inner = stack(max_episode_steps=5)
    replay = HindsightReplay(140, GoalTask.of(inner), share=share, moved_share=0.3)  # wraps, in the middle of episodes
    if demonstrations:
        curriculum, apart = DemonstrationResets(curriculum, demonstrations, 0.3), HindsightReplay(24, replay.task)
        demonstrations.fill(apart)
        replay = CompactReplay(DemonstrationReplay(replay, apart))
        config = DDPGConfig(hidden=(8,), batch=16, encoder=Relational(width=8), imitation=Imitation())
    env = CurriculumVectorEnv(
        inner, curriculum, success=lambda observation, info: observation["goals"][:, 0, 0] > 0, deterministic_envs=2
    )
    agent = DDPG.create(Spaces.of(env), config, jax.random.key(0))
    options = {"learning_starts": 48, "train_every": 8, "update_ratio": 0.125, "progress": False, **options}
    return off_policy(agent, env, steps, replay=replay, **options)


@pytest.mark.parametrize("shown", [False, True], ids=["hindsight", "demonstrations"])
def test_stacking_stopped_and_resumed_is_stacking_left_alone(tmp_path, shown):
    demonstrations = None
    if shown:
        transitions, states = stack_episodes(stack(), 6, [])
        demonstrations = Demonstrations.of_rollout(transitions, states=states)
    train_stack(128, demonstrations, out=tmp_path)
    resumed = train_stack(256, demonstrations, out=tmp_path, resume=True)
    alone = train_stack(256, demonstrations)
    assert resumed.step == alone.step == 256
    assert same(resumed.agent, alone.agent)
    timeless = [[{k: v for k, v in line.items() if k[:4] != "time"} for line in x.history] for x in (resumed, alone)]
    assert timeless[0] == timeless[1]
    promotions = [line["curriculum/promotions"] for line in alone.history]
    assert promotions[-1] > 0
    with pytest.raises(OffroadError, match=r"replay\..*share was 0.8, now 0.5"):
        train_stack(300, demonstrations, share=0.5, out=tmp_path, resume=True)
