import json
import os
import signal

import jax
import jax.numpy as jnp
import jax_envs
import numpy as np
import pytest
from tiny import Proportional, cheetah, ppo, steps_env, train_ppo, train_sac

from offroad import train
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train import Schedule, checkpoint
from offroad.train.loop import describe
from offroad.train.run import Run

EVERY = Schedule(checkpoint=1)


def learn(env, steps, change=1.0, **options):
    """Twenty steps of two environments are four updates, each of which adds `change` to the agent's gain."""
    agent = Proportional.create(Spaces.of(env), gain=0.0, change=change)
    return train.on_policy(agent, env, steps, **{"progress": False, **options})


def saved_gain(folder):
    return float(checkpoint.load_latest(folder / "checkpoints").restore("agent", Proportional.create(None)).gain)


def test_logs_evaluations_and_checkpoints_come_when_they_are_due(tmp_path):
    env, eval_env = (steps_env({"cut": 4}, {"cut": 4}) for _ in range(2))
    schedule = Schedule(evaluate=30, checkpoint=25, episodes=2, log=20)
    result = learn(env, 75, out=tmp_path, eval_env=eval_env, schedule=schedule)
    assert (result.step, result.interrupted, result.path) == (80, False, tmp_path)
    assert [line["step"] for line in result.history] == [20, 30, 40, 60, 80]
    assert [line["step"] for line in result.history if "eval/return" in line] == [30, 60, 80]
    assert [path.name[-2:] for path in checkpoint.steps(tmp_path / "checkpoints")] == ["50", "80"]  # 30 is pruned
    assert saved_gain(tmp_path) == 8
    lines = [{k: v for k, v in line.items() if k != "time"} for line in Run.open(tmp_path).metrics()]
    assert lines == result.history
    # Without anything due there is still one line, one evaluation and one checkpoint at the end; a run that is
    # complete takes no further step.
    result = learn(env, 40, out=tmp_path / "b", eval_env=eval_env, schedule=Schedule(log=0))
    assert [(line["step"], "eval/return" in line) for line in result.history] == [(40, True)]
    again = learn(env, 40, out=tmp_path / "b", eval_env=eval_env, schedule=Schedule(log=0), resume=True)
    assert (again.step, float(again.agent.gain), again.history) == (40, 4, result.history)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"fail_at": 23}, "environment 'SyncVectorEnv' raised RuntimeError in step 23: the motor burnt; fix the"),
        ({"nan_at": 23}, "environment 'SyncVectorEnv' returned nan as reward in copy 1 at step 23; fix the"),
    ],
)
def test_what_was_learnt_before_the_environment_failed_is_kept(tmp_path, capsys, broken, message):
    env = steps_env({"cut": 4}, {"cut": 4, **broken})
    with pytest.raises(OffroadError, match=message):
        learn(env, 100, out=tmp_path)
    assert saved_gain(tmp_path) == 4
    result = learn(steps_env({"cut": 4}, {"cut": 4}), 100, out=tmp_path, resume=True)
    assert float(result.agent.gain) == 10
    assert [line["step"] for line in result.history] == list(range(10, 110, 10))
    assert "cannot be saved: its episodes start anew" in capsys.readouterr().out


def test_a_failing_evaluation_loses_nothing_either(tmp_path):
    eval_env = steps_env({"cut": 4, "fail_at": 40})
    with pytest.raises(OffroadError, match="in step 40: the motor burnt"):
        learn(steps_env({}, {}), 100, out=tmp_path, eval_env=eval_env, schedule=Schedule(evaluate=10, episodes=1))
    assert saved_gain(tmp_path) == 2
    assert [line["step"] for line in Run.open(tmp_path).metrics()] == [10, 20]


def test_a_compiled_environment_that_returns_nan_is_named(tmp_path):
    class Ill(jax_envs.Point):
        def reward(self, state, action, next_state, rng, params=None):
            return jnp.where(next_state[0] > 1.5, jnp.nan, -1.0)

    env = jax_envs.JaxVectorEnv(Ill(), 4, 20)
    with pytest.raises(OffroadError, match=r"environment 'Ill' returned \d+ NaNs or infinities between steps"):
        train_sac(env, 1000, out=tmp_path, schedule=EVERY)


def test_a_loss_that_overflows_stops_the_run_and_says_which(tmp_path):
    env = steps_env({"cut": 4}, {"cut": 4, "huge_at": 30})
    agent = ppo(env, normalise_reward=False)
    pattern = r"'value_loss'.* became NaN or infinite before step 64; the last good checkpoint is '.*step_0+48'; lower"
    with pytest.raises(OffroadError, match="value_loss") as caught, np.errstate(over="ignore"):
        train.on_policy(agent, env, 200, out=tmp_path, schedule=EVERY, progress=False)
    caught.match(pattern)
    kept = checkpoint.load_latest(tmp_path / "checkpoints").restore("agent", agent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    # The run goes on from there, with the environment mended.
    env = steps_env({"cut": 4}, {"cut": 4})
    assert train.on_policy(agent, env, 96, out=tmp_path, resume=True, progress=False).step == 96


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    env = steps_env({"cut": 4}, {"cut": 4})
    pattern = r"^\.gain of the agent became NaN or infinite at step 10; no checkpoint was due before; lower"
    with pytest.raises(OffroadError, match=pattern):
        learn(env, 100, change=np.inf, out=tmp_path, schedule=EVERY)
    assert checkpoint.load_latest(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    env = steps_env({"cut": 4}, {"cut": 4})
    step, calls = env.step, iter(range(100))
    env.step = lambda action: (os.kill(os.getpid(), number) if next(calls) == 12 else None, step(action))[1]
    before = signal.getsignal(number)
    result = learn(env, 100, out=tmp_path)
    assert signal.getsignal(number) is before
    assert (result.interrupted, result.step, saved_gain(tmp_path)) == (True, 30, 3)
    with pytest.raises(KeyboardInterrupt):
        result.complete()
    result = learn(steps_env({"cut": 4}, {"cut": 4}), 100, out=tmp_path, resume=True)
    assert (result.interrupted, result.step, float(result.agent.gain)) == (False, 100, 10)
    assert result.complete() is result


def test_a_second_process_and_a_damaged_checkpoint_are_refused(tmp_path):
    env = steps_env({"cut": 4}, {"cut": 4})
    result = learn(env, 20, out=tmp_path, schedule=EVERY)
    with Run.create(tmp_path, Run.open(tmp_path).config, resume=True), pytest.raises(OffroadError, match="in use by"):
        learn(env, 40, out=tmp_path, resume=True)
    with pytest.raises(OffroadError, match="already holds a run"):
        learn(env, 40, out=tmp_path)
    arrays = checkpoint.steps(tmp_path / "checkpoints")[-1] / "arrays.npz"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-30] + bytes(30))
    with pytest.raises(OffroadError, match=r"damaged.*step_0+10', which is whole"):
        learn(env, 40, out=tmp_path, resume=True)
    arrays.write_bytes(whole)
    longer = learn(env, 40, out=tmp_path, resume=True)
    assert (longer.step, longer.history[:2]) == (40, result.history)


def test_several_seeds_need_a_compiled_environment_and_a_stack_of_agents():
    with pytest.raises(OffroadError, match=r"several seeds \[0, 1\].*call the trainer once for each seed"):
        learn(steps_env({}), 10, seed=[0, 1])
    env = jax_envs.point(4)
    with pytest.raises(OffroadError, match="3 seeds need a stack of 3 agents"):
        train.on_policy(ppo(env), env, 10, seed=[0, 1, 2], progress=False)


def test_the_training_environment_cannot_evaluate_too():
    env = steps_env({"cut": 4})
    with pytest.raises(OffroadError, match="eval_env is the training environment"):
        learn(env, 10, eval_env=env)


def test_the_bar_is_shown(capsys):
    train_ppo(steps_env({"cut": 4}, {"cut": 4}), 16, progress=True)
    assert "step 16 of 16" in capsys.readouterr().out


def test_the_arguments_of_an_environment_are_recorded(tmp_path):
    found = describe("on_policy", ppo(cheetah(2)), cheetah(2), seed=(0, 1), note="x")
    assert found["env"]["id"] == "offroad/HalfCheetah-v5"
    assert found["env"]["kwargs"] == {"task": "HalfCheetah-v5", "max_episode_steps": 1000, "num_threads": 1}
    assert (found["agent"], found["num_envs"], found["seed"], found["note"]) == ("ppo", 2, [0, 1], "x")
    assert json.loads(json.dumps(found)) == found
