"""Training from data alone: that every update is made once, on rows that depend on nothing but the seed."""

import dataclasses
import os
import signal
import sys
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from jaxtyping import Array
from tiny import Proportional, same, steps_env

from offroad.agents import BC, TD3BC, BCConfig, TD3BCConfig, stacked
from offroad.agents.fqe import FQE, FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.train import Schedule, checkpoint, offline
from offroad.train.restore import load_agent
from offroad.train.run import Run

SPACES = Spaces(gym_spaces.Box(-9, 9, (2,)), gym_spaces.Box(-1, 1, (1,)))


@dataclass(frozen=True)
class SumConfig:
    batch: int = 3


class Sum(eqx.Module):
    """No agent: it sums what it is shown, and some noise, in an order that matters."""

    total: Array
    config: SumConfig = eqx.field(static=True)

    def update(self, batch, key):
        total = 0.9 * self.total + batch["x"].sum() + jax.random.normal(key)
        return replace(self, total=total), {"total": total}


class Rows:
    """Anything that samples is data."""

    def __init__(self, scale=1.0, fail_at=None):
        self.x, self.fail_at, self.calls = scale * np.arange(50, dtype=np.float32), fail_at, 0

    def sample(self, rng, shape):
        self.calls += 1
        if self.calls == self.fail_at:
            raise OffroadError("the disk is gone")
        return {"x": self.x[rng.integers(50, size=shape)]}


def learn(updates, seed=0, data=None, **options):
    seeds = [seed] if isinstance(seed, int) else seed
    each = [Sum(jnp.float32(0), SumConfig()) for _ in seeds]
    learner = each[0] if isinstance(seed, int) else stacked(each)
    return offline(learner, Rows() if data is None else data, updates, seed=seed, **{"progress": False, **options})


def walk(n=400, seed=0, reward=0.0):
    rng, ends = np.random.default_rng(seed), np.arange(n) % 20 == 19
    return Dataset(
        observations=rng.normal([5, -3], [0.1, 20], (n, 2)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32) + np.float32(reward),
        terminated=ends,
        truncated=np.zeros(n, bool),
    )


def filled(size=20):
    replay, x, off = Replay(size), np.zeros((size, 1, 2), np.float32), np.zeros((size, 1), bool)
    replay.add(Transition(x, x[..., :1], x[..., 0], x, off, off))
    return replay


@pytest.mark.parametrize(("piece", "reports"), [(1 << 28, [100, 200, 230]), (3 * 4 * 26, [*range(3, 230, 3), 230])])
def test_every_update_is_made_once(monkeypatch, piece, reports):
    monkeypatch.setattr(sys.modules["offroad.train.offline"], "PIECE_BYTES", piece)
    agent = Proportional.create(Spaces.of(steps_env({})), change=1.0)
    replay, said = filled(), []
    result = offline(agent, replay, 230, progress=False, callback=said.append)
    assert (result.step, result.path, result.interrupted) == (230, None, False)
    assert result.agent.gain == agent.gain + 230
    assert [line["step"] for line in said] == [line["step"] for line in result.history] == reports
    assert all(line["loss"] == 0 for line in said)
    assert len(replay) == 20


def test_wherever_a_run_stopped_it_goes_on_to_the_bit(tmp_path):
    """Also where it stopped within a chunk, and with several seeds."""
    for seed in (4, [4, 5]):
        out = tmp_path / str(seed)
        for updates in (130, 131, 199, 420):
            resumed = learn(updates, seed, out=out, resume=True)
            assert resumed.step == updates
        alone = learn(420, seed)
        assert same(resumed.agent, alone.agent)
        assert [line["step"] for line in resumed.history] == [100, 130, 131, 199, 200, 300, 400, 420]
        assert resumed.history[-1]["total"] == alone.history[-1]["total"]


def test_seeds_side_by_side_learn_what_each_learns_alone():
    together = learn(150, [3, 8])
    for i, seed in enumerate([3, 8]):
        alone = learn(150, seed)
        np.testing.assert_allclose(together.agent.total[i], alone.agent.total, rtol=1e-5)
        np.testing.assert_allclose(together.history[-1]["total"][i], alone.history[-1]["total"], rtol=1e-5)
    assert together.agent.total[0] != together.agent.total[1]
    with pytest.raises(OffroadError, match="3 seeds need a stack of 3 agents"):
        offline(stacked([Sum(jnp.float32(0), SumConfig())] * 2), Rows(), 10, seed=[1, 2, 3], progress=False)


def test_a_signal_saves_and_stops(tmp_path):
    def interrupt(metrics):
        if metrics["step"] == 200:
            os.kill(os.getpid(), signal.SIGINT)

    result = learn(1000, out=tmp_path, callback=interrupt)
    assert (result.interrupted, result.step) == (True, 200)
    assert same(learn(450, out=tmp_path, resume=True).agent, learn(450).agent)


def test_a_run_goes_on_with_the_same_data_only(tmp_path):
    learn(100, out=tmp_path / "rows")
    with pytest.raises(OffroadError, match=r"another configuration: data\.sha256 was"):
        learn(200, data=Rows(1.01), out=tmp_path / "rows", resume=True)
    agent = BC.create(SPACES, BCConfig(hidden=(4,), batch=8), jax.random.key(0))
    options = {"out": tmp_path / "walk", "progress": False}
    offline(agent, walk(), 10, **options)
    one_reward = walk()
    one_reward.rewards[399] += 1
    for other in (one_reward, walk(reward=1), walk(seed=1), walk().take(slice(0, 19)), walk().top(0.5)):
        with pytest.raises(OffroadError, match=r"another configuration: data\."):
            offline(agent, other, 20, resume=True, **options)
    assert offline(agent, walk(), 20, resume=True, **options).step == 20


def test_the_environment_judges_the_agent_and_a_run_can_be_loaded(tmp_path):
    env = steps_env({"cut": 4}, {"cut": 4})
    agent = Proportional.create(Spaces.of(env), gain=0.0, change=1.0)
    schedule = Schedule(evaluate=200, checkpoint=100, episodes=2)
    result = offline(agent, filled(), 300, out=tmp_path, eval_env=env, schedule=schedule, progress=False)
    evaluated = {line["step"]: line["eval/return"] for line in result.history if "eval/return" in line}
    # Clipped to 3, actions are gain * t + t: 0, 3, 3, 3.
    assert evaluated == {200: 9, 300: 9}
    assert [int(path.name[5:]) for path in checkpoint.steps(tmp_path / "checkpoints")] == [200, 300]
    assert Run.open(tmp_path).config["env"]["id"] == "SyncVectorEnv"
    assert float(load_agent(tmp_path, like=agent).gain) == 300
    with pytest.raises(OffroadError, match=r"a Sum has no policy \(act\)"):
        learn(10, eval_env=env)


def test_agents_of_several_seeds_are_loaded_one_by_one(tmp_path):
    agents = [BC.create(SPACES, BCConfig(hidden=(4,), batch=8), jax.random.key(i)) for i in (0, 1)]
    result = offline(stacked(agents), walk(), 30, seed=[0, 1], out=tmp_path, progress=False)
    for i in (0, 1):
        assert same(load_agent(tmp_path, i), jax.tree.map(lambda x: x[i], result.agent))  # noqa: B023
    with pytest.raises(OffroadError, match="no seed_index 2"):
        load_agent(tmp_path, 2)
    assert Run.open(tmp_path).config["agent"] == "bc"


def test_observations_are_normalised_by_the_data(tmp_path):
    data = walk()
    agent = TD3BC.create(SPACES, TD3BCConfig(hidden=(4,), batch=8), jax.random.key(0))
    learnt = offline(agent, data, 20, out=tmp_path, progress=False).agent
    moments = learnt.observation_norm.moments
    np.testing.assert_allclose(moments.mean, data.observations.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, data.observations.var(0), rtol=1e-4)
    assert same(load_agent(tmp_path), learnt)
    # An agent that was trained before keeps what its policy knows.
    other = dataclasses.replace(data, observations=data.observations + 100)
    kept = offline(learnt, other, 20, progress=False).agent.observation_norm
    assert same(kept, learnt.observation_norm)
    both = offline(stacked([agent, agent]), data, 20, seed=[0, 1], progress=False).agent.observation_norm
    np.testing.assert_array_equal(both.moments.mean, np.stack([moments.mean] * 2))
    # Of what only samples, a sample.
    replay = Replay(400)
    replay.add(jax.tree.map(lambda x: x[:, None], replace(data.transitions(np.arange(400)), next_action=None)))
    sampled = offline(agent, replay, 20, progress=False).agent.observation_norm.moments
    np.testing.assert_allclose(sampled.mean, moments.mean, atol=0.3)
    plain = TD3BC.create(SPACES, TD3BCConfig(hidden=(4,), batch=8, normalise_observation=False), jax.random.key(0))
    assert float(offline(plain, data, 20, progress=False).agent.observation_norm.moments.count) == 0


def test_what_goes_wrong_with_the_data_is_told():
    with pytest.raises(OffroadError, match="the replay is empty"):
        offline(Proportional.create(Spaces.of(steps_env({}))), Replay(3), 10)
    with pytest.raises(OffroadError, match="the disk is gone"):  # also from the thread that samples ahead
        learn(1000, data=Rows(fail_at=6))


def test_data_of_another_environment_are_refused():
    """Also by what is no agent but has spaces."""
    agent = BC.create(SPACES, BCConfig(hidden=(4,), batch=8), jax.random.key(0))
    wide = replace(walk(), actions=np.zeros((len(walk()), 2)))
    for learner in (agent, FQE.create(SPACES, FQEConfig(hidden=(4,)), agent, jax.random.key(0))):
        with pytest.raises(OffroadError, match=r"'actions' shape \(2,\) per row, the environment has shape \(1,\)"):
            offline(learner, wide, 1, progress=False)
    with pytest.raises(OffroadError, match="row 0 of 'actions' holds 7, beyond the bounds -1 to 1"):
        offline(agent, replace(walk(), actions=np.full((len(walk()), 1), 7.0)), 1, progress=False)
