import json
import re

import numpy as np
import pytest

from offroad.errors import OffroadError
from offroad.report import html


def run_folder(folder, config, values, broken=""):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 1000 * i, "time": float(i), "loss": float(i), "note": "warm"} | ({"eval/return": v} if i % 2 else {})
        for i, v in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + broken)
    return folder


def assert_self_contained(text):
    assert "<script" not in text
    for link in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert link.startswith("data:image/") or link.startswith("data:video/")
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]*", "", text))


def test_one_run(tmp_path):
    run = run_folder(tmp_path / "a", {"agent": {"name": "SAC", "learning_rate": 3e-4}}, [[1.0, 3.0]] * 4)
    path = html.runs([run])
    text = path.read_text()
    assert path == run / "report.html"
    assert_self_contained(text)
    assert "agent.learning_rate" in text
    assert "2.0 [1.0, 3.0] at 3000 steps" in text
    assert text.count('src="data:image/png') == 2  # eval/return and loss
    assert "What differs" not in text


def test_several_runs_show_what_differs_and_survive_a_killed_writer(tmp_path):
    same, other = {"gamma": 0.99, "seed": 1}, {"gamma": 0.5, "seed": 1}
    runs = [
        run_folder(tmp_path / "a", same, [1.0, 2.0], broken='{"step": 20'),
        run_folder(tmp_path / "b", other, [1.0, 5.0]),
    ]
    path = html.runs(runs)
    assert path == tmp_path / "report.html"
    text = path.read_text()
    differs = text.split("What differs")[1].split("</table>")[0]
    assert "gamma" in differs
    assert "0.99" in differs
    assert "seed" not in differs
    assert_self_contained(text)


def test_a_resumed_run_counts_the_later_line(tmp_path):
    again = json.dumps({"step": 1000, "eval/return": 9.0}) + "\n"
    run = run_folder(tmp_path / "a", {}, [1.0, 2.0], broken=again)
    steps, values = html._metrics(run / "metrics.jsonl")["eval/return"]
    np.testing.assert_array_equal(steps, [1000])
    np.testing.assert_array_equal(values, [[9.0]])


def test_a_config_is_shown_as_text_not_as_html(tmp_path):
    run = run_folder(tmp_path / "a", {"name": "<script>alert(1)</script>"}, [1.0, 2.0])
    assert "<script" not in html.runs([run]).read_text()


def test_errors_name_the_file(tmp_path):
    with pytest.raises(OffroadError, match=r"config\.json does not exist"):
        html.runs([tmp_path])
    run = run_folder(tmp_path / "a", {}, [1.0, 2.0])
    (run / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(OffroadError, match="line 1 of"):
        html.runs([run])
    with pytest.raises(OffroadError, match="named twice"):
        html.runs([run, run])
