"""What a profile may spend, and what the runs have in common: networks, bonuses, learners."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from gymnasium.vector import VectorEnv

from offroad.agents import PPO, PPOConfig
from offroad.data.spaces import Spaces
from offroad.nets.encoder import Flat, Pixels
from offroad.nets.relational import EncoderConfig
from offroad.rewards import (
    E3B,
    ICM,
    PATCHES,
    RND,
    Curious,
    Disagreement,
    DisagreementConfig,
    E3BConfig,
    ICMConfig,
    IntrinsicReward,
    Reachability,
    ReachabilityConfig,
    RNDConfig,
)
from offroad.studies.study import Budget, NotRun
from offroad.train.collect import HostCollector, Rollout

EXAM_SEED = 5_000_000  # of the evaluation, apart from all training seeds and from those of the pilots
ROLLOUT = 128  # decisions of each world between updates
STARTS = (26, 24, 18, 10, 15)  # D2: start spots, from near to far; the last two are the paper's
WARM_UP = 9  # updates at first in which only the bonus learns, from random actions: those that freeze an embedding


@dataclass(frozen=True, kw_only=True)
class CuriosityBudget(Budget):
    """Decisions are those of one run, over all of its worlds; 0 leaves a demonstration out."""

    worlds: int
    ablation_seeds: int  # of the arms that no claim needs more of
    coverage: int  # D1 and D4: decisions without any reward in the maze
    recurrent: int  # D1: decisions of ICM with a recurrent policy and the paper's actions
    ladder: int  # D2, D3 and D4: decisions with sparse reward in the maze
    noise_start: int = 26  # D3
    transfer_start: int = 26  # D4
    balance: int  # D5: decisions in MiniGrid
    television: int  # D6
    platformer: int  # D7
    episodes: int  # of each exam


def require(decisions: int, extra: str | None = None, module: str = "") -> None:
    """Leaves the arm out where the profile has no budget for it, or where what it needs is not installed."""
    if not decisions:
        raise NotRun("this profile has no budget for it")
    if extra and find_spec(module) is None:
        raise NotRun(f"{module} is missing: pip install 'offroad[{extra}]'")


@dataclass(frozen=True)
class Eyes:
    """How images are seen by policy and bonus, and how often the bonus goes over a rollout."""

    encoder: EncoderConfig
    frames: int  # of a stack, that the bonus sees; 0: all
    epochs: int


CAMERA = Eyes(PATCHES, 1, 1)
GRID = Eyes(Flat(Pixels(channels=(16, 32), kernels=(3, 3), strides=(1, 1), size=128)), 0, 4)

BONUSES: Mapping[str, tuple[type[IntrinsicReward], Any]] = {
    "icm": (ICM, ICMConfig()),
    "icm_pixels": (ICM, ICMConfig(features="pixels")),
    "icm_random": (ICM, ICMConfig(features="random")),
    "rnd": (RND, RNDConfig()),
    "disagreement": (Disagreement, DisagreementConfig()),
    "e3b": (E3B, E3BConfig(logarithm=True)),
    "reachability": (Reachability, ReachabilityConfig()),
}


def bonus(name: str, env: VectorEnv, eyes: Eyes, seed: int) -> IntrinsicReward:
    kind, config = BONUSES[name]
    fitting = replace(config.fitting, epochs=eyes.epochs)
    seen = replace(config, encoder=eyes.encoder, frames=eyes.frames, fitting=fitting)
    reward = kind.create(Spaces.of(env), seen, jax.random.fold_in(jax.random.key(seed), 1))
    if isinstance(reward, Reachability):
        # At once: an embedding that sees one rollout after another forgets the first, and tells places apart less well.
        rollouts = random_rollouts(env, eyes, seed)
        steps, mask = jax.tree.map(lambda *x: np.concatenate(x), *((now.transitions, now.mask) for now in rollouts))
        reward, _ = reward.fit(steps, mask, jax.random.fold_in(jax.random.key(seed), 2))
    return reward


def random_rollouts(env: VectorEnv, eyes: Eyes, seed: int) -> list[Rollout]:
    """As many steps of random actions as bonuses learn from before a policy does."""
    collector, rng = HostCollector(env), np.random.default_rng(seed)
    actor = ppo(env, eyes, seed)  # is never asked
    collector.reset(actor, seed)
    return [collector.collect(actor, None, ROLLOUT, rng)[0] for _ in range(WARM_UP)]


def ppo_config(env: VectorEnv, eyes: Eyes, **changes: Any) -> PPOConfig:
    """The learner of all arms."""
    common = PPOConfig(
        rollout=ROLLOUT,
        epochs=3,
        minibatch=max(ROLLOUT * env.num_envs // 4, ROLLOUT),
        learning_rate=4e-4,
        entropy=0.01,
        hidden=(128,),
        encoder=eyes.encoder,
    )
    return replace(common, **changes)


def ppo(env: VectorEnv, eyes: Eyes, seed: int, **changes: Any) -> PPO:
    return PPO.create(Spaces.of(env), ppo_config(env, eyes, **changes), jax.random.key(seed))


def curious(
    name: str, env: VectorEnv, eyes: Eyes, seed: int, extrinsic: float, intrinsic: float = 1.0, **changes: Any
) -> Curious:
    """PPO with the bonus of that name; `changes` are of PPO's config."""
    return Curious(  # pyright: ignore[reportCallIssue]  (spaces and config are properties)
        agent=ppo(env, eyes, seed, **changes),
        reward=bonus(name, env, eyes, seed),
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        warm_up=WARM_UP,
    )
