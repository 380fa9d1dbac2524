"""Where results come from: the code and the machine that made them."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def commit() -> str:
    """The commit of the checkout that runs, marked where files differ from it; the version of an installed package."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.check_output(
            [*git, "rev-parse", "--show-toplevel", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        status = [*git, "status", "--porcelain", "-uno", "--", ":!results"]  # which it is about to change itself
        changed = subprocess.check_output(status, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return f"offroad {version('offroad')}"
    folder, found = top.split("\n")[:2]
    # A package installed inside somebody else's repository has not that repository's commit.
    return found + ("-dirty" if changed else "") if Path(folder) == root else f"offroad {version('offroad')}"


def machine() -> str:
    import jax

    devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__} on {devices}, "
        f"Python {platform.python_version()}"
    )
