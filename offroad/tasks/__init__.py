"""What is to be learnt, from which starts, and from whose examples: goals, curricula and demonstrations."""

from offroad.tasks.curriculum import Curriculum, CurriculumVectorEnv, Stage, SuccessGated, Uniform
from offroad.tasks.demonstration_resets import DemonstrationResets
from offroad.tasks.demonstrations import DemonstrationReplay, Demonstrations
from offroad.tasks.entities import CompactReplay
from offroad.tasks.goals import GoalTask, HindsightReplay

__all__ = [
    "CompactReplay",
    "Curriculum",
    "CurriculumVectorEnv",
    "DemonstrationReplay",
    "DemonstrationResets",
    "Demonstrations",
    "GoalTask",
    "HindsightReplay",
    "Stage",
    "SuccessGated",
    "Uniform",
]
