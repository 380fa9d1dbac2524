"""Every test runs on the CPU and without a display, and shares compiled programs through a cache inside the clone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Through the environment, so that the processes that tests start inherit it, and before jax is imported.
os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_COMPILATION_CACHE_DIR=str(Path(__file__).parents[1] / ".cache" / "jax"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.5",
    MUJOCO_GL="disabled",
    MPLBACKEND="Agg",
)
# Most of the tests' time is compilation: unoptimised machine code costs a third less, and is the same up to rounding.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax


@pytest.fixture(autouse=True)
def _single_precision() -> Iterator[None]:
    """A test that leaves x64 switched on would change what every later test computes."""
    yield
    assert not jax.config.jax_enable_x64, "x64 was left on: use `with jax.enable_x64(True):`"


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """Every compiled program maps memory of its own; a process with thousands of them reaches the limit of the kernel
    and dies."""
    yield
    jax.clear_caches()
