"""The figures of the report, from kept arrays only."""

from pathlib import Path

import numpy as np

from offroad.envs.stack import Stack
from offroad.report import plots, video
from offroad.studies.study import Figure, NotRun, Results


def by_height(r: Results, folder: Path) -> Figure:
    curves: dict[str, np.ndarray] = {}
    heights = np.arange(1, r.config["blocks"] + 3)
    for arm in r.arms:
        rows = [r[arm].get(f"tower of {n}: success") for n in heights]
        found = [row for row in rows if row is not None]
        curves[arm] = np.array(found + [[np.nan] * len(found[0])] * (len(rows) - len(found)))
    path = plots.lines(folder / "by_height.png", heights.astype(float), curves, "blocks in the tower", "success")
    caption = (
        f"Strict success, a second after the last decision. Training goes up to {r.config['blocks']} blocks; taller "
        "towers are built without further training."
    )
    return Figure("Success by height", path, caption)


def stages_reached(r: Results, folder: Path) -> Figure:
    curves = {}
    for arm in ("relational", "mlp", "no_hindsight"):
        if arm not in r.arms:
            continue
        runs = []
        for seed in r.arms[arm]["seeds"]:
            try:
                runs.append(r.artefact(arm, f"curve_{seed}"))
            except NotRun:
                continue
        if not runs:
            continue
        steps = np.linspace(0, max(run["step"][-1] for run in runs), 100)
        height = [np.interp(steps, run["step"], run["stage"] + run["success"]) for run in runs]
        curves[arm] = (steps, np.array(height).T)
    if not curves:
        raise NotRun("no arm with a curriculum was run")
    path = plots.learning_curves(folder / "stages.png", curves, "stages passed + success in the present one")
    return Figure("The curriculum", path, "Stage n is the tower of n + 1; graded episodes act without exploration.")


def animation(r: Results, folder: Path) -> Figure:
    kept = r.artefact("relational", "episode")
    env = Stack(1, blocks=r.config["blocks"], render_mode="rgb_array", width=320, height=320)
    env.reset(seed=0)
    saved, frames = env.get_state(), []
    for state in kept["physics"]:
        env.set_state({**saved, "physics": state[None]})
        frames.extend(env.render() or ())
    path = video.write(folder / "tower.gif", frames + frames[-1:] * 5, fps=5, limit_mb=0.8)
    return Figure("The tower", path, "One evaluated episode of the first seed; a frame for each decision.")
