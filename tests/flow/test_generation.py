"""`dreambooth generate`: files that stay, metadata that others read, refusals at the door."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cli import generation, picture_folder
from cli.generation import Request
from cli.main import run
from dreambooth_core import config
from dreambooth_core.errors import SettingsError, UnknownModelError
from dreambooth_core.pipeline import model_references
from dreambooth_core.registry import aliases, runs, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, Decision
from dreambooth_core.registry.tracking import resolve_tracking
from dreambooth_core.report.png_metadata import ImageRecord, parameters_of
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.paths import ROOT
from tests.unit.registry import examples

pytestmark = pytest.mark.timeout(300)

POCKET = ROOT / "assets" / "pocket-sd"
REQUEST = Request(
    prompt="a photo of a red mug on the beach",
    negative_prompt="",
    num=2,
    seed=7,
    steps=2,
    guidance=3.0,
    batch_size=2,
    device="cpu",
    dtype="fp32",
    with_sheet=True,
)


def generate(out: Path, model: Path | str = POCKET, **changes: object) -> dict:
    store = f"sqlite:///{out.parent / 'mlflow.db'}"
    request = replace(REQUEST, **changes)
    return generation.generate(Workspace(ROOT), str(model), request, out, tracking_uri=store)


def pixels(paths: list[str]) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in paths]


def parse_a1111(text: str) -> dict[str, str]:
    """Parse by the documented format: the last line has three or more `Key: value` pairs, values
    are quoted as JSON or end at a comma, and `Negative prompt:` starts the negative prompt."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    values = {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}
    places = [i for i, line in enumerate(lines) if line.startswith("Negative prompt:")]
    cut = places[0] if places else len(lines)
    values["Prompt"] = "\n".join(lines[:cut])
    values["Negative prompt"] = "\n".join(lines[cut:]).removeprefix("Negative prompt:").strip()
    return values


def test_second_prompt_continues_the_numbers_and_changes_no_file(tmp_path: Path) -> None:
    first = generate(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    second = generate(tmp_path / "out", prompt="a blue dog in the snow")
    assert [Path(p).name for p in first["images"]] == ["00000-7.png", "00001-8.png"]
    assert [Path(p).name for p in second["images"]] == ["00002-7.png", "00003-8.png"]
    assert Path(second["sheet"]).name == "00002-sheet.png"
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before} == before


def test_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00003-1.png").write_bytes(b"theirs")
    path, number = picture_folder.write_new(tmp_path, 3, "-1.png", b"ours")
    assert (path.name, number) == ("00004-1.png", 4)
    assert (tmp_path / "00003-1.png").read_bytes() == b"theirs"


def test_image_carries_its_settings_for_a1111_and_as_json(tmp_path: Path) -> None:
    result = generate(tmp_path / "out", negative_prompt="a house", num=1)
    with Image.open(result["images"][0]) as image:
        assert isinstance(image, PngImageFile)
        text = image.text
    read = parse_a1111(text["parameters"])
    expected = {
        "Prompt": REQUEST.prompt,
        "Negative prompt": "a house",
        "Steps": "2",
        "CFG scale": "3",
        "Seed": "7",
        "Size": "64x64",
        "Model": "pocket-sd",
    }
    assert expected.items() <= read.items()
    record = json.loads(text["dreambooth"])
    assert (record["seed"], record["steps"], record["guidance"]) == (7, 2, 3.0)
    assert record["model"] == {"name": "pocket-sd"}
    assert result["sheet"] is None  # one image needs none


def test_metadata_of_a_version_quotes_what_a1111_would_split() -> None:
    record = ImageRecord(
        prompt="eine Tasse, 茶碗\nsecond line",
        negative_prompt="blurry, dark",
        seed=2**62,
        steps=12,
        guidance=7.5,
        sampler="PNDMScheduler",
        width=64,
        height=64,
        batch_size=4,
        device="cpu",
        dtype="fp32",
        model={"name": "mine: a, b", "version": "3", "run_id": "abc", "sha256": "f" * 64},
        program="dreambooth-pipeline 0.1.0",
    )
    read = parse_a1111(parameters_of(record))
    assert read["Prompt"] == record.prompt
    assert read["Negative prompt"] == record.negative_prompt
    assert read["Model"] == "mine: a, b 3"
    assert (read["Model hash"], read["Run"], read["Seed"]) == ("f" * 10, "abc", str(2**62))


def test_same_seed_gives_the_same_image_in_any_place_and_request(tmp_path: Path) -> None:
    """The same bits with the same batch size; at most a few levels apart with another one."""
    both = pixels(generate(tmp_path / "a", num=3)["images"])
    alone = pixels(generate(tmp_path / "b", num=1, seed=8)["images"])
    singly = pixels(generate(tmp_path / "c", num=3, batch_size=1)["images"])
    assert np.array_equal(both[1], alone[0])
    assert max(np.abs(a - b).max() for a, b in zip(both, singly, strict=True)) <= 2


def test_negative_prompt_and_type_change_the_image(tmp_path: Path) -> None:
    plain = pixels(generate(tmp_path / "a", num=1)["images"])[0]
    negative = pixels(generate(tmp_path / "b", num=1, negative_prompt="red")["images"])[0]
    half = pixels(generate(tmp_path / "c", num=1, dtype="bf16")["images"])[0]
    assert not np.array_equal(plain, negative)
    assert 0 < np.abs(plain - half).mean() < 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "--prompt is empty"),
        ({"prompt": "photo " * 30}, r"--prompt does not fit .* found: 32 tokens; allowed: 24"),
        ({"negative_prompt": "photo " * 30}, "--negative-prompt does not fit"),
        ({"dtype": "fp16"}, "--dtype fp16: not on this device; found: device cpu"),
    ],
)
def test_impossible_request_is_refused_and_leaves_nothing(tmp_path, changes, message) -> None:
    with pytest.raises(SettingsError, match=message):
        generate(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_missing_gpu_is_refused_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--device cuda: torch finds no GPU.*--device cpu"):
        generate(tmp_path / "out", device="cuda")


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none/below", "/dev/null"])
def test_folder_that_cannot_be_made_is_one_error_before_loading(tmp_path, out, monkeypatch) -> None:
    (tmp_path / "file").write_text("mine")
    fail = pytest.fail
    monkeypatch.setattr(generation, "open_model", lambda *_, **__: fail("a model was loaded"))
    with pytest.raises(SettingsError, match="--out: no images can be written to"):
        generate(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--guidance", "nan"], 2), (["--seed", str(2**70)], 2), (["--steps", "0"], 2)],
)
def test_values_out_of_bounds_are_wrong_input(tmp_path, options, code, capfd) -> None:
    fixed = ["--model", str(POCKET), "--prompt", "a mug", "--out", str(tmp_path / "out")]
    assert run(["--workspace", str(ROOT), "generate", *fixed, *options]) == code
    assert "Traceback" not in capfd.readouterr().err


def test_command_prints_files_alone_and_no_chatter_of_libraries(tmp_path: Path) -> None:
    options = ("--steps", "1", "--num", "2", "--batch-size", "2", "--out", str(tmp_path / "out"))
    command = ("-m", "cli", "generate", "--model", str(POCKET), "--prompt", "a mug", *options)
    done = workspaces.run_in(ROOT, sys.executable, *command)
    files = [tmp_path / "out" / name for name in ("00000-0.png", "00001-1.png")]
    sheet = tmp_path / "out" / "00000-sheet.png"
    assert done.stdout.splitlines() == [*map(str, files), f"sheet: {sheet}"]
    lines = done.stderr.splitlines()
    assert lines[0] == "  images 0/2"
    assert all(line.startswith("  images ") for line in lines)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_sd):
    """Two versions of dreambooth-mug, the first of which is the champion."""
    folder = tmp_path_factory.mktemp("store")
    tracking = resolve_tracking(Workspace(folder))
    own = runs.find_or_create_run(
        tracking, experiment=examples.MODEL, fingerprint="a" * 64, name="full"
    )
    for fingerprint in ("f" * 64, "e" * 64):
        candidate = examples.candidate(tiny_sd, fingerprint=fingerprint)
        versions.register_version(tracking, own, candidate, scratch=folder / "scratch")
    tags = {PARITY: PARITY_PASSED}
    aliases.set_tags(tracking, name=examples.MODEL, version=1, tags=tags)
    decision = Decision(who="me", when="2026-01-01", why="first")
    aliases.promote(tracking, name=examples.MODEL, version=1, decision=decision, expected=None)
    return tracking


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("mug", 1),
        ("mug@champion", 1),
        ("mug/2", 2),
        ("dreambooth-mug", 1),
        ("models:/dreambooth-mug@champion", 1),
        ("models:/dreambooth-mug/2", 2),
    ],
)
def test_subject_or_reference_names_a_version(store, model, version) -> None:
    settings = config.load_settings(ROOT / "params.yaml")
    found = model_references.find(store, model, settings)
    assert (found.version.name, found.version.version) == ("dreambooth-mug", version)
    assert found.run_id


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mugg", "no model 'mugg'; allowed: dreambooth-mug"),
        ("models:/dreambooth-mugg@champion", r"did you mean models:/dreambooth-mug@champion\?"),
        ("mug@champ", r"did you mean models:/dreambooth-mug@champion\?"),
        ("mug@best", "allowed: champion"),
        ("mug/9", r"has no version 9; allowed: 1, 2; .*models:/dreambooth-mug/2"),
        ("models:/", "not a model; found: 'models:/'"),
        ("assets", "not a model; found: 'assets' .*pocket-sd"),
    ],
)
def test_unknown_model_is_refused_with_what_there_is(store, model, message, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = config.load_settings(ROOT / "params.yaml")
    with pytest.raises((UnknownModelError, SettingsError), match=message) as caught:
        model_references.find(store, model, settings)
    assert caught.value.exit_code == 2


def in_shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`dreambooth generate` as a user calls it, who sets no variable."""
    env = workspaces.environment(ROOT)
    env.pop("MLFLOW_TRACKING_URI")
    command = [sys.executable, "-m", "cli", "generate", "--prompt", "a red mug", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_command_needs_no_variable_of_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "out [red] \u00e4"
    ended = in_shell("--model", str(POCKET), "--out", str(out), "--num", "1", "--steps", "1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{out / '00000-0.png'}\n"


def test_empty_path_is_not_the_current_folder() -> None:
    ended = in_shell("--model", str(POCKET), "--out", "")
    assert ended.returncode == 2
    assert "the path is empty" in ended.stderr
