"""The loops that train agents, and what a run leaves behind."""

from offroad.train.evaluate import Evaluation, evaluate
from offroad.train.loop import Schedule, TrainResult
from offroad.train.off_policy import off_policy
from offroad.train.offline import offline
from offroad.train.on_policy import on_policy

__all__ = ["Evaluation", "Schedule", "TrainResult", "evaluate", "off_policy", "offline", "on_policy"]
