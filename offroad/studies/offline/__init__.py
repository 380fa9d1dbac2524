"""Learning from data that exist: the table of the talk, with and without primitives."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from offroad.report.statistics import proportion
from offroad.studies.offline.domains import DOMAINS, OfflineBudget, examine, initial_value
from offroad.studies.offline.methods import by_primitives, flat, settings
from offroad.studies.offline.online_maze import online, online_opal
from offroad.studies.offline.pictures import scores
from offroad.studies.study import Arm, Claim, Context, Metrics, NotRun, Published, Results, Study

OPAL = "Ajay et al. 2021, arXiv 2010.13611, as quoted in the talk"

METHODS = {
    "bc": "Behaviour cloning.",
    "bc_top": "Behaviour cloning of the tenth of the episodes with the highest returns.",
    "naive": "SAC on the data as if they were a replay: nothing holds its policy to what the data show.",
    "bear": "BEAR: a policy held to the data's actions by their maximum mean discrepancy.",
    "emaq": "EMaQ: the best of ten actions of a model of the behaviour.",
    "td3_bc": "TD3+BC.",
    "cql": "Conservative Q-learning, lean.",
    "iql": "Implicit Q-learning.",
    "rebrac": "ReBRAC.",
    "cql_opal": "The same conservative Q-learning over primitives of ten steps (OPAL).",
    "iql_opal": "The same implicit Q-learning over primitives of ten steps.",
}
HEADLINE = ("cql", "iql", "rebrac", "cql_opal")


def arm_of(method: str) -> Arm:
    def arm(seeds: list[int], budget: OfflineBudget, context: Context) -> Metrics:
        if method not in HEADLINE:
            context.seeds = seeds[: budget.ablation_seeds]
        rows = [measured(method, seed, budget, context) for seed in context.each(context.seeds)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    arm.__name__, arm.__doc__ = method, METHODS[method]
    return arm


def measured(method: str, seed: int, budget: OfflineBudget, context: Context) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in context.each(budget.domains):
        domain = DOMAINS[name]
        if method.endswith("_opal"):
            if domain.kind == "pendulum":
                raise NotRun("the pendulum's horizon is short; it is learnt without primitives")
            agent = by_primitives(method.removesuffix("_opal"), domain, seed, budget, context)
        else:
            agent = flat(method, domain, seed, budget, context)
        result, closest = examine(agent, domain, budget.episodes, seed)
        found[f"{name}: score"] = domain.score(result.returns)
        if closest is not None:
            found[f"{name}: within 2 m of the goal"] = 100 * float((closest < 2).mean())
        if method in ("naive", "cql") and domain.is_maze:
            setting = settings(method, domain)
            discount = setting.config.discount
            told = setting.scale * result.returns * discount ** (result.lengths - 1)
            told += setting.shift * (1 - discount**result.lengths) / (1 - discount)
            found[f"{name}: over-estimate"] = initial_value(agent, domain, budget.episodes, seed) - float(told.mean())
    return found


def verdict(r: Results) -> list[Claim]:
    domains, episodes = r.config["domains"], r.config["episodes"]

    def score(arm: str, domain: str) -> float:
        return float(np.mean(r.values(arm, f"{domain}: score")))

    def shown(arm: str, domain: str) -> str:
        """The mean and each seed's score, which differ by more than episodes do; of one seed the interval over its
        episodes."""
        runs = r.values(arm, f"{domain}: score")
        if len(runs) > 1:
            return f"{np.mean(runs):.1f} ({', '.join(f'{run:.0f}' for run in runs)})"
        if not DOMAINS[domain].is_maze:
            return f"{runs[0]:.1f} (1 seed)"
        value, low, high = (round(100 * x) for x in proportion(runs[0] / 100, episodes)[:3])
        return f"{value} [{low}, {high}] ({episodes} episodes of 1 seed)"

    def bound(
        what: str, arm: str, domain: str, least: float | int | None = None, most: float | int | None = None
    ) -> Claim:
        required = f"at least {least}" if least is not None else f"at most {most}"

        def measure() -> tuple[str, bool]:
            value = score(arm, domain)
            return shown(arm, domain), value >= least if least is not None else value <= (most or 0)

        return r.claim(f"{domain}: {what}", required, measure)

    def compare(what: str, domain: str, required: str, holds: Callable[[float, float], bool]) -> Claim:
        def measure() -> tuple[str, bool]:
            found = f"{shown('cql_opal', domain)} against {shown('cql', domain)}"
            return found, holds(score("cql_opal", domain), score("cql", domain))

        return r.claim(f"{domain}: {what}", required, measure)

    def better_than_cloning(arm: str) -> Claim:
        def measure() -> tuple[str, bool]:
            found = f"{shown(arm, 'pendulum')} against {shown('bc', 'pendulum')}"
            return found, score(arm, "pendulum") >= score("bc", "pendulum") + 20

        return r.claim(f"pendulum: {arm} is better than cloning", "20 points more", measure)

    def over_estimates(domain: str) -> Claim:
        def measure() -> tuple[str, bool]:
            naive, cql = (float(np.mean(r.values(arm, f"{domain}: over-estimate"))) for arm in ("naive", "cql"))
            return f"{naive:.1f} against {cql:.1f}", naive > 10 * max(cql, 1.0)

        return r.claim(
            f"{domain}: naive off-policy learning over-estimates", "10 times conservative Q-learning's", measure
        )

    claims = []
    for name in (name for name in domains if name.startswith("pointmaze")):
        claims += [bound(f"{arm} succeeds", arm, name, least=70) for arm in ("cql", "iql", "rebrac")]
        claims += [bound("naive off-policy SAC fails", "naive", name, most=20), over_estimates(name)]
        claims += [bound(f"{arm} is right where the horizon is short", arm, name, least=50) for arm in ("bear", "emaq")]
        claims.append(bound("over primitives, a sparse reward is found online", "online_opal", "pointmaze-umaze", 70))
        claims.append(bound("without them it is not", "online", "pointmaze-umaze", most=20))
    for name, least in (("antmaze-medium", 70), ("antmaze-large", 45)):
        if name not in domains:
            continue
        claims += [bound(f"{arm} fails", arm, name, most=15) for arm in ("bc", "bear", "emaq", "naive")]
        claims.append(over_estimates(name))
        claims.append(bound("primitives and conservative Q-learning", "cql_opal", name, least=least))
        if name == "antmaze-medium":
            claims.append(compare("primitives help", name, "10 points more", lambda a, b: a >= b + 10))
        else:
            claims.append(compare("primitives help", name, "twice as much", lambda a, b: a >= 2 * b))
    if "pendulum" in domains:
        claims += [better_than_cloning(arm) for arm in ("bear", "emaq", "iql", "rebrac", "cql")]
    for name in (name for name in domains if name.startswith("kitchen")):
        claims.append(compare("primitives help", name, "more", lambda a, b: a > b))
    return claims


def budget_of(domain: str, *, minutes: int, **changes: int) -> OfflineBudget:
    """What two cores can bear: each training is shorter than an hour."""
    budget = OfflineBudget(
        seeds=3, minutes=minutes, domains=(domain,), rows=1_000_000, updates=60_000, latent_updates=40_000,
        primitive_updates=10_000, ablation_seeds=1, episodes=100,
    )  # fmt: skip
    return replace(budget, **changes)


def published(domain: str, **rows: float) -> tuple[Published, ...]:
    return tuple(Published(f"{domain}, {method}", value, "", OPAL) for method, value in rows.items())


STUDY = Study(
    name="offline",
    title="Learning from data that exist",
    claim=(
        "From a fixed log, naive Q-learning over-estimates what the log does not show and fails; conservative "
        "learning does not. Over long horizons, learning over primitives that are learnt from the log is better still."
    ),
    source="Kumar et al. 2020, arXiv 2006.04779; Ajay et al. 2021, arXiv 2010.13611",
    published=(
        *published("antmaze medium-diverse", bc=0.0, bear=8.0, emaq=0.0, cql=53.7, cql_opal=81.1),
        *published("antmaze large-diverse", bc=0.0, bear=0.0, emaq=0.0, cql=14.9, cql_opal=70.3),
        *published("kitchen mixed", bc=47.5, bear=47.2, emaq=70.8, cql=52.4, cql_opal=69.3),
        *published("kitchen partial", bc=33.8, bear=13.1, emaq=74.6, cql=50.1, cql_opal=80.2),
    ),
    arms={**{method: arm_of(method) for method in METHODS}, "online": online, "online_opal": online_opal},
    shares={"bc": 0.3, "bc_top": 0.3, "cql": 4, "iql": 3, "rebrac": 3, "cql_opal": 6},
    profiles={
        "quick": budget_of(
            "pointmaze-medium", minutes=30, seeds=1, ablation_seeds=3, primitive_updates=6_000
        ),
        "medium": budget_of("antmaze-medium", minutes=300),
        "large": budget_of("antmaze-large", minutes=300),
        "kitchen-partial": budget_of("kitchen-partial", minutes=200, updates=30_000, latent_updates=20_000),
        "kitchen-mixed": budget_of("kitchen-mixed", minutes=200, updates=30_000, latent_updates=20_000),
        "pendulum": budget_of("pendulum", minutes=60, updates=10_000, ablation_seeds=3),
        "paper": OfflineBudget(
            seeds=5, minutes=6000, domains=("antmaze-medium", "antmaze-large", "kitchen-mixed", "kitchen-partial"),
            rows=1_000_000, updates=1_000_000, latent_updates=1_000_000, primitive_updates=100_000, ablation_seeds=5,
            episodes=100,
        ),
    },
    verdict=verdict,
    figures=tuple(scores(name) for name in DOMAINS),
)  # fmt: skip
