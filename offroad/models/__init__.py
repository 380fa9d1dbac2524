"""Models of dynamics: a simple simulator corrected by seconds of a log."""

from offroad.models.comparison import Comparison, compare, corrected
from offroad.models.env import ResidualEnv
from offroad.models.fitting import FitConfig, fit
from offroad.models.logs import Log, make_log, read_log
from offroad.models.randomization import Randomization, RandomizedVectorEnv
from offroad.models.residual import Limb, ResidualModel, load
from offroad.models.simulators import FunctionSimulator, MujocoSimulator, Simulator, simulator

__all__ = [
    "Comparison",
    "FitConfig",
    "FunctionSimulator",
    "Limb",
    "Log",
    "MujocoSimulator",
    "Randomization",
    "RandomizedVectorEnv",
    "ResidualEnv",
    "ResidualModel",
    "Simulator",
    "compare",
    "corrected",
    "fit",
    "load",
    "make_log",
    "read_log",
    "simulator",
]
