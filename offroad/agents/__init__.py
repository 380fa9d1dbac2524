"""Learners, one file each. `AGENTS` maps the names of the command line to the classes."""

from offroad.agents.agent import Agent, stacked
from offroad.agents.bc import BC, BCConfig
from offroad.agents.ddpg import DDPG, DDPGConfig
from offroad.agents.dqn import DQN, DQNConfig
from offroad.agents.imitation import Imitation
from offroad.agents.ppo import PPO, PPOConfig
from offroad.agents.residual_policy import ResidualPolicy, ResidualPolicyConfig
from offroad.agents.sac import SAC, SACConfig
from offroad.agents.td3 import TD3, TD3Config

AGENTS = {
    "bc": (BC, BCConfig),
    "ddpg": (DDPG, DDPGConfig),
    "dqn": (DQN, DQNConfig),
    "ppo": (PPO, PPOConfig),
    "sac": (SAC, SACConfig),
    "td3": (TD3, TD3Config),
}

__all__ = [
    "AGENTS",
    "BC",
    "DDPG",
    "DQN",
    "PPO",
    "SAC",
    "TD3",
    "Agent",
    "BCConfig",
    "DDPGConfig",
    "DQNConfig",
    "Imitation",
    "PPOConfig",
    "ResidualPolicy",
    "ResidualPolicyConfig",
    "SACConfig",
    "TD3Config",
    "stacked",
]
