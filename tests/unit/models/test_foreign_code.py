"""Program code in the folder of a model never runs, whatever its configs name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation.extractors import load_clip, load_dino
from dreambooth_core.models import load
from dreambooth_core.models.families import pipeline_family
from dreambooth_core.models.source import MODEL_PATTERNS, PIPELINE_PATTERNS, matching_files

CPU = torch.device("cpu")


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Copies a model, with a program in every folder that leaves a mark once it is imported."""

    def plant(model: Path, name: str) -> Path:
        copy = shutil.copytree(model, tmp_path / name)
        program = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
        for folder in (copy, *(path for path in copy.iterdir() if path.is_dir())):
            for file in ("evil.py", "pipeline.py", "modeling_evil.py"):
                (folder / file).write_text(program)
        return copy

    return plant


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("part", ["scheduler", "unet", "vae", "text_encoder", "tokenizer"])
def test_pipeline_with_a_class_of_its_own_is_refused(
    tiny_sd: Path, planted: Callable[[Path, str], Path], tmp_path: Path, part: str
) -> None:
    folder = planted(tiny_sd, "model")
    change(folder / "model_index.json", **{part: ["evil", "Evil"]})
    with pytest.raises(SettingsError, match=rf"program code, which never runs.*{part}: \['evil'"):
        load.load_pipeline_folder(folder, device=CPU)
    assert not (tmp_path / "ran").exists()


def test_pipeline_class_of_its_own_is_refused(
    tiny_sd: Path, planted: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    folder = planted(tiny_sd, "model")
    change(folder / "model_index.json", _class_name=["evil", "Evil"])
    with pytest.raises(SettingsError, match="a kind of pipeline that cannot be trained here"):
        pipeline_family(folder)
    assert not (tmp_path / "ran").exists()


def test_programs_that_nothing_names_are_left_alone(
    tiny_sd: Path, planted: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    folder = planted(tiny_sd, "model")
    for part in ("unet", "vae", "text_encoder"):
        change(folder / part / "config.json", auto_map={"AutoModel": "evil.Evil"})
    load.load_pipeline_folder(folder, device=CPU)
    assert not (tmp_path / "ran").exists()
    assert not [f for f in matching_files(folder, PIPELINE_PATTERNS) if f.endswith(".py")]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("role", ["clip", "dino"])
def test_auto_map_of_a_scorer_is_never_followed(
    tiny_clip: Path,
    tiny_dino: Path,
    planted: Callable[[Path, str], Path],
    tmp_path: Path,
    role: str,
    *,
    is_known: bool,
) -> None:
    folder = planted(tiny_clip if role == "clip" else tiny_dino, "scorer")
    classes = ("AutoConfig", "AutoModel", "AutoImageProcessor")
    mapped = {each: "evil.Evil" for each in classes}
    for path in folder.glob("*config.json"):
        change(path, auto_map={**mapped, "AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    load_scorer = load_clip if role == "clip" else load_dino
    if is_known:
        load_scorer(str(folder), root=tmp_path, device=CPU)
    else:
        change(folder / "config.json", model_type="evilnet")
        with pytest.raises(SettingsError, match=f"evaluate.{role}"):
            load_scorer(str(folder), root=tmp_path, device=CPU)
    assert not (tmp_path / "ran").exists()
    assert not [f for f in matching_files(folder, MODEL_PATTERNS) if f.endswith(".py")]
