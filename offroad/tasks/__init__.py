"""What is to be learnt: goals and learning from them in hindsight."""

from offroad.tasks.goals import GoalTask, HindsightReplay

__all__ = ["GoalTask", "HindsightReplay"]
