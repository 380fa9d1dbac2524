"""The study of offline learning with a budget of seconds: it runs, resumes and grades."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import offroad
from offroad import train
from offroad.agents import BCConfig
from offroad.studies import offline
from offroad.studies.offline import domains, methods, online_maze
from offroad.studies.study import Results, reproduce

TINY = offline.OfflineBudget(
    seeds=2,
    minutes=1,
    domains=("pointmaze-medium",),
    rows=10_000,
    updates=60,
    latent_updates=60,
    primitive_updates=20,
    ablation_seeds=1,
    episodes=2,
)
STUDY = dataclasses.replace(offline.STUDY, profiles={"tiny": TINY})
SMALL = {"hidden": (8,), "batch": 16}


@pytest.fixture(scope="module")
def small():
    """Networks that compile in seconds."""
    table = {
        name: dataclasses.replace(m, config=dataclasses.replace(m.config, **SMALL))
        for name, m in methods.POINTS.items()
        if name in ("bc", "naive", "iql")
    }
    cql = dataclasses.replace(methods.POINTS["cql"].config, **SMALL, conservative_states=4, samples=2)
    table["cql"] = dataclasses.replace(methods.POINTS["cql"], config=cql)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "POINTS", table)
        yield


def run(out, arms, seeds=None):
    return reproduce(STUDY, "tiny", seeds=seeds, arms=arms, out=out, console=Console(file=io.StringIO(), width=200))


def test_methods_are_trained_graded_and_judged(small, tmp_path):
    results = run(tmp_path, ["bc", "naive", "cql", "cql_opal"])
    assert results.arms["bc"]["seeds"] == [0]
    assert results.arms["cql"]["seeds"] == results.arms["cql_opal"]["seeds"] == [0, 1]
    for arm in results.arms:
        near = results.values(arm, "pointmaze-medium: within 2 m of the goal")
        for value, least in zip(near, results.values(arm, "pointmaze-medium: score"), strict=True):
            assert 0 <= least <= value <= 100
    assert np.isfinite(results.values("naive", "pointmaze-medium: over-estimate")).all()
    waiting = [claim.claim for claim in results.claims if claim.holds is None]
    assert waiting == [
        "pointmaze-medium: iql succeeds",
        "pointmaze-medium: rebrac succeeds",
        "pointmaze-medium: bear is right where the horizon is short",
        "pointmaze-medium: emaq is right where the horizon is short",
        "pointmaze-umaze: over primitives, a sparse reward is found online",
        "pointmaze-umaze: without them it is not",
    ]
    again = run(tmp_path, ["cql"])  # from its checkpoints: the same policies
    assert again.arms["cql"]["metrics"] == results.arms["cql"]["metrics"]


def test_the_pendulum_is_graded_between_random_and_its_controller(small, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "PENDULUM", methods.POINTS)
    budget = dataclasses.replace(TINY, domains=("pendulum",))
    study = dataclasses.replace(STUDY, profiles={"tiny": budget})
    quiet = Console(file=io.StringIO(), width=200)
    results = reproduce(study, "tiny", arms=["bc", "iql", "cql_opal"], out=tmp_path, console=quiet)
    (claim,) = (claim for claim in results.claims if claim.claim == "pendulum: iql is better than cloning")
    assert claim.holds is not None
    assert list(results.arms) == ["bc", "iql"]
    pendulum = domains.DOMAINS["pendulum"]
    assert pendulum.score(np.array([-1200.0, -184.0])) == pytest.approx(50)


def test_online_learners_have_the_same_steps_with_and_without_primitives(small, tmp_path, monkeypatch):
    seen = {}

    def off_policy(agent, env, decisions, **options):
        told = {"decisions": decisions, "discount": agent.config.discount, **options}
        seen[type(env).__name__] = told
        return train.off_policy(agent, env, decisions, **options)

    monkeypatch.setattr(online_maze, "train", SimpleNamespace(off_policy=off_policy))
    results = run(tmp_path, ["online", "online_opal"], seeds=1)
    assert list(results.arms) == ["online", "online_opal"]
    over = seen.pop("LatentActions")
    (flat,) = seen.values()
    assert flat["decisions"] == 10 * over["decisions"] == 300
    assert flat["train_every"] == 10 * over["train_every"]
    assert flat["update_ratio"] == pytest.approx(over["update_ratio"] / 10)
    assert flat["discount"] ** 10 == pytest.approx(over["discount"])


def test_the_nearest_point_of_the_first_episode_counts():
    env = domains.Closest(offroad.make_vec("offroad/PointMaze-umaze-v0", 3, max_episode_steps=5))
    _, info = env.reset(seed=0)
    goal, seen = info["goal_xy"], []
    for step in range(12):
        actions = np.array([[1, 0], [0, 1], [-1, -1]]) * (1 if step < 5 else -1)  # those after it are another episode's
        info = env.step(np.float32(actions))[-1]
        seen.append(np.linalg.norm(info["xy"] - goal, axis=1))
    np.testing.assert_allclose(env.distance, np.min(seen[:5], axis=0))
    assert (env.distance > np.min(seen, axis=0)).any()
    env.close()


def test_only_the_best_tenth_is_cloned_where_so_asked(small, tmp_path, monkeypatch):
    seen = []
    table = {"bc_top": methods.Method(methods.BC, BCConfig(**SMALL), top=0.1)}
    monkeypatch.setattr(methods, "POINTS", table)
    monkeypatch.setattr(methods, "trained", lambda agent, dataset, *rest: seen.append(dataset) or agent)
    run(tmp_path, ["bc_top"])
    whole = domains.load(tmp_path / "artefacts" / "pointmaze-medium-diverse.npz")
    assert len(seen[0].ends) == max(round(0.1 * len(whole.ends)), 1)
    assert seen[0].returns().min() >= np.quantile(whole.returns(), 0.8)


def test_the_verdict_reads_the_table(tmp_path):
    def results(naive_error, **scores):
        arms = {arm: {"seeds": [0], "metrics": {"antmaze-large: score": [s]}} for arm, s in scores.items()}
        arms["naive"]["metrics"]["antmaze-large: over-estimate"] = [naive_error]
        arms["cql"]["metrics"]["antmaze-large: over-estimate"] = [-3.0]
        config = {"domains": ["antmaze-large"], "episodes": 100}
        return Results("offline", "large", tmp_path, config=config, arms=arms)

    good = offline.verdict(results(11.0, bc=0.0, bear=1.0, emaq=15.0, naive=0.0, cql=20.0, cql_opal=46.0))
    assert [claim.holds for claim in good] == [True] * 7
    bad = offline.verdict(results(9.0, bc=16.0, bear=1.0, emaq=0.0, naive=30.0, cql=30.0, cql_opal=44.0))
    assert [claim.holds for claim in bad] == [False, True, True, False, False, False, False]
