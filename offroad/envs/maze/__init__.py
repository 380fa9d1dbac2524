"""D4RL's mazes with a point and an ant: `offroad/PointMaze-medium-v0`, `offroad/AntMaze-large-v0` and their kin."""

from offroad.envs.maze.maze import AntMaze, MazeEnv, PointMaze, make_single, make_vector

__all__ = ["AntMaze", "MazeEnv", "PointMaze", "make_single", "make_vector"]
