"""Rewards that an agent makes for itself: for what is new to it."""

from offroad.rewards.balance import EIPO, EIPOConfig, TwoValuePPO, TwoValuePPOConfig
from offroad.rewards.counts import Counts, CountsConfig
from offroad.rewards.curious import Curious, CuriousConfig
from offroad.rewards.disagreement import Disagreement, DisagreementConfig
from offroad.rewards.e3b import E3B, E3BConfig
from offroad.rewards.env_wrapper import IntrinsicRewardEnv
from offroad.rewards.features import PATCHES
from offroad.rewards.icm import ICM, ICMConfig
from offroad.rewards.intrinsic import Fitting, IntrinsicReward, Scaling, Sum
from offroad.rewards.reachability import Reachability, ReachabilityConfig
from offroad.rewards.rnd import RND, RNDConfig

REWARDS = {
    "counts": (Counts, CountsConfig),
    "disagreement": (Disagreement, DisagreementConfig),
    "e3b": (E3B, E3BConfig),
    "icm": (ICM, ICMConfig),
    "reachability": (Reachability, ReachabilityConfig),
    "rnd": (RND, RNDConfig),
}

__all__ = [
    "E3B",
    "EIPO",
    "ICM",
    "PATCHES",
    "REWARDS",
    "RND",
    "Counts",
    "CountsConfig",
    "Curious",
    "CuriousConfig",
    "Disagreement",
    "DisagreementConfig",
    "E3BConfig",
    "EIPOConfig",
    "Fitting",
    "ICMConfig",
    "IntrinsicReward",
    "IntrinsicRewardEnv",
    "RNDConfig",
    "Reachability",
    "ReachabilityConfig",
    "Scaling",
    "Sum",
    "TwoValuePPO",
    "TwoValuePPOConfig",
]
