"""Skills: behaviours of several steps that are learnt from data and become actions (`primitives`)."""

from offroad.skills.latent_actions import LatentActions
from offroad.skills.policy import PrimitivePolicy
from offroad.skills.primitives import Primitives, PrimitivesConfig
from offroad.skills.windows import Window, Windows

__all__ = ["LatentActions", "PrimitivePolicy", "Primitives", "PrimitivesConfig", "Window", "Windows"]
