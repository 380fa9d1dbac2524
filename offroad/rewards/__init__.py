"""Rewards that an agent makes for itself: for what is new to it."""

from offroad.rewards.curious import Curious
from offroad.rewards.disagreement import Disagreement, DisagreementConfig
from offroad.rewards.features import PATCHES
from offroad.rewards.icm import ICM, ICMConfig
from offroad.rewards.intrinsic import Fitting, IntrinsicReward, Scaling, Sum
from offroad.rewards.rnd import RND, RNDConfig

__all__ = [
    "ICM",
    "PATCHES",
    "RND",
    "Curious",
    "Disagreement",
    "DisagreementConfig",
    "Fitting",
    "ICMConfig",
    "IntrinsicReward",
    "RNDConfig",
    "Scaling",
    "Sum",
]
