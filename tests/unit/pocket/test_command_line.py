from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.pocket.__main__ import main


@pytest.mark.slow  # draws 2,500 scenes
def test_evaluate_prints_one_json_object_and_nothing_else_and_succeeds_when_all_bars_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--state", str(tmp_path), "--assets", str(ROOT / "assets"), "--threads", "1"]
    code = main([*common, "evaluate", "classifier", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["classifier_thing"]["holds"] is True


def test_examples_draws_every_subject_into_the_folder_asked_for(tmp_path: Path) -> None:
    assert main(["examples", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/01.png"))) == 6


def test_an_unknown_part_is_refused_with_the_parts_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "vea"])
    assert stopped.value.code == 2
    assert "'vae'" in capsys.readouterr().err
