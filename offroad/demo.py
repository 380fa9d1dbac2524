"""Demonstrations of the scripted experts, as files for imitation."""

import offroad
from offroad.errors import unknown
from offroad.tasks.demonstrations import Demonstrations
from offroad.tasks.record import record

EXPERTS = ("stack",)
WORLDS = 50


def demo(
    expert: str, *, blocks: int, episodes: int, task: str = "tower", decision: str = "long", seed: int = 0
) -> tuple[Demonstrations, int]:
    """Episodes in which a scripted expert succeeds, and how many it tried; `blocks`, `task`, `decision`: see `Stack`.

    Raises `OffroadError` for an expert, a task or a decision that does not exist, and for too many blocks.
    """
    if expert not in EXPERTS:
        raise unknown("expert", expert, EXPERTS)
    from offroad.envs.stack.expert import Expert  # MuJoCo is imported by those who need it

    env = offroad.make_vec(
        "offroad/Stack-v0",
        min(episodes, WORLDS),
        blocks=blocks,
        task=task,
        decision=decision,
    )
    return record(env, Expert(decision).act, episodes, seed=seed)
