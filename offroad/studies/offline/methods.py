"""What each method is trained with, and its training. Flat methods choose every action, the others primitives."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from offroad import train
from offroad.agents import (
    BC,
    BEAR,
    CQL,
    IQL,
    SAC,
    TD3BC,
    Agent,
    BCConfig,
    BEARConfig,
    CQLConfig,
    EMaQ,
    EMaQConfig,
    IQLConfig,
    ReBRAC,
    ReBRACConfig,
    SACConfig,
    TD3BCConfig,
)
from offroad.skills import Primitives, PrimitivesConfig
from offroad.studies.offline.domains import Domain, OfflineBudget, data, shifted, spaces_of
from offroad.studies.study import Context

CHECKPOINT = 5_000  # updates


@dataclass(frozen=True)
class Method:
    """An agent, its settings, and what it learns from: rewards `scale * reward + shift`, of the best episodes."""

    agent: Any
    config: Any
    scale: float = 1.0
    shift: float = 0.0
    top: float = 1.0  # share of the episodes


# Layers are two of 256 and a batch has 256 rows, for the sake of two cores. Values travel one step in as many updates
# as the targets need to follow, so these follow four times as fast as is usual, and rates are higher.
RATE = {"learning_rate": 1e-3, "polyak": 0.02, "normalise_observation": True}
RATES = {"critic_learning_rate": 1e-3, "policy_learning_rate": 1e-3, "polyak": 0.02, "normalise_observation": True}
LEAN_CQL = CQLConfig(
    hidden=(256, 256), layer_norm=True, weight=4.0, samples=4, conservative_states=64, gap_minimum=-200.0, **RATES
)

# Sparse rewards are shifted as others found necessary in D4RL's ant mazes: 10 r - 5 for CQL, r - 1 for IQL.
# ReBRAC has r - 1 from pilots.
MAZES = {
    "bc": Method(BC, BCConfig(normalise_observation=True)),
    "bc_top": Method(BC, BCConfig(normalise_observation=True), top=0.1),
    "naive": Method(SAC, SACConfig(**RATE), scale=10.0, shift=-5.0),
    "bear": Method(BEAR, BEARConfig(**RATES), scale=10.0, shift=-5.0),
    "emaq": Method(EMaQ, EMaQConfig(samples=10, layer_norm=True, **RATE), scale=10.0, shift=-5.0),
    "td3_bc": Method(TD3BC, TD3BCConfig(**RATE), shift=-1.0),
    "cql": Method(CQL, LEAN_CQL, scale=10.0, shift=-5.0),
    "iql": Method(IQL, IQLConfig(expectile=0.9, inverse_temperature=10.0, **RATE), shift=-1.0),
    "rebrac": Method(ReBRAC, ReBRACConfig(batch=256, hidden=(256, 256), policy_penalty=0.01, **RATES), shift=-1.0),
}


def changed(method: Method, **changes: Any) -> Method:
    return replace(method, config=replace(method.config, **changes))


# In point mazes two numbers tell everything, so smaller networks do.
POINTS = {name: changed(method, hidden=(128, 128)) for name, method in MAZES.items()}
POINTS["rebrac"] = changed(POINTS["rebrac"], policy_penalty=0.012)
POINTS["bear"] = changed(POINTS["bear"], layer_norm=True)
# Ants are about 500 steps from the goal, of which a discount of 0.99 leaves little. CQL and IQL were tried with both;
# IQL did better with 0.99.
ANTS = {
    name: method if name in ("bc", "bc_top", "iql") else changed(method, discount=0.997)
    for name, method in MAZES.items()
}
ANTS["bear"] = changed(ANTS["bear"], layer_norm=True)
# Rewards of these are dense and stay as they are.
DENSE = {
    "bc": MAZES["bc"],
    "bc_top": MAZES["bc_top"],
    "naive": Method(SAC, SACConfig(**RATE)),
    "bear": Method(BEAR, BEARConfig(**RATES)),
    "emaq": Method(EMaQ, EMaQConfig(samples=10, layer_norm=True, **RATE)),
    "td3_bc": Method(TD3BC, TD3BCConfig(**RATE)),
    "cql": Method(CQL, LEAN_CQL),
    "iql": Method(IQL, IQLConfig(**RATE)),
    "rebrac": Method(
        ReBRAC, ReBRACConfig(batch=256, hidden=(256, 256), policy_penalty=0.1, critic_penalty=0.1, **RATES)
    ),
}
# The rates of the authors and the weights are from pilots: with the mazes' rates the critics of SAC, BEAR and TD3+BC
# diverged, CQL's were far off.
KITCHENS = {
    **DENSE,
    "naive": Method(SAC, SACConfig(normalise_observation=True)),
    "bear": Method(BEAR, BEARConfig(layer_norm=True, normalise_observation=True)),
    "td3_bc": Method(TD3BC, TD3BCConfig(alpha=0.4)),
    "cql": changed(DENSE["cql"], weight=0.5, critic_learning_rate=3e-4, policy_learning_rate=1e-4, polyak=0.005),
    "iql": changed(DENSE["iql"], expectile=0.7, inverse_temperature=0.5, dropout=0.1),
}
# Rewards are -16 a step at worst.
PENDULUM = {
    name: changed(replace(method, scale=0.1), hidden=(128, 128))
    for name, method in {**DENSE, "cql": changed(DENSE["cql"], weight=1.0, gap_minimum=None)}.items()
}

LATENT_DISCOUNT = 0.99
"""Of agents over primitives, for each primitive."""


def settings(method: str, domain: Domain) -> Method:
    return {"pointmaze": POINTS, "antmaze": ANTS, "kitchen": KITCHENS, "pendulum": PENDULUM}[domain.kind][method]


def flat(method: str, domain: Domain, seed: int, budget: OfflineBudget, context: Context) -> Agent:
    """An agent that chooses every action, trained on the domain's data; goes on where it was interrupted."""
    setting, dataset = settings(method, domain), data(domain, budget, context)
    if setting.top < 1:
        dataset = dataset.top(setting.top)
    agent = setting.agent.create(spaces_of(domain), setting.config, jax.random.key(seed))
    shifted_data = shifted(dataset, setting.scale, setting.shift)
    return trained(agent, shifted_data, budget.updates, f"{domain.name}_{seed}", seed, context)


def by_primitives(method: str, domain: Domain, seed: int, budget: OfflineBudget, context: Context) -> Agent:
    """The same method on top of primitives, one every ten steps, with the same settings but for the discount."""
    setting, dataset = settings(method, domain), data(domain, budget, context)
    primitives = context.once(f"primitives {domain.name} {seed}", lambda: primitives_of(domain, seed, budget, context))
    config = replace(setting.config, discount=LATENT_DISCOUNT)
    above = setting.agent.create(primitives.latent_spaces, config, jax.random.key(seed))
    relabelled = primitives.relabel(dataset, LATENT_DISCOUNT ** (1 / primitives.config.length))
    relabelled = shifted(relabelled, setting.scale, setting.shift)
    return trained(primitives.wrap(above), relabelled, budget.latent_updates, f"{domain.name}_{seed}", seed, context)


def primitives_of(domain: Domain, seed: int, budget: OfflineBudget, context: Context) -> Primitives:
    """OPAL's autoencoder, trained and finetuned on the domain's data."""
    dataset, folder = data(domain, budget, context), f"primitives_{domain.name}_{seed}"
    primitives = Primitives.create(spaces_of(domain), PrimitivesConfig(), jax.random.key(seed))
    windows = primitives.windows(dataset)
    primitives = trained(primitives, windows, budget.primitive_updates, folder, seed, context)
    frozen = primitives.freeze(dataset, jax.random.key(seed))
    return trained(frozen, windows, budget.primitive_updates // 4, f"{folder}_finetuned", seed, context)


def trained(learner: Any, dataset: Any, updates: int, name: str, seed: int, context: Context) -> Any:
    def report(metrics: dict[str, Any]) -> None:
        context.progress(name, metrics["step"] / updates)

    return (
        train.offline(
            learner,
            dataset,
            updates,
            seed=seed,
            out=context.folder / name,
            resume=True,
            schedule=train.Schedule(checkpoint=CHECKPOINT, log=1000),
            progress=False,
            callback=report,
        )
        .complete()
        .agent
    )
