"""Learners, one file each. `AGENTS` maps the names of the command line to the classes."""

from offroad.agents.agent import Agent, stacked
from offroad.agents.ppo import PPO, PPOConfig
from offroad.agents.sac import SAC, SACConfig

AGENTS = {"ppo": (PPO, PPOConfig), "sac": (SAC, SACConfig)}

__all__ = ["AGENTS", "PPO", "SAC", "Agent", "PPOConfig", "SACConfig", "stacked"]
