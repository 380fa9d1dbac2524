"""What must show, and whether it does: computed from results alone."""

from collections.abc import Callable

import numpy as np

from offroad.studies.curiosity.rooms import WEIGHTS
from offroad.studies.curiosity.settings import STARTS
from offroad.studies.study import Claim, NotRun, Results

CELLS = "cells per episode"
LEAD = "lead of wandering"  # over circling and spinning, in standard deviations of what episodes are paid
SOLVED = 0.8  # success at which a start counts as solved


def verdict(r: Results) -> list[Claim]:
    return [*coverage(r), *starts(r), *noise(r), *textures(r), *balance(r), *television(r), *platformer(r)]


def rung_arm(method: str, start: int) -> str:
    return f"d2_{method}_{start}"


def weight_arm(weight: float) -> str:
    return f"d5_weight_{weight:g}".replace(".", "_")


# --- D1


def coverage(r: Results) -> list[Claim]:
    def over_random(arm: str, place: str, factor: float = 1.5, seeds: int = 1) -> Callable[[], tuple[str, bool]]:
        """The ratio in each seed, to the mean of the random policy; with fewer seeds nothing is said."""

        def measure() -> tuple[str, bool]:
            random = _mean(r, "d1_random", f"{place}: {CELLS}")
            ratios = _enough(np.array(r.values(arm, CELLS)) / random, seeds)
            return _listed(ratios), bool(ratios.min() >= factor)

        return measure

    def over_blind(arm: str) -> tuple[str, bool]:
        ratios = _enough(np.array(r.values(arm, CELLS)) / np.array(r.values(arm, f"blind: {CELLS}")))
        return _listed(ratios), bool(ratios.min() >= 1.1)

    def nothing() -> tuple[str, bool]:
        shown, covers = over_random("d1_nothing", "home")()
        return shown, not covers

    def untouched() -> tuple[str, bool]:
        differing, met = sum(r.values("d1_scaled", "arrays that differ")), _mean(r, "d1_scaled", "reward met")
        return f"{differing:g} arrays differ, {met:g} reward met", differing == 0 and met > 0

    def leads() -> tuple[str, bool]:
        leads = _enough(np.array(r.values("d1_ranking", f"reachability: {LEAD}")))
        return _listed(leads), bool(leads.min() > 0)

    def grows(arm: str, run: str) -> Callable[[], tuple[str, bool]]:
        """The coverage in the last fifth of the training, as a multiple of that in the first fifth."""

        def measure() -> tuple[str, bool]:
            r[arm]  # says which arm was not run
            values = [r.curve(arm, f"{run}_{seed}")[1] for seed in r.arms[arm]["seeds"]]
            ratios = _enough(np.array([value[-4:].mean() / value[:4].mean() for value in values]))
            return _listed(ratios), bool(ratios.min() >= 1.2)

        return measure

    every, blind = "1.5x in each of three seeds", "1.1x in each of three seeds"
    grown = "1.2x from first to last fifth, in each of three seeds"
    return [
        r.claim("D1: the reachability memory covers more than random actions", every,
                over_random("d1_reachability", "home", seeds=3)),
        r.claim("D1: ... and more than its own action frequencies drawn blindly", blind,
                lambda: over_blind("d1_reachability")),
        r.claim("D1: ... from another start and in other textures, too: than random", every,
                over_random("d1_elsewhere", "elsewhere", seeds=3)),
        r.claim("D1: ... than its own frequencies there", blind, lambda: over_blind("d1_elsewhere")),
        r.claim("D1: ICM covers more than random actions", every, over_random("d1_icm", "home", seeds=3)),
        r.claim("D1: coverage grows as the policy learns from the reachability memory", grown,
                grows("d1_reachability", "home_reachability")),
        r.claim("D1: ... and from ICM", grown, grows("d1_icm", "home_icm")),
        r.claim("D1: before any training, the reachability memory pays wandering more than circling or spinning",
                "in each of three seeds", leads),
        r.claim("D1: ICM with memory and the paper's actions does", "1.5x in one seed",
                over_random("d1_icm_paper", "paper")),
        r.claim("D1: PPO without any reward does not", "below 1.5x in one seed", nothing),
        r.claim("D1: a thousand times the reward changes nothing", "no bit", untouched),
    ]  # fmt: skip


# --- D2 to D4


def starts(r: Results) -> list[Claim]:
    def solved(method: str, start: int) -> bool:
        """In at least two of three seeds."""
        return float(np.mean(_enough(np.array(r.values(rung_arm(method, start), "success"))) >= SOLVED)) >= 2 / 3

    def farthest(method: str) -> int:
        """The place in the ladder, from 1, of the last start before the first one that is not solved; 0: there is none.
        Starts beyond that need not have been run."""
        for i, start in enumerate(STARTS):
            if not solved(method, start):
                return i
        return len(STARTS)

    def shown(method: str) -> str:
        place = farthest(method)
        return f"{STARTS[place - 1]} ({place} of {len(STARTS)})" if place else "none"

    def fails() -> tuple[str, bool]:
        rates = [_mean(r, rung_arm("plain", start), "success") for start in STARTS[-2:]]
        return ", ".join(f"{rate:.2f}" for rate in rates), max(rates) <= 0.05

    def farther(method: str) -> Callable[[], tuple[str, bool]]:
        return lambda: (f"{shown(method)} against {shown('plain')}", farthest(method) > farthest("plain"))

    return [
        r.claim(f"D2: PPO without a bonus fails from the starts {list(STARTS[-2:])}", "success at most 0.05", fails),
        *(r.claim(f"D2: farthest start solved, {method} against no bonus", "farther", farther(method))
          for method in ("icm", "rnd", "reachability")),
        r.claim(f"D2: ICM solves the farthest start, {STARTS[-1]}", "success 0.8 in two of three seeds",
                lambda: (shown("icm"), farthest("icm") == len(STARTS))),
    ]  # fmt: skip


def noise(r: Results) -> list[Claim]:
    def drops(arm: str) -> tuple[float, float]:
        clean, noisy = (_mean(r, arm, f"{kind}: success") for kind in ("clean", "noise"))
        return clean, clean - noisy

    def keeps() -> tuple[str, bool]:
        clean, drop = drops("d3_icm")
        # Who cannot do it without noise has nothing to lose.
        return f"{100 * drop:.0f} of {100 * clean:.0f} points", clean >= 0.5 and drop <= 0.15

    def loses() -> tuple[str, bool]:
        (_, ours), (clean, theirs) = drops("d3_icm"), drops("d3_pixels")
        return f"{100 * theirs:.0f} of {100 * clean:.0f} points", clean >= 0.5 and theirs >= max(0.4, ours)

    return [
        r.claim("D3: ICM keeps its success under noise", "at most 15 points lost of at least 50", keeps),
        r.claim("D3: prediction of pixels loses it", "at least 40 points lost", loses),
    ]


def textures(r: Results) -> list[Claim]:
    def as_is() -> tuple[str, bool]:
        ratios = _enough(np.array(r.values("d4_as_is", CELLS))) / _mean(r, "d1_random", f"held-out: {CELLS}")
        return _listed(ratios), bool(ratios.min() >= 1.5)

    def faster() -> tuple[str, bool]:
        ours, theirs = (
            _enough(np.array(r.values(arm, "mean success in training"))) for arm in ("d4_finetuned", "d4_scratch")
        )
        return f"{_listed(ours)} against {_listed(theirs)}", bool((ours[: len(theirs)] > theirs[: len(ours)]).all())

    return [
        r.claim("D4: as it is in textures never seen, coverage against random", "1.5x in each seed", as_is),
        r.claim("D4: fine-tuned, mean success over training, against scratch", "more in each seed", faster),
    ]


# --- D5 to D7


def balance(r: Results) -> list[Claim]:
    def score(arm: str, kind: str) -> float:
        return _mean(r, arm, f"{kind}: return")

    def best_bonus(kind: str) -> float:
        return max(score(weight_arm(weight), kind) for weight in WEIGHTS[1:])

    def near_the_better(kind: str) -> Callable[[], tuple[str, bool]]:
        def measure() -> tuple[str, bool]:
            ours, best = score("d5_eipo", kind), max(score(weight_arm(0.0), kind), best_bonus(kind))
            return f"{ours:.3f} against {best:.3f}", ours >= 0.95 * best and best > 0

        return measure

    def hurts() -> tuple[str, bool]:
        plain, heavy = score(weight_arm(0.0), "easy"), score(weight_arm(WEIGHTS[-1]), "easy")
        return f"{heavy:.3f} against {plain:.3f}", heavy < 0.95 * plain

    def helps() -> tuple[str, bool]:
        plain, best = score(weight_arm(0.0), "hard"), best_bonus("hard")
        return f"{best:.3f} against {plain:.3f}", best > 0.05 + plain

    return [
        r.claim("D5: on the easy task a bonus of weight 1 hurts", "5 % less return than without", hurts),
        r.claim("D5: on the hard task some weight helps", "0.05 more return than without", helps),
        *(r.claim(f"D5: EIPO against the best of no bonus and all weights, {kind} task", "at least 95 %",
                  near_the_better(kind)) for kind in ("easy", "hard")),
    ]  # fmt: skip


def television(r: Results) -> list[Claim]:
    watching, tiles = "share of switching", "tiles per episode"

    def watches() -> tuple[str, bool]:
        ours, random = _mean(r, "d6_icm", watching), _mean(r, "d6_random", watching)
        return f"{ours:.3f} against {random:.3f}", ours >= 2 * random

    def passes(arm: str) -> Callable[[], tuple[str, bool]]:
        def measure() -> tuple[str, bool]:
            ours, theirs = _mean(r, arm, watching), _mean(r, "d6_icm", watching)
            walked, before = _mean(r, arm, tiles), _mean(r, "d6_icm", tiles)
            shown = f"{ours:.3f} against {theirs:.3f}, {walked:.1f} tiles against {before:.1f}"
            return shown, ours <= theirs / 2 and walked > before

        return measure

    required = "half of ICM's switching, more tiles"
    return [
        r.claim("D6: ICM watches a television that it can switch", "twice the random policy's share", watches),
        *(r.claim(f"D6: {what} passes it", required, passes(arm)) for arm, what in (
            ("d6_disagreement", "disagreement"), ("d6_e3b", "episodic novelty (E3B)"),
            ("d6_reachability", "the reachability memory"))),
    ]  # fmt: skip


def platformer(r: Results) -> list[Claim]:
    def farther(kind: str) -> Callable[[], tuple[str, bool]]:
        def measure() -> tuple[str, bool]:
            random = _mean(r, "d7_random", f"{kind}: distance")
            ours, blind = (_mean(r, "d7_icm", f"{kind}: {who}distance") for who in ("", "blind: "))
            return f"{ours:.1f} tiles, random {random:.1f}, blind {blind:.1f}", ours >= 1.5 * random and ours > blind

        return measure

    def finetuned() -> tuple[float, float, float]:
        return (
            _mean(r, "d7_finetuned", "night: distance"),
            _mean(r, "d7_icm", "night: distance"),
            _mean(r, "d7_scratch", "night: distance"),
        )

    def better() -> tuple[str, bool]:
        ours, as_is, scratch = finetuned()
        return f"{ours:.1f} tiles, as it is {as_is:.1f}, scratch {scratch:.1f}", ours > max(as_is, scratch)

    required = "1.5x random, more than blind"
    return [
        r.claim("D7: ICM without reward runs on its own levels", required, farther("train")),
        r.claim("D7: ... and on levels never seen", required, farther("test")),
        r.claim("D7: fine-tuned by curiosity alone on those levels at night", "more than as it is, and than scratch",
                better),
    ]  # fmt: skip


def _mean(r: Results, arm: str, metric: str) -> float:
    """Over three seeds or more; the profile `quick`, which is a look, has one."""
    return float(np.mean(_enough(np.array(r.values(arm, metric)), 1 if r.profile == "quick" else 3)))


def _enough(values: np.ndarray, seeds: int = 3) -> np.ndarray:
    """The values of the seeds, if there are as many as the claim asks for."""
    if len(values) < seeds:
        raise NotRun(f"{_listed(values)} in {len(values)} of {seeds} seeds so far")
    return values


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
