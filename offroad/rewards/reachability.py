"""Episodic curiosity through reachability (Savinov et al. 2018, arXiv 1810.02274).

An episode remembers places, and pays for a place that is far, in steps, from all of them. What "far" means is learnt
from pairs of observations of the same episode, before the policy learns, and then *frozen*: a policy that is paid by an
embedding that still learns may find out how to move the embedding instead of itself.

- "comparator" is the paper's: a network is trained to tell pairs within `window` steps from pairs farther apart than
  `gap` windows; the bonus is `offset` minus the 90th percentile of its answers over the memory, and places whose bonus
  is positive are remembered.
- "contrastive" is ours: an InfoNCE embedding (van den Oord et al. 2018, arXiv 1807.03748), centred and scaled to
  length 1. The bonus is 1 for a place whose cosine with every remembered one is below `threshold`, which is then
  remembered too, and 0 otherwise. One matrix product instead of a network for every pair.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import unknown
from offroad.nets.mlp import MLP
from offroad.nets.relational import EncoderConfig
from offroad.rewards.features import PATCHES, Features, View
from offroad.rewards.intrinsic import BonusScale, Fitting, IntrinsicReward, Scaling, weighted_mean
from offroad.rewards.memory import EpisodeMemory, walk

KINDS = ("contrastive", "comparator")


@dataclass(frozen=True)
class ReachabilityConfig:
    kind: str = "contrastive"  # or "comparator"
    fit_updates: int = 9  # updates that teach the embedding, after which it is frozen; until then the bonus is 0
    batches: int = 72  # gradient steps in each of them, on `fitting.minibatch` pairs
    window: int = 8  # pairs at most so many steps apart are neighbours
    threshold: float = 0.3  # contrastive: a cosine below it is a new place
    temperature: float = 0.1  # contrastive: of InfoNCE
    gap: int = 5  # comparator: strangers are more than gap x window steps apart
    offset: float = 0.5  # comparator: beta, the similarity at which the bonus is 0
    capacity: int = 256  # places remembered in one episode; then a random one makes room
    size: int = 64  # of the embedding
    hidden: tuple[int, ...] = (256,)
    encoder: EncoderConfig = PATCHES
    frames: int = 0  # how many of the newest frames of an image stack are seen; 0: all
    fitting: Fitting = field(default_factory=Fitting)
    scaling: Scaling = field(default_factory=Scaling)


class Places(eqx.Module):
    """The places that `N` episodes remember: the first `count` slots."""

    slots: Float[Array, "N capacity size"]
    count: Int[Array, " N"]


class Embedding(eqx.Module):
    """`comparator` only in the reward of that kind."""

    features: Features
    comparator: MLP | None


class Reachability(IntrinsicReward):
    """Pays for places that are far, in steps, from all that this episode's memory holds."""

    model: Embedding
    centre: Float[Array, " size"]  # mean embedding of what it was fitted to
    optimiser_state: PyTree[Array]
    fitted: Int[Array, ""]  # updates so far, up to `fit_updates`
    view: View
    memory: EpisodeMemory
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: ReachabilityConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: ReachabilityConfig, key: Key[Array, ""]) -> "Reachability":
        if config.kind not in KINDS:
            raise unknown("kind of reachability", config.kind, KINDS)
        features_key, comparator_key = jax.random.split(key)
        view = View.create(spaces, config.frames)
        comparator = None
        if config.kind == "comparator":
            comparator = MLP((2 * config.size, *config.hidden, 1), key=comparator_key, activation="relu")
        features = Features.create(view.space, config.encoder, config.hidden, config.size, features_key)
        model = Embedding(features, comparator)
        return cls(
            model=model,
            centre=jnp.zeros(config.size),
            optimiser_state=config.fitting.optimiser().init(model),  # pyright: ignore[reportArgumentType]
            fitted=jnp.zeros((), jnp.int32),
            view=view,
            memory=_initial(config, spaces.num_envs),
            scale=BonusScale.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )

    def initial_memory(self, num_envs: int) -> EpisodeMemory:
        return _initial(self.config, num_envs)

    @property
    def frozen(self) -> Bool[Array, ""]:
        return self.fitted >= self.config.fit_updates

    def embed(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        """The embedding of observations with any leading axes, as places are remembered."""
        z = self._raw(self.model, observation)
        return _unit(z - self.centre) if self.config.kind == "contrastive" else z

    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], EpisodeMemory]:
        def visit(places: Places, now: Array, t: Array) -> tuple[Array, Places]:
            bonus = self._novelty(places, now)
            return bonus, _remember(places, now, bonus > 0, jax.random.fold_in(key, t))

        before, after = self.embed(steps.observation), self.embed(steps.next_observation)
        empty = self.initial_memory(mask.shape[1])
        bonus, memory = walk(self.memory, empty.content, before, after, steps, mask, visit)
        # An embedding that still learns must not be paid for, nor its places be kept.
        kept = jax.tree.map(lambda new, old: jnp.where(self.frozen, new, old), memory.content, empty.content)
        return jnp.where(self.frozen, bonus, 0.0), EpisodeMemory(kept, memory.fresh)

    def _novelty(self, places: Places, now: Float[Array, "N size"]) -> Float[Array, " N"]:
        config = self.config
        valid = jnp.arange(config.capacity) < places.count[:, None]
        if self.model.comparator is None:
            cosine = jnp.where(valid, jnp.einsum("nks,ns->nk", places.slots, now), -1.0)
            return (jnp.max(cosine, -1) < config.threshold).astype(jnp.float32)
        both = jnp.concatenate([places.slots, jnp.broadcast_to(now[:, None], places.slots.shape)], -1)
        near = jax.nn.sigmoid(self.model.comparator(both)[..., 0])
        percentile = jnp.nanquantile(jnp.where(valid, near, jnp.nan), 0.9, axis=-1)
        return config.offset - jnp.where(places.count > 0, percentile, 0.0)

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["Reachability", dict[str, Float[Array, ""]]]:
        """Teaches the embedding for the first `fit_updates` updates and does nothing from then on."""
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))

        def learn(_: None) -> tuple[Reachability, Float[Array, ""]]:
            return self._learn(steps, mask, key, self.config.batches)

        learnt, loss = jax.lax.cond(self.frozen, lambda _: (self, jnp.zeros(())), learn, None)
        return learnt, {"embedding_loss": loss, "frozen": self.frozen.astype(jnp.float32)}

    def fit(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""], batches: int | None = None
    ) -> tuple["Reachability", Float[Array, ""]]:
        """Teaches the embedding on recorded steps of a random policy and freezes it.

        Without `batches` it learns from as many as all of its `fit_updates` would have had.

        **Returns:** the frozen reward, and the mean loss over all batches.
        """
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        batches = self.config.fit_updates * self.config.batches if batches is None else batches
        learnt, loss = jax.jit(Reachability._learn, static_argnums=4)(self, steps, mask, key, batches)
        return replace(learnt, fitted=jnp.asarray(self.config.fit_updates, jnp.int32)), loss

    def _learn(
        self, steps: Transition, mask: Array, key: Key[Array, ""], batches: int
    ) -> tuple["Reachability", Float[Array, ""]]:
        optimiser = self.config.fitting.optimiser()
        learner = replace(self, view=self.view.update(steps.observation, mask))
        ended = steps.terminated | steps.truncated | ~mask
        episode = jnp.concatenate([jnp.zeros_like(ended[:1], jnp.int32), jnp.cumsum(ended, 0)[:-1]])

        def step(carry: Any, key: Key[Array, ""]) -> tuple[Any, Float[Array, ""]]:
            model, state = carry
            loss, gradient = jax.value_and_grad(learner._loss)(model, steps, mask, episode, key)
            change, state = optimiser.update(gradient, state, model)
            return (eqx.apply_updates(model, change), state), loss

        carry = (self.model, self.optimiser_state)
        (model, state), losses = jax.lax.scan(step, carry, jax.random.split(key, batches))
        raw = learner._raw(model, steps.observation) * mask[..., None]
        centre = jnp.sum(raw, (0, 1)) / jnp.maximum(jnp.sum(mask), 1)
        fitted = jnp.minimum(self.fitted + 1, self.config.fit_updates)
        learnt = replace(learner, model=model, optimiser_state=state, centre=centre, fitted=fitted)
        return learnt, jnp.mean(losses)

    def _loss(self, model: Embedding, steps: Transition, mask: Array, episode: Array, key: Key[Array, ""]) -> Array:
        """Contrastive: which of the batch's partners is mine? Comparator: near or far?"""
        config = self.config
        world, first, second, valid, far = training_pairs(config, mask, episode, key)
        weight = valid.astype(jnp.float32)
        one, other = (
            self._raw(model, jax.tree.map(lambda x: x[t, world], steps.observation))  # noqa: B023
            for t in (first, second)
        )
        if model.comparator is not None:
            logit = model.comparator(jnp.concatenate([one, other], -1))[..., 0]
            loss = jax.nn.softplus(jnp.where(far, logit, -logit))
            # Both kinds count alike, however many of their pairs were valid.
            return (weighted_mean(loss, weight * ~far) + weighted_mean(loss, weight * far)) / 2
        logits = one @ other.T / config.temperature + jnp.where(weight > 0, 0.0, -1e9)
        return weighted_mean(-jnp.diagonal(jax.nn.log_softmax(logits)), weight)

    def _raw(self, model: Embedding, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        z = model.features(self.view(observation))
        return _unit(z) if self.config.kind == "contrastive" else z


def training_pairs(
    config: ReachabilityConfig, mask: Bool[Array, "T N"], episode: Int[Array, "T N"], key: Key[Array, ""]
) -> tuple[
    Int[Array, " pairs"], Int[Array, " pairs"], Int[Array, " pairs"], Bool[Array, " pairs"], Bool[Array, " pairs"]
]:
    """Pairs of steps of one episode, the earlier one first, as a memory is older than what is held against it.

    Neighbours are 1 to `window` steps apart. For the comparator half of the pairs are strangers, drawn over all of the
    episode that is more than `gap` windows away. None is of two episodes: these may well begin in one place.

    **Returns:** worlds, earlier and later times, which pairs are valid (two real steps, of one episode, as far apart as
    asked), and which are strangers.
    """
    (time, num_envs), pairs = mask.shape, config.fitting.minibatch
    keys = jax.random.split(key, 5)
    world = jax.random.randint(keys[0], (pairs,), 0, num_envs)
    one = jax.random.randint(keys[1], (pairs,), 0, time)
    near = one + jax.random.randint(keys[2], (pairs,), 1, config.window + 1)
    far = jax.random.bernoulli(keys[3], 0.5 if config.kind == "comparator" else 0.0, (pairs,))
    other = jnp.where(far, jax.random.randint(keys[4], (pairs,), 0, time), near)
    first, second = jnp.minimum(one, other), jnp.minimum(jnp.maximum(one, other), time - 1)
    apart = jnp.where(far, second - first > config.gap * config.window, near < time)
    valid = apart & (episode[first, world] == episode[second, world]) & mask[first, world] & mask[second, world]
    return world, first, second, valid, far


def _unit(x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def _remember(places: Places, now: Array, new: Bool[Array, " N"], key: Key[Array, ""]) -> Places:
    num_envs, capacity, _ = places.slots.shape
    random = jax.random.randint(key, (num_envs,), 0, capacity)
    slot = jnp.where(places.count < capacity, places.count, random)
    chosen = (jnp.arange(capacity) == slot[:, None]) & new[:, None]
    slots = jnp.where(chosen[..., None], now[:, None], places.slots)
    return Places(slots, jnp.minimum(places.count + new, capacity))


def _initial(config: ReachabilityConfig, num_envs: int) -> EpisodeMemory:
    slots = jnp.zeros((num_envs, config.capacity, config.size))
    return EpisodeMemory(Places(slots, jnp.zeros(num_envs, jnp.int32)), jnp.ones(num_envs, bool))
