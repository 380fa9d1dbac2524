"""The study of curiosity with a budget of seconds: its arms run, resume and are judged."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gymnasium.vector import VectorEnv
from rich.console import Console

from offroad import train
from offroad.rewards import Fitting
from offroad.studies import curiosity
from offroad.studies.curiosity import claims, doom, exams, platforms, rooms, settings
from offroad.studies.study import Results, reproduce

TINY = settings.CuriosityBudget(
    seeds=1, minutes=1, worlds=2, ablation_seeds=1, coverage=0, recurrent=0, ladder=0, balance=256, television=256,
    platformer=256, episodes=2,
)  # fmt: skip
MAZE = dataclasses.replace(
    TINY, coverage=256, ladder=256, noise_start=26, transfer_start=26, balance=0, television=0,
    platformer=0,
)  # fmt: skip
STUDY = dataclasses.replace(curiosity.STUDY, profiles={"quick": TINY, "maze": MAZE})


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Networks and memories that compile in seconds."""
    small = {"hidden": (8,), "size": 4, "fitting": Fitting(minibatch=64)}
    for name, (kind, config) in settings.BONUSES.items():
        options = small | ({"capacity": 8, "batches": 1, "fit_updates": 1} if name == "reachability" else {})
        monkeypatch.setitem(settings.BONUSES, name, (kind, dataclasses.replace(config, **options)))
    config = settings.ppo_config

    def small_ppo(env, eyes, **changes):
        return dataclasses.replace(config(env, eyes, **changes), epochs=1, hidden=(8,))

    monkeypatch.setattr(settings, "WARM_UP", 1)
    monkeypatch.setattr(settings, "ppo_config", small_ppo)
    monkeypatch.setattr(rooms, "ppo_config", small_ppo)
    for kind, options in platforms.LEVELS.items():
        levels = {"train": 0, "test": 1000}[options["levels"]]
        monkeypatch.setitem(platforms.LEVELS, kind, options | {"levels": levels, "max_episode_steps": 30})
    for place, options in doom.PLACES.items():
        monkeypatch.setitem(doom.PLACES, place, options | {"timeout": 700})


def run(out, arms, profile="quick"):
    return reproduce(STUDY, profile, arms=arms, out=out, console=Console(file=io.StringIO(), width=200))


def test_rooms_a_television_and_platforms(tmp_path):
    arms = ["d5_eipo", "d6_random", "d6_icm", "d7_random", "d7_icm", "d7_finetuned"]
    results = run(tmp_path, [*arms, "d1_random", "d2_icm_15", "d3_icm", "d4_as_is"])
    assert list(results.arms) == arms  # those of the maze were left out
    assert 0 <= results.values("d6_icm", "share of switching")[0] < 1
    assert results.values("d6_random", "share of switching")[0] == pytest.approx(1 / 8, abs=0.08)
    assert results.values("d6_icm", "tiles per episode")[0] >= 1
    for kind in ("train", "test", "night"):
        assert results.values("d7_random", f"{kind}: distance")[0] > 0
    for kind in ("easy", "hard"):
        assert 0 <= results.values("d5_eipo", f"{kind}: return")[0] <= results.values("d5_eipo", f"{kind}: success")[0]
    waiting = {claim.claim for claim in results.claims if claim.holds is None}
    assert {"D6: disagreement passes it", "D5: EIPO against the best of no bonus and all weights, easy task"} < waiting
    assert "D7: ICM without reward runs on its own levels" not in waiting
    assert all(claim.startswith(("D1", "D2", "D3", "D4")) for claim in waiting if claim[1] not in "567")
    again = run(tmp_path, ["d6_icm"])  # from its checkpoint: the same policy
    assert again.arms["d6_icm"]["metrics"] == results.arms["d6_icm"]["metrics"]
    assert {"balance.png", "television.png", "platformer.png"} <= {f.name for f in (tmp_path / "figures").iterdir()}


def test_a_thousand_times_the_reward(tmp_path, monkeypatch):
    results = run(tmp_path, ["d1_scaled"])
    assert results.values("d1_scaled", "arrays that differ") == [0]
    monkeypatch.setattr(curiosity.training, "curious", lambda name, *where, extrinsic: settings.ppo(*where))
    touched = run(tmp_path, ["d1_scaled"])
    met, differing = (touched.values("d1_scaled", name)[0] for name in ("reward met", "arrays that differ"))
    assert met > 0
    assert differing > 0


def test_the_maze(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    for name in ("icm_random", "disagreement", "e3b"):  # each compiles for many seconds, and has tests of its own
        monkeypatch.delitem(settings.BONUSES, name)
    arms = ["d1_random", "d1_ranking", "d1_ceiling", "d1_reachability", "d1_elsewhere", "d2_plain_15", "d3_pixels"]
    arms += ["d4_as_is", "d4_finetuned"]
    results = run(tmp_path, [*arms, "d1_icm_paper", "d6_icm"], "maze")
    assert list(results.arms) == arms
    for place in doom.PLACES:
        assert 1 < results.values("d1_random", f"{place}: cells per episode")[0] < 60
    ranking = results["d1_ranking"]
    assert all(f"{name}: lead of wandering" in ranking for name in settings.BONUSES)
    assert np.isfinite(list(ranking.values())).all()
    wandering, circling, spinning = (
        ranking[f"{policy}: cells per episode"][0] for policy in ("wandering", "circling", "spinning")
    )
    assert wandering > circling > spinning >= 1
    explorer = results["d1_reachability"]
    assert explorer["cells together"][0] >= explorer["cells per episode"][0] >= 1
    assert explorer["blind: cells per episode"][0] >= 1
    assert set(results["d2_plain_15"]) == {"success"}
    assert results["d4_finetuned"].keys() == {"success", "mean success in training"}
    runs = sorted(path.name for path in (tmp_path / "artefacts" / "runs").iterdir())
    assert runs == [
        "d2_plain_15_0", "d3_pixels_clean_0", "d3_pixels_noise_0", "d4_finetuned_0",
        "elsewhere_reachability_0", "home_cells_0", "home_reachability_0",
    ]  # fmt: skip
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"occupancy.png", "explorer.gif", "ladder.png", "noise.png", "ranking.png"} <= drawn
    assert (tmp_path / "figures" / "explorer.gif").stat().st_size < 2e6
    occupied = results.artefact("d1_reachability", "map")
    assert occupied["policy"].sum() > 0 < occupied["blind"].sum()


def test_an_explorer_that_is_paid_otherwise_forgets_the_scale_of_the_old_pay():
    """Policy, values and bonus are those of the explorer; the state of Adam and the scale of the returns are new."""
    env = rooms.rooms(rooms.EASY, 2)
    fresh = settings.curious("rnd", env, settings.GRID, 0, 0.0)
    explorer = train.on_policy(fresh, env, 2 * 2 * settings.ROLLOUT, progress=False).agent
    agent = doom.reweighed(explorer, 1.0, 0.1)
    assert (agent.extrinsic, agent.intrinsic) == (1.0, 0.1)
    for part in ("optimiser_state", "return_norm"):
        assert not tiny.same(getattr(explorer.agent, part), getattr(fresh.agent, part))
        assert tiny.same(getattr(agent.agent, part), getattr(fresh.agent, part))
    for part in ("network", "observation_norm"):
        assert tiny.same(getattr(agent.agent, part), getattr(explorer.agent, part))
    assert not tiny.same(explorer.agent.network, fresh.agent.network)
    assert tiny.same((agent.reward, agent.updates), (explorer.reward, explorer.updates))


class Countdown(VectorEnv):
    """Worlds whose episodes last as long as their number and reward each action with itself; no world resets itself."""

    num_envs = 3

    def reset(self, *, seed=None, options=None):
        which = np.ones(3, bool) if options is None else options["reset_mask"]
        self.seeds = [*getattr(self, "seeds", []), seed]
        self.left = np.where(which, [1, 2, 3], getattr(self, "left", 0))
        return self.left.copy(), {}

    def step(self, actions):
        assert (self.left > 0).all(), "a world was stepped after its end"
        self.left -= 1
        return self.left.copy(), actions.astype(float), self.left == 0, np.zeros(3, bool), {}


def test_an_exam_counts_the_first_episode_of_each_world():
    env, policy = Countdown(), exams.Blind(np.array([0.0, 1.0]), 0)
    moments = list(exams.stroll(env, policy, 5, seed=2))
    assert sum(now.counted.sum() for now in moments) == 6 + 3  # a whole round, and the first two worlds of another
    assert sum(now.ended.sum() for now in moments) == 5
    assert [seed for seed in env.seeds if seed is not None] == [
        settings.EXAM_SEED + 20_000,
        settings.EXAM_SEED + 20_003,
    ]
    assert all((now.rewards == 1).all() for now in moments)


def test_blind_policies_draw_their_frequencies():
    policy = exams.Blind(np.array([0.7, 0.0, 0.3]), 0)
    policy.begin(10_000)
    share = np.bincount(policy(None), minlength=3) / 10_000
    np.testing.assert_allclose(share, [0.7, 0, 0.3], atol=0.02)


def test_the_budget_lets_eipo_change_its_mind():
    """In a tenth of its max stages alpha can fall to 0 or double."""
    budget, config = curiosity.STUDY.profiles["cpu"], rooms.EIPOConfig()
    updates = budget.balance // (settings.ROLLOUT * budget.worlds) - settings.WARM_UP
    assert 0.1 * (updates // 2) * config.alpha_learning_rate * config.alpha_clip > config.alpha


def test_what_eipo_delivers_is_the_policy_for_the_task():
    env = rooms.rooms(rooms.EASY, 2)
    agent = rooms.EIPO.create(
        settings.Spaces.of(env), rooms.EIPOConfig(settings.ppo_config(env, settings.GRID)), settings.jax.random.key(0),
        reward=settings.bonus("rnd", env, settings.GRID, 0),
    )  # fmt: skip
    exploring = dataclasses.replace(agent, max_stage=jnp.array(False))
    assert bool(exploring.for_task().max_stage)


# --- the verdict


def judged(tmp_path, curves=None, **arms):
    """Claims of made-up results, by their first words: `arm={metric: [one value a seed]}`, `curves` likewise."""
    found = {
        name: {"seeds": list(range(len(next(iter(metrics.values()))))), "metrics": metrics}
        for name, metrics in arms.items()
    }
    for name, kept in (curves or {}).items():
        found[name]["curves"] = {run: {"step": list(range(20)), "value": value} for run, value in kept.items()}
    found = claims.verdict(Results("curiosity", "cpu", tmp_path, arms=found))
    return {claim.claim: claim for claim in found}


def holding(found, words):
    (claim,) = (claim for name, claim in found.items() if words in name)
    return claim.holds


def explored(cells, blind):
    return {"cells per episode": cells, "blind: cells per episode": blind}


RANDOM = {f"{place}: cells per episode": [19.0, 20.0, 21.0] for place in doom.PLACES}


def test_nothing_is_claimed_of_what_was_not_run(tmp_path):
    assert {claim.holds for claim in judged(tmp_path).values()} == {None}


def test_coverage_is_judged_in_each_of_three_seeds(tmp_path):
    good = judged(tmp_path, d1_random=RANDOM, d1_reachability=explored([31.0, 35.0, 40.0], [28.0, 28.0, 28.0]))
    assert holding(good, "reachability memory covers")
    assert holding(good, "frequencies drawn blindly")
    assert holding(good, "ICM covers") is None
    for cells, blind, holds in (([29.0, 60.0, 60.0], [30.0] * 3, False), ([60.0, 60.0], [30.0, 30.0], None)):
        bad = judged(tmp_path, d1_random=RANDOM, d1_reachability=explored(cells, blind))
        assert holding(bad, "reachability memory covers") is holds
        assert holding(bad, "frequencies drawn blindly") is holds
    idle = {"cells per episode": [31.0]}
    assert holding(judged(tmp_path, d1_random=RANDOM, d1_nothing=idle), "without any reward does not") is False


def test_learning_curves_and_the_ranking_are_judged(tmp_path):
    cells = explored([31.0] * 3, [20.0] * 3)
    for last, leads, holds in ((24.0, [0.1, 0.2, 0.3], True), (23.9, [0.1, -0.2, 0.3], False)):
        value = [20.0] * 4 + [50.0] * 12 + [last] * 4
        curves = {"d1_reachability": {f"home_reachability_{seed}": value for seed in range(3)}}
        ranking = {"reachability: lead of wandering": leads}
        found = judged(tmp_path, curves, d1_reachability=cells, d1_icm=cells, d1_ranking=ranking)
        assert holding(found, "learns from the reachability memory") is holds
        assert holding(found, "... and from ICM") is None  # its curves are of an older version
        assert holding(found, "pays wandering more") is holds
    lead = {"reachability: lead of wandering": [1.0]}
    assert holding(judged(tmp_path, d1_ranking=lead), "pays wandering more") is None  # one seed is not enough


def test_reward_that_was_never_met_proves_nothing(tmp_path):
    for met, differing, holds in ((5.0, 0.0, True), (0.0, 0.0, False), (5.0, 1.0, False)):
        found = judged(tmp_path, d1_scaled={"arrays that differ": [differing] * 3, "reward met": [met] * 3})
        assert holding(found, "a thousand times") is holds


def test_a_start_is_solved_in_two_of_three_seeds(tmp_path):
    def rungs(method, *rows, starts=settings.STARTS):
        return {f"d2_{method}_{start}": {"success": row} for start, row in zip(starts, rows)}

    fails = rungs("plain", [0.0, 0.1, 0.0], [0.0] * 3, starts=(10, 15))
    plain = rungs("plain", [1.0, 0.9, 0.9], [0.0, 0.1, 0.0]) | fails
    icm = rungs("icm", [1.0] * 3, [0.9, 0.7, 0.8], [0.9, 0.5, 0.5])
    found = judged(tmp_path, **plain, **icm)
    assert holding(found, "fails from the starts")
    assert holding(found, "farthest start solved, icm")
    assert found["D2: farthest start solved, icm against no bonus"].measured == "24 (2 of 5) against 26 (1 of 5)"
    assert holding(found, "solves the farthest start") is False  # nobody needs to try what is beyond the third
    assert holding(found, "farthest start solved, rnd") is None
    solved = rungs("icm", [1.0] * 3, [1.0] * 3)
    assert holding(judged(tmp_path, **plain, **solved), "farthest start solved, icm") is None  # the next was not tried
    assert not holding(judged(tmp_path, **plain, **rungs("icm", [0.9] * 3, [0.0] * 3)), "farthest start solved, icm")


@pytest.mark.parametrize(
    ("icm", "pixels", "keeps", "loses"),
    [
        ((0.9, 0.8), (0.9, 0.3), True, True),
        ((0.9, 0.5), (0.9, 0.6), False, False),
        ((0.0, 0.0), (0.3, 0.0), False, False),
    ],
)
def test_who_has_nothing_loses_nothing(tmp_path, icm, pixels, keeps, loses):
    arms = {
        name: {"clean: success": [clean] * 3, "noise: success": [noisy] * 3}
        for name, (clean, noisy) in (("d3_icm", icm), ("d3_pixels", pixels))
    }
    found = judged(tmp_path, **arms)
    assert holding(found, "ICM keeps") is keeps
    assert holding(found, "prediction of pixels") is loses
    one = {name: {metric: values[:1] for metric, values in arm.items()} for name, arm in arms.items()}
    assert holding(judged(tmp_path, **one), "ICM keeps") is None  # one seed is not enough


def test_textures_and_fine_tuning(tmp_path):
    def speeds(*values):
        return {"success": [1.0] * len(values), "mean success in training": list(values)}

    good = judged(
        tmp_path, d1_random=RANDOM, d4_as_is=explored([31.0] * 3, [20.0] * 3), d4_finetuned=speeds(0.5, 0.6, 0.7),
        d4_scratch=speeds(0.4, 0.5, 0.6),
    )  # fmt: skip
    assert holding(good, "as it is in textures")
    assert holding(good, "fine-tuned, mean success")
    worse = judged(tmp_path, d4_finetuned=speeds(0.5, 0.4, 0.7), d4_scratch=speeds(0.4, 0.5, 0.6))
    assert holding(worse, "fine-tuned, mean") is False


def test_eipo_is_held_to_the_best_of_all_weights(tmp_path):
    def returns(easy, hard):
        return {"easy: return": [easy] * 3, "hard: return": [hard] * 3}

    scores = ((0.9, 0.0), (0.9, 0.2), (0.8, 0.5), (0.5, 0.1))
    arms = {claims.weight_arm(w): returns(*pair) for w, pair in zip(rooms.WEIGHTS, scores, strict=True)}
    found = judged(tmp_path, **arms, d5_eipo=returns(0.87, 0.4))
    assert holding(found, "weight 1 hurts")
    assert holding(found, "some weight helps")
    assert holding(found, "all weights, easy task")
    assert found["D5: EIPO against the best of no bonus and all weights, hard task"].measured == "0.400 against 0.500"
    assert not holding(found, "all weights, hard task")


def test_television_and_platformer(tmp_path):
    def seen(share, tiles):
        return {"share of switching": [share] * 3, "tiles per episode": [tiles] * 3}

    found = judged(
        tmp_path, d6_random=seen(0.125, 10.0), d6_icm=seen(0.6, 5.0), d6_disagreement=seen(0.1, 12.0),
        d6_e3b=seen(0.1, 4.0), d6_reachability=seen(0.5, 12.0),
        d7_random={"train: distance": [17.0] * 3, "test: distance": [17.0] * 3},
        d7_icm={"train: distance": [30.0] * 3, "train: blind: distance": [20.0] * 3, "test: distance": [30.0] * 3,
                "test: blind: distance": [31.0] * 3, "night: distance": [20.0] * 3},
        d7_finetuned={"night: distance": [25.0] * 3}, d7_scratch={"night: distance": [24.0] * 3},
    )  # fmt: skip
    assert holding(found, "ICM watches")
    assert holding(found, "disagreement passes")
    assert not holding(found, "E3B")
    assert not holding(found, "memory passes")
    assert holding(found, "its own levels")
    assert not holding(found, "levels never seen")
    assert holding(found, "fine-tuned by curiosity alone")
