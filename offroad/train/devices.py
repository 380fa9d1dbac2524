"""Data parallelism: batches are spread over devices, the agent is on all of them, XLA inserts the reductions."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from offroad.errors import OffroadError


class DataParallel:
    """Where arrays live. With one device nothing is moved and every sharding is None, which leaves it to JAX."""

    def __init__(self, devices: int):
        found = jax.devices()
        if not 1 <= devices <= len(found):
            raise OffroadError(
                f"{devices} devices asked for, {len(found)} found ({found[0].platform}); "
                f"ask for 1 to {len(found)} (on CPUs, XLA_FLAGS=--xla_force_host_platform_device_count=n makes n)"
            )
        self._count = devices
        self._mesh = None
        if devices > 1:
            self._mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=found[:devices])

    @property
    def whole(self) -> NamedSharding | None:
        """Every array whole on every device."""
        return None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())

    def cut(self, axis: int) -> NamedSharding | None:
        """Every array cut along `axis`, a piece a device."""
        return None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec(*(None,) * axis, "data"))

    def replicate(self, tree: PyTree[Any]) -> PyTree[Any]:
        """Puts every array whole on every device."""
        return tree if self._mesh is None else jax.device_put(tree, self.whole)

    def split(self, tree: PyTree[Any], axis: int) -> PyTree[Any]:
        """Cuts every array along `axis` and puts a piece on each device."""
        self._check(tree, axis)
        return tree if self._mesh is None else jax.device_put(tree, self.cut(axis))

    def constrain(self, tree: PyTree[Any], axis: int) -> PyTree[Any]:
        """`split` for arrays inside compiled code."""
        self._check(tree, axis)
        return tree if self._mesh is None else jax.lax.with_sharding_constraint(tree, self.cut(axis))

    def _check(self, tree: PyTree[Any], axis: int) -> None:
        for leaf in jax.tree.leaves(tree):
            if leaf.shape[axis] % self._count:
                raise OffroadError(
                    f"{leaf.shape[axis]} environments or transitions cannot be shared out over {self._count} devices; "
                    "choose a multiple"
                )
