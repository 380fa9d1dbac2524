import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from rich.console import Console

from offroad import studies
from offroad.errors import OffroadError
from offroad.report import plots
from offroad.studies import study as protocol
from offroad.studies.study import Claim, Figure, Published, Study, at_least, reproduce


@dataclass(frozen=True, kw_only=True)
class Budget(protocol.Budget):
    throws: int


def coin(seeds, budget, context):
    """A fair coin.

    Not shown in the report.
    """
    context.once("tables", lambda: calls.append("made"))
    rng = [np.random.default_rng(s) for s in seeds]
    heads = [r.random(budget.throws).round() for r in rng]
    context.progress("thrown", 0.5)
    context.keep("heads", heads=np.array(heads))
    context.curve("share", [10, 20, 30], [0.0, 1.0, 1.0])
    context.curve("nothing", [], [])
    return {"heads": [h.mean() for h in heads]}


def loaded(seeds, budget, context):
    """A loaded coin."""
    context.once("tables", lambda: calls.append("made"))
    return {"heads": np.full(len(seeds), 0.9), "diverged": [np.nan] * len(seeds)}


def crash(seeds, budget, context):
    raise ValueError("the coin rolled away")


def verdict(r):
    return [
        r.claim("A fair coin is fair", "at least 0.4", lambda: at_least(r.iqm("coin", "heads"), 0.4)),
        r.claim(
            "A loaded coin wins", "by 0.9", lambda: at_least(r.iqm("loaded", "heads") - r.iqm("coin", "heads"), 0.9)
        ),
    ]


def picture(results, folder):
    heads = results.artefact("coin", "heads")["heads"]
    scores = {a: results.values(a, "heads") for a in results.arms}
    assert heads.shape[1] == results.config["throws"]
    return Figure("Heads", plots.dots(folder / "heads.png", scores, "share of heads"), "Each dot is a seed.")


calls: list[str] = []
COINS = Study(
    name="coins",
    title="Coins",
    claim="Coins are fair. Loaded ones are not.",
    source="Folklore, https://example.org",
    published=(Published("heads", 0.5, "", "folklore"),),
    arms={"coin": coin, "loaded": loaded},
    profiles={"quick": Budget(seeds=4, minutes=0.1, throws=50)},
    verdict=verdict,
    figures=(picture,),
)


def run(study, out, **options):
    calls.clear()
    file = io.StringIO()
    results = reproduce(study, out=out, console=Console(file=file, width=200), **options)
    return results, file.getvalue().splitlines()


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_results_have_the_agreed_shape(tmp_path):
    _, lines = run(COINS, tmp_path)
    saved = strict(tmp_path / "results.json")
    fields = "study profile arms claims published config commit machine wall_s"
    assert set(saved) == set(fields.split())
    assert saved["arms"]["coin"]["seeds"] == [0, 1, 2, 3]
    assert len(saved["arms"]["coin"]["metrics"]["heads"]) == 4
    assert saved["arms"]["loaded"]["metrics"]["diverged"] == [None] * 4
    assert [c["holds"] for c in saved["claims"]] == [True, False]
    assert set(saved["claims"][0]) == {"claim", "measured", "required", "holds"}
    assert set(saved["arms"]["coin"]["curves"]) == {"share"}
    assert "curves" not in saved["arms"]["loaded"]
    assert saved["published"] == [{"what": "heads", "value": 0.5, "unit": "", "source": "folklore"}]
    assert saved["config"] == {"seeds": 4, "minutes": 0.1, "throws": 50}
    assert saved["commit"]
    assert calls == ["made"]  # the second arm used what the first had computed
    assert lines[-4].startswith("Coins: 1 of 2 claims hold")
    assert lines[-3].startswith("fails: A loaded coin wins")
    assert lines[-1] == str(tmp_path / "report.html")


def test_progress_speaks_of_the_whole_arm(tmp_path):
    said = []
    context = protocol.Context(tmp_path, "arm", [0, 1], {}, lambda message, fraction: said.append(fraction))
    for seed in context.each([0, 1]):
        for kind in context.each(["easy", "hard"]):
            context.progress(f"{kind}, seed {seed}")
            context.progress(f"{kind}, seed {seed}", 0.5)
    context.progress("done", 1.0)
    assert said == [None, 0.125, None, 0.375, None, 0.625, None, 0.875, 1.0]


def test_curves_have_twenty_even_points(tmp_path):
    results, _ = run(COINS, tmp_path)
    steps, values = results.curve("coin", "share")
    np.testing.assert_allclose(steps, np.linspace(10, 30, 20))
    np.testing.assert_allclose(values, np.minimum((steps - 10) / 10, 1))
    with pytest.raises(protocol.NotRun, match="'loaded' left no curve 'share'"):
        results.curve("loaded", "share")


def test_report_is_one_file_with_everything(tmp_path):
    run(COINS, tmp_path)
    text = (tmp_path / "report.html").read_text()
    for expected in (
        "A loaded coin wins",
        "✓",
        "✗",
        "A fair coin.",
        "folklore",
        "data:image/png",
        "Each dot is a seed.",
    ):
        assert expected in text
    assert "Not shown" not in text
    assert "<script" not in text
    assert 'href="' not in text
    assert 'src="http' not in text


def test_same_seeds_same_results(tmp_path):
    first, _ = run(COINS, tmp_path / "a")
    second, _ = run(COINS, tmp_path / "b")
    assert first["coin"] == second["coin"]
    fewer, _ = run(COINS, tmp_path / "c", seeds=2)
    assert fewer["coin"]["heads"] == first["coin"]["heads"][:2]


def test_a_partial_run_leaves_the_other_claims_open(tmp_path):
    results, lines = run(COINS, tmp_path, arms=["loaded"])
    assert list(results.arms) == ["loaded"]
    assert [c.holds for c in results.claims] == [None, None]
    assert "the arm 'coin' was not run" in str(results.claims[0].measured)
    assert "0 of 0 claims hold, 2 not evaluated" in lines[-4]
    assert "Not evaluated" in (tmp_path / "report.html").read_text()
    assert not list((tmp_path / "figures").iterdir())


def test_arms_run_one_by_one_make_the_results_of_all(tmp_path):
    whole, _ = run(COINS, tmp_path / "whole")
    run(COINS, tmp_path, arms=["loaded"])
    run(COINS, tmp_path, arms=["coin"], seeds=2)
    saved = strict(tmp_path / "results.json")
    assert list(saved["arms"]) == ["coin", "loaded"]
    assert [arm["seeds"] for arm in saved["arms"].values()] == [[0, 1], [0, 1, 2, 3]]
    assert saved["arms"]["coin"]["metrics"]["heads"] == whole["coin"]["heads"][:2]
    assert all(c["holds"] is not None for c in saved["claims"])
    run(COINS, tmp_path, arms=["coin"])  # replaces its own
    saved = strict(tmp_path / "results.json")
    assert saved["arms"]["coin"]["seeds"] == [0, 1, 2, 3]
    saved["arms"]["loaded"]["wall_s"] = 5.0
    (tmp_path / "results.json").write_text(json.dumps(saved))
    run(COINS, tmp_path, arms=[])  # the verdict anew, of all that was run
    assert strict(tmp_path / "results.json")["wall_s"] >= 5


def test_two_runs_of_different_arms_in_one_folder_keep_both(tmp_path):
    def slow_coin(seeds, budget, context):
        run(COINS, tmp_path, arms=["loaded"])  # another one begins and ends meanwhile
        return coin(seeds, budget, context)

    run(replace(COINS, arms=COINS.arms | {"coin": slow_coin}), tmp_path, arms=["coin"])
    saved = strict(tmp_path / "results.json")
    assert list(saved["arms"]) == ["coin", "loaded"]
    assert all(c["holds"] is not None for c in saved["claims"])


def test_results_of_another_budget_are_not_mixed(tmp_path):
    run(COINS, tmp_path, arms=["loaded"])
    other = replace(COINS, profiles={"quick": Budget(seeds=4, minutes=0.1, throws=60)})
    with pytest.raises(OffroadError, match=r"holds results with throws = 50, this run has 60; choose another --out"):
        run(other, tmp_path, arms=["coin"])


def test_a_verdict_that_asks_outside_a_claim_is_open_too(tmp_path):
    hasty = replace(COINS, verdict=lambda r: [Claim("fair", r.iqm("coin", "heads"), "0.5", True)])
    assert run(hasty, tmp_path, arms=["loaded"])[0].claims[0].holds is None


def test_a_crash_keeps_the_finished_arms(tmp_path):
    broken = replace(COINS, arms={"coin": coin, "loaded": crash})
    with pytest.raises(
        OffroadError, match="'loaded' of the study 'coins' failed: ValueError: the coin rolled away"
    ) as e:
        run(broken, tmp_path)
    assert isinstance(e.value.__cause__, ValueError)
    saved = strict(tmp_path / "results.json")
    assert list(saved["arms"]) == ["coin"]
    assert [c["holds"] for c in saved["claims"]] == [True, None]
    assert (tmp_path / "report.html").exists()


def test_a_figure_that_crashes_costs_only_itself(tmp_path):
    def bad(results, folder):
        raise ValueError("no ink")

    _, lines = run(replace(COINS, figures=(bad, picture)), tmp_path)
    assert "figure bad failed: ValueError: no ink" in lines
    assert "Each dot is a seed." in (tmp_path / "report.html").read_text()


def test_figures_never_see_arrays_of_an_earlier_run(tmp_path):
    run(COINS, tmp_path)
    forgetful = replace(COINS, arms={"coin": loaded})
    results, _ = run(forgetful, tmp_path)
    with pytest.raises(protocol.NotRun):
        results.artefact("coin", "heads")


def test_user_mistakes_are_named(tmp_path):
    with pytest.raises(OffroadError, match=r"unknown profile .* 'quik'; did you mean 'quick'"):
        run(COINS, tmp_path, profile="quik")
    with pytest.raises(OffroadError, match=r"unknown arm .* 'lodaed'; did you mean 'loaded'"):
        run(COINS, tmp_path, arms=["lodaed"])
    with pytest.raises(OffroadError, match="seeds is 0"):
        run(COINS, tmp_path, seeds=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OffroadError, match="file' cannot be made"):
        run(COINS, tmp_path / "file")
    short = replace(COINS, arms={"coin": lambda seeds, budget, context: {"heads": [0.5]}})
    with pytest.raises(OffroadError, match=r"'heads' has shape \(1,\); expected one number for each of 4 seeds"):
        run(short, tmp_path)
    results, _ = run(COINS, tmp_path)
    with pytest.raises(OffroadError, match=r"unknown metric .* 'haeds'; did you mean 'heads'"):
        results.values("coin", "haeds")
    with pytest.raises(OffroadError, match="unknown study"):
        studies.load("trafic")
    assert "study" not in studies.names()


def test_an_arm_may_leave_itself_out_of_a_profile(tmp_path):
    def absent(seeds, budget, context):
        raise protocol.NotRun("needs a larger profile")

    results, _ = run(replace(COINS, arms={"absent": absent, **COINS.arms}), tmp_path)
    assert set(results.arms) == set(COINS.arms)
