"""Environments, all registered with Gymnasium under `offroad/`."""

from offroad.envs import locomotion, ring_road


def register() -> None:
    """Makes the environments known to `gymnasium.make` and `gymnasium.make_vec`."""
    locomotion.register()
    ring_road.register()
