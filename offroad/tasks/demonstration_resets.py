"""Episodes that start on the way of a demonstration, so that the end of a long task is met early."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from offroad.errors import OffroadError
from offroad.tasks.curriculum import NOTE, Curriculum, Options
from offroad.tasks.demonstrations import Demonstrations


class DemonstrationResets:
    """A curriculum whose episodes start, with probability `share`, from a state on the way of a demonstration.

    All others are those of `curriculum`, or plain ones without options if that is None; only they are recorded by it.
    The environment must know the reset option `state`. From Nair et al. (2018), "Overcoming Exploration in
    Reinforcement Learning with Demonstrations".

    Raises `OffroadError` for demonstrations without states of the simulator.
    """

    def __init__(self, curriculum: Curriculum | None, demonstrations: Demonstrations, share: float | int):
        if not 0 <= share <= 1:
            raise OffroadError(f"the share of episodes that start from demonstrations is {share}, expected 0 to 1")
        if demonstrations.states is None:
            raise OffroadError("these demonstrations hold no states of the simulator; record them with states")
        self.curriculum, self.demonstrations, self.share = curriculum, demonstrations, share

    def sample(self, random: np.random.Generator) -> Options:
        if random.random() < self.share:
            return {"state": self.demonstrations.sample_state(random), NOTE: "demonstration"}
        return {} if self.curriculum is None else self.curriculum.sample(random)

    def record(self, options: Mapping[str, Any], success: bool, graded: bool) -> None:
        if self.curriculum is not None and options.get(NOTE) != "demonstration":
            self.curriculum.record(options, success, graded)

    def metrics(self) -> dict[str, float]:
        return {} if self.curriculum is None else self.curriculum.metrics()

    def get_state(self) -> dict[str, Any]:
        return {} if self.curriculum is None else self.curriculum.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        if self.curriculum is not None:
            self.curriculum.set_state(state)
