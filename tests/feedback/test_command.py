"""`jielong feedback` as people type it."""

from __future__ import annotations

import json

from jielong.cli import main


def test_in_out_and_erased(tmp_path, capsys):
    run, file = str(tmp_path / "run"), tmp_path / "in.jsonl"
    rows = [{"prompt": "Capital of France?", "completion": "Paris.", "label": True, "user": "ann"}]
    rows += [{"prompt": "Capital of Spain?", "completion": "Rome.", "label": False, "user": "bob"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["feedback", "list", "--run", run]) == 2
    assert "no feedback yet" in capsys.readouterr().err
    assert main(["feedback", "import", "--run", run]) == 2
    assert "--file" in capsys.readouterr().err
    assert main(["feedback", "import", "--file", str(file), "--run", run]) == 0
    assert "2 of 2 stored" in capsys.readouterr().out
    assert main(["feedback", "import", "--file", str(file), "--run", run]) == 0
    assert "0 of 2 stored, 2 were there already" in capsys.readouterr().out
    assert main(["feedback", "list", "--run", run]) == 0
    assert "Capital of France? → Paris." in capsys.readouterr().out
    assert main(["feedback", "stats", "--run", run]) == 0
    assert json.loads(capsys.readouterr().out)["users"]["ann"]["up"] == 1
    out = tmp_path / "out.jsonl"
    assert main(["feedback", "export", "--file", str(out), "--run", run]) == 0
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == [True, False]
    assert main(["feedback", "erase", "--user", "ann", "--run", run]) == 0
    assert main(["feedback", "export", "--run", run]) == 0
    captured = capsys.readouterr().out
    assert "Paris" not in captured and "Rome." in captured
    assert main(["feedback", "import", "--file", str(tmp_path / "none"), "--run", run]) == 2
