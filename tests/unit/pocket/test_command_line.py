from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.pocket.__main__ import main


@pytest.mark.slow  # draws 2,500 scenes
def test_evaluate_prints_one_json_object_and_exits_0_if_all_metrics_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--state", str(tmp_path), "--assets", str(ROOT / "assets"), "--threads", "1"]
    code = main([*common, "evaluate", "classifier", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert code == 0
    assert measured["classifier_thing"]["holds"] is True


def test_examples_writes_each_subject_into_the_given_folder(tmp_path: Path) -> None:
    assert main(["examples", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/01.png"))) == 6


def test_unknown_part_exits_2_and_lists_the_allowed_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "vea"])
    assert stopped.value.code == 2
    assert "'vae'" in capsys.readouterr().err
