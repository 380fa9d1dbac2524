"""Data of a point on a line whose pilots disagree: one half goes to the origin, where the reward is, the other away.

Whoever clones both stands still or goes away; who looks at the rewards goes to the origin.
"""

import jax
import numpy as np
from gymnasium import spaces

from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition

WHERE = spaces.Box(-np.inf, np.inf, (1,), np.float32)
PUSH = Spaces(WHERE, spaces.Box(-2, 2, (1,), np.float32))
CHOICE = Spaces(WHERE, spaces.Discrete(3, start=5))


def mixed(spaces: Spaces, n: int = 4000) -> Replay:
    """Steps of 0.2 s from everywhere; the reward is minus the distance. Some pushes are exactly at the bounds."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2.5, 2.5, (n, 1)).astype(np.float32)
    if spaces is PUSH:
        home = np.where(rng.random((n, 1)) < 0.5, -1, 1) * np.clip(5 * x, -1.5, 1.5)
        action = np.clip(home + 0.3 * rng.standard_normal((n, 1)), -2, 2).astype(np.float32)
    else:
        away = rng.choice([1, 0, -1], n, p=[0.5, 0.2, 0.3]) * np.sign(x[:, 0])
        action = 6 + away.astype(np.int32)
    after, off = moved(spaces, x, action), np.zeros(n, bool)
    rows = Transition(x, action, -np.abs(after[:, 0]), after, off, off)
    replay = Replay(n)
    replay.add(jax.tree.map(lambda leaf: leaf[:, None], rows))
    return replay


def moved(spaces: Spaces, x: np.ndarray, action: np.ndarray) -> np.ndarray:
    speed = np.clip(action, -2, 2) if spaces is PUSH else 1.5 * (np.asarray(action)[:, None] - 6)
    return (x + 0.2 * speed).astype(np.float32)


def mean_return(agent) -> float:
    """Of 20 steps from 41 starts in [-2, 2]: standing still earns -20, the best policy about -2."""
    x, total = np.linspace(-2, 2, 41, dtype=np.float32)[:, None], 0.0
    for _ in range(20):
        x = moved(agent.spaces, x, np.asarray(agent.act(x)[0]))
        total -= float(np.abs(x).mean())
    return total
