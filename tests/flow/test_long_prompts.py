"""Every entry refuses a prompt that the text encoder would cut, before it draws or trains."""

import sys
from pathlib import Path

import pytest

from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = pytest.mark.timeout(300)

LONG = "photo " * 90


@pytest.fixture
def root(tmp_path: Path) -> Path:
    workspaces.build(tmp_path)
    return tmp_path


def failed(root: Path, *command: str) -> str:
    done = workspaces.run_in(root, sys.executable, "-m", *command, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_run_plan_and_stages_refuse_prompts_of_a_suite(root: Path) -> None:
    (root / "long.txt").write_text(
        "a {identifier} {class_noun}\n"
        f"a {{identifier}} {{class_noun}} in {'the snow and ' * 30} the dark\n"
    )
    workspaces.change(root, f"subjects.{SUBJECT}.prompts", "long.txt")
    for command in (("cli", "run", SUBJECT), ("cli", "plan", SUBJECT)):
        said = failed(root, *command)
        assert "prompt 2 of the suite long does not fit the text encoder" in said
        assert "it would be cut before" in said
    assert not (root / "work").exists()
    said = failed(root, "dreambooth_core", "class-images", "--subject", SUBJECT)
    assert "prompt 2 of the suite long does not fit" in said
    assert not (root / "work" / SUBJECT / "class-images").exists()


def test_captions_are_refused_by_the_data_gate(root: Path) -> None:
    workspaces.change(root, "data.captions", True)
    (root / "data" / "instance" / SUBJECT / "photo-1.txt").write_text(LONG)
    said = failed(root, "dreambooth_core", "validate", "--subject", SUBJECT)
    assert "the caption of photo-1.png does not fit the text encoder; found: 92 tokens" in said


def test_misspelled_base_model_is_refused_by_plan_and_run(root: Path) -> None:
    workspaces.change(root, "base_model.pretrained_model_name_or_path", "assets/poket-sd")
    for command in (("run", SUBJECT), ("plan", SUBJECT), ("plan", SUBJECT, "--card-gib", "12")):
        assert "did you mean assets/pocket-sd?" in failed(root, "cli", *command)
    assert not (root / "work").exists()
