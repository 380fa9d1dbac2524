"""Models of dynamics: a simple simulator corrected by seconds of a log."""

from offroad.models.fitting import FitConfig, fit
from offroad.models.logs import Log, make_log, read_log
from offroad.models.residual import Limb, ResidualModel, load
from offroad.models.simulators import FunctionSimulator, MujocoSimulator, Simulator, simulator

__all__ = [
    "FitConfig",
    "FunctionSimulator",
    "Limb",
    "Log",
    "MujocoSimulator",
    "ResidualModel",
    "Simulator",
    "fit",
    "load",
    "make_log",
    "read_log",
    "simulator",
]
