"""Data parallelism: batches are spread over devices, the agent is on all of them, XLA inserts the reductions."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from offroad.errors import OffroadError


class DataParallel:
    """Where arrays live. With one device nothing is moved."""

    def __init__(self, devices: int):
        found = jax.devices()
        if devices > len(found):
            raise OffroadError(f"{devices} devices asked for, {len(found)} found ({found[0].platform})")
        self.devices = devices
        self._mesh = jax.make_mesh((devices,), ("data",), devices=found[:devices]) if devices > 1 else None

    def split(self, tree: PyTree[Any], axis: int) -> PyTree[Any]:
        """Every array cut along `axis`, a piece a device."""
        return self._put(tree, PartitionSpec(*(None,) * axis, "data"))

    def replicate(self, tree: PyTree[Any]) -> PyTree[Any]:
        """Every array whole on every device."""
        return self._put(tree, PartitionSpec())

    def _put(self, tree: PyTree[Any], spec: PartitionSpec) -> PyTree[Any]:
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, spec))
