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
    for body in ("point", "ant"):
        for maze in ("umaze", "medium", "large"):
            gym.register(
                f"offroad/{body.capitalize()}Maze-{maze}-v0",
                entry_point="offroad.envs.maze:make_single",
                vector_entry_point="offroad.envs.maze:make_vector",
                max_episode_steps=MAZE_STEPS,
                kwargs={"body": body, "maze": maze},
            )
    gym.register(
        "offroad/AntDirection-v0",
        entry_point="offroad.envs.maze.walker:make_single",
        vector_entry_point="offroad.envs.maze.walker:make_vector",
        max_episode_steps=500,
    )
    for model in ("Full", "Simple"):
        gym.register(
            f"offroad/Hamr{model}-v0",
            entry_point="offroad.envs.hamr:make_single",
            vector_entry_point="offroad.envs.hamr:make_vector",
            kwargs={"model": model.lower()},
        )
    for tasks in ("mixed", "partial"):
        gym.register(
            f"offroad/Kitchen-{tasks}-v0",
            entry_point="offroad.envs.kitchen:make_single",
            vector_entry_point="offroad.envs.kitchen:make_vector",
            max_episode_steps=KITCHEN_STEPS,
            kwargs={"tasks": tasks},
        )
    gym.register(
        "offroad/Playlist-v0",
        entry_point="offroad.envs.playlist:make",
        vector_entry_point="offroad.envs.playlist:make_vec",
    )
    gym.register(
        "offroad/DoomMaze-v0",
        entry_point="offroad.envs.doom:make_single",
        vector_entry_point="offroad.envs.doom:make_vector",
    )
    for task in ("MultiRoom-N4-S5", "MultiRoom-N6", "KeyCorridorS3R3", "DoorKey-8x8", "Empty-8x8"):
        gym.register(
            f"offroad/MiniGrid-{task}-v0",
            entry_point="offroad.envs.minigrid:make_single",
            vector_entry_point="offroad.envs.minigrid:make_vector",
            kwargs={"task": task},
        )
    gym.register(
        "offroad/Mario-v0",
        entry_point="offroad.envs.mario:make_single",
        vector_entry_point="offroad.envs.mario:make_vector",
    )
    gym.register(
        "offroad/Platformer-v0",
        entry_point="offroad.envs.platformer:make_single",
        vector_entry_point="offroad.envs.platformer:make_vector",
        max_episode_steps=PLATFORMER_DECISIONS,
    )


LOCOMOTION = {"HalfCheetah-v5": 1000, "Ant-v5": 1000, "Hopper-v5": 1000, "Walker2d-v5": 1000, "CartPoleSwingUp-v0": 500}
"""The time limit of each task of `offroad.envs.locomotion` in steps."""
RING_DECISIONS = 600
"""The time limit of the ring roads in decisions: 300 s, Flow's horizon."""
MAZE_STEPS = 1000
"""The time limit of the mazes in steps."""
KITCHEN_STEPS = 280
"""The time limit of the kitchen in steps of 80 ms: D4RL's."""
PLAYLIST_SONGS = 30
"""A whole session of the playlist in songs."""
PLATFORMER_DECISIONS = 500
"""The time limit of the platformer in decisions of six frames: 50 s."""
