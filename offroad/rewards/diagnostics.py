"""What a bonus pays for: questions to ask before and during hours of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.rewards.features import InverseModel
from offroad.rewards.intrinsic import IntrinsicReward, Sum


def inverse_skill(
    model: InverseModel, before: Float[Any, "batch size"], after: Float[Any, "batch size"], action: Any
) -> dict[str, float]:
    """Does the inverse model see the actions, or does it merely know the policy's habits?

    `before` and `after` are features. **Returns:** `accuracy`, and `chance`, the accuracy of always guessing the
    commonest action; for discrete actions also `loss` in nats and `entropy`, that of the action frequencies: the loss
    of a model that sees nothing. A model whose loss is not below the entropy sees nothing; one whose loss is may still
    read the action off `before` alone, if the policy decides by what it sees. As a policy grows deterministic both go
    to 0, and the features decay.
    """
    weight = jnp.ones(len(jnp.asarray(before)))
    _, found = model.loss(jnp.asarray(before), jnp.asarray(after), action, weight)
    skill = {"accuracy": float(found["inverse_accuracy"]), "chance": float(found["inverse_chance"])}
    if not model.log_std.size:
        frequency = np.asarray(model.action(action), float).mean(0)
        seen = frequency[frequency > 0]
        skill |= {"loss": float(found["inverse_loss"]), "entropy": float(-(seen * np.log(seen)).sum())}
    return skill


def feature_rank(features: Float[Any, "batch size"]) -> float:
    """How many directions hold the features' variance: e to the entropy of its shares (Roy and Vetterli 2007).

    1 where all lie on a line, `size` where all directions are equal; NaN where they do not vary. A few directions are
    too few to tell places apart.
    """
    centred = np.asarray(features, float)
    centred = centred - centred.mean(0)
    share = np.square(np.linalg.svd(centred, compute_uv=False))
    if share.sum() == 0:
        return float("nan")
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def bonus_map(
    positions: Float[Any, "*batch 2"],
    bonus: Float[Any, "*batch"],
    low: tuple[float | int, float | int],
    high: tuple[float | int, float | int],
    cell: float | int,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]]:
    """Where the bonus is paid: its mean in square cells of side `cell` between `low` and `high`, (x, y) each.

    A noisy wall shows at a glance. **Returns:** the mean bonus (NaN where nobody was) and the number of visits; row 0
    is at the lowest y. Positions outside the bounds are left out.
    """
    if cell <= 0 or not all(a < b for a, b in zip(low, high)):
        raise OffroadError(f"a map from {low} to {high} with cells of {cell} is empty; give low < high and a cell > 0")
    x, y = np.asarray(positions, float).reshape(-1, 2).T
    edges = [np.arange(a, b + cell, cell) for a, b in zip(low, high)]
    visits, _, _ = np.histogram2d(y, x, bins=(edges[1], edges[0]))
    total, _, _ = np.histogram2d(y, x, bins=(edges[1], edges[0]), weights=np.asarray(bonus, float).ravel())
    return np.where(visits > 0, total / np.maximum(visits, 1), np.nan), visits


def rank_on_episodes(
    rewards: Mapping[str, IntrinsicReward | Sum],
    episodes: Mapping[str, Sequence[Transition]],
    key: Key[Array, ""] | None = None,
) -> dict[str, dict[str, float]]:
    """Which policy would a bonus breed? The intrinsic return per episode of recorded episodes, in seconds.

    `episodes` are those of a few policies by name (say "explorer", "circling", "spinning" and, first of all,
    "random"), each a `Transition` with leaves `[length, ...]`. **Returns:** for every reward by how much each policy's
    mean return is above that of the first one, in standard deviations of the returns of all episodes: whatever their
    sign and scale, what stands higher is paid more. All are 0 where all episodes are paid alike. A bonus that pays
    circling or spinning more than travelling will breed just that. Rewards are used as they are: fit them first, on
    other episodes. Policies whose episodes are longer earn more; compare episodes of one length.
    """
    key = jax.random.key(0) if key is None else key
    appraise = jax.jit(lambda reward, steps, mask, key: reward.appraise(steps, mask, key))
    table: dict[str, dict[str, float]] = {}
    for name, reward in rewards.items():
        returns = {}
        for policy, recorded in episodes.items():
            steps, mask = _side_by_side(recorded, policy)
            returns[policy] = np.asarray(appraise(reward.begin(len(recorded)), steps, mask, key), float).sum(0)
        first, deviation = next(iter(returns.values())).mean(), np.concatenate(list(returns.values())).std()
        table[name] = {
            policy: float((found.mean() - first) / deviation) if deviation else 0.0 for policy, found in returns.items()
        }
    return table


def _side_by_side(recorded: Sequence[Transition], policy: str) -> tuple[Transition, Bool[np.ndarray, "T N"]]:
    """Episodes as a rollout, one world each, filled up with masked steps."""
    if not recorded:
        raise OffroadError(f"there are no episodes of {policy!r}; record at least one")
    longest = max(len(episode.reward) for episode in recorded)

    def fill(*parts: np.ndarray) -> np.ndarray:
        whole = np.zeros((longest, len(parts), *parts[0].shape[1:]), parts[0].dtype)
        for world, part in enumerate(parts):
            whole[: len(part), world] = part
        return whole

    lengths = np.array([len(episode.reward) for episode in recorded])
    steps = jax.tree.map(lambda *x: fill(*map(np.asarray, x)), *recorded)
    return steps, np.arange(longest)[:, None] < lengths
