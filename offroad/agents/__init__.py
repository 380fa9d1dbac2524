"""Learners, one file each. `AGENTS` maps the names of the command line to the classes."""

from offroad.agents.agent import Agent, stacked
from offroad.agents.bc import BC, BCConfig
from offroad.agents.bear import BEAR, BEARConfig
from offroad.agents.cql import CQL, CQLConfig
from offroad.agents.ddpg import DDPG, DDPGConfig
from offroad.agents.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from offroad.agents.dqn import DQN, DQNConfig
from offroad.agents.emaq import EMaQ, EMaQConfig
from offroad.agents.imitation import Imitation
from offroad.agents.iql import IQL, IQLConfig
from offroad.agents.ppo import PPO, PPOConfig
from offroad.agents.rebrac import ReBRAC, ReBRACConfig
from offroad.agents.residual_policy import ResidualPolicy, ResidualPolicyConfig
from offroad.agents.sac import SAC, SACConfig
from offroad.agents.td3 import TD3, TD3Config
from offroad.agents.td3_bc import TD3BC, TD3BCConfig

AGENTS = {
    "bc": (BC, BCConfig),
    "bear": (BEAR, BEARConfig),
    "cql": (CQL, CQLConfig),
    "ddpg": (DDPG, DDPGConfig),
    "discrete_cql": (DiscreteCQL, DiscreteCQLConfig),
    "dqn": (DQN, DQNConfig),
    "emaq": (EMaQ, EMaQConfig),
    "iql": (IQL, IQLConfig),
    "ppo": (PPO, PPOConfig),
    "rebrac": (ReBRAC, ReBRACConfig),
    "sac": (SAC, SACConfig),
    "td3": (TD3, TD3Config),
    "td3_bc": (TD3BC, TD3BCConfig),
}

OFFLINE = ("bc", "bear", "cql", "discrete_cql", "emaq", "iql", "rebrac", "td3_bc")
"""Those that learn from data alone, by `train.offline`."""

__all__ = [
    "AGENTS",
    "BC",
    "BEAR",
    "CQL",
    "DDPG",
    "DQN",
    "IQL",
    "OFFLINE",
    "PPO",
    "SAC",
    "TD3",
    "TD3BC",
    "Agent",
    "BCConfig",
    "BEARConfig",
    "CQLConfig",
    "DDPGConfig",
    "DQNConfig",
    "DiscreteCQL",
    "DiscreteCQLConfig",
    "EMaQ",
    "EMaQConfig",
    "IQLConfig",
    "Imitation",
    "PPOConfig",
    "ReBRAC",
    "ReBRACConfig",
    "ResidualPolicy",
    "ResidualPolicyConfig",
    "SACConfig",
    "TD3BCConfig",
    "TD3Config",
    "stacked",
]
