"""Environments, all registered with Gymnasium under `offroad/`."""

import gymnasium as gym


def register() -> None:
    """Makes the environments known to `gymnasium.make` and `gymnasium.make_vec`, which import them when asked for."""
    for task, steps in LOCOMOTION.items():
        gym.register(
            f"offroad/{task}",
            entry_point="offroad.envs.locomotion:make_single",
            vector_entry_point="offroad.envs.locomotion:make_vector",
            max_episode_steps=steps,
            kwargs={"task": task},
        )
    gym.register(
        "offroad/RingRoad-v0",
        entry_point="offroad.envs.ring_road:make",
        vector_entry_point="offroad.envs.ring_road:make_vec",
        max_episode_steps=RING_DECISIONS,
    )
    gym.register(
        "offroad/SumoRing-v0", entry_point="offroad.envs.ring_road.sumo:SumoRing", max_episode_steps=RING_DECISIONS
    )
    gym.register(
        "offroad/Stack-v0",
        entry_point="offroad.envs.stack:make_single",
        vector_entry_point="offroad.envs.stack:make_vector",
    )
    for model in ("Full", "Simple"):
        gym.register(
            f"offroad/Hamr{model}-v0",
            entry_point="offroad.envs.hamr:make_single",
            vector_entry_point="offroad.envs.hamr:make_vector",
            kwargs={"model": model.lower()},
        )


LOCOMOTION = {"HalfCheetah-v5": 1000, "Ant-v5": 1000, "Hopper-v5": 1000, "Walker2d-v5": 1000, "CartPoleSwingUp-v0": 500}
"""The time limit of each task of `offroad.envs.locomotion` in steps."""
RING_DECISIONS = 600
"""The time limit of the ring roads in decisions: 300 s, Flow's horizon."""
