"""A trained policy without its training: an ONNX model, and a Python module that needs NumPy alone.

The deterministic policy, with running normalisation and clipping to the action bounds, is traced once by JAX for any
batch size (`graph`); two back ends write what is left (`to_numpy`, `to_onnx`).
"""

import importlib.util
from pathlib import Path

import numpy as np

from offroad.agents import Agent
from offroad.export.graph import trace
from offroad.export.to_numpy import to_numpy
from offroad.export.to_onnx import to_onnx


def export_policy(agent: Agent, out: str | Path, about: str = "A policy") -> list[Path]:
    """Writes `policy.py` and `policy.npz`, and `policy.onnx` if the package onnx is installed; returns their paths.

    `about` is one line for the reader of the files. Raises `OffroadError` for a policy that computes something that no
    back end knows.
    """
    graph, out = trace(agent), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    source, constants = to_numpy(graph, about)
    (out / "policy.py").write_text(source)
    np.savez(out / "policy.npz", allow_pickle=False, **constants)
    paths = [out / "policy.py", out / "policy.npz"]
    if importlib.util.find_spec("onnx") is not None:
        paths.append(out / "policy.onnx")
        paths[-1].write_bytes(to_onnx(graph, about).SerializeToString())
    return paths


__all__ = ["export_policy", "to_numpy", "to_onnx", "trace"]
