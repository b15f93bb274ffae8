from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import ComputeSettings
from dreambooth_core.errors import StageError, Stopped
from dreambooth_core.models import load, sampling
from dreambooth_core.registry import parity, versions
from dreambooth_core.registry.parity import ParityPlan, ParityRequest, ParityResult
from tests.unit.registry import examples
from tests.unit.registry.examples import BLOCK, GUIDANCE, MODEL, SIDE, STEPS

CPU = ComputeSettings(device="cpu", num_threads=1, deterministic=True)
PROMPTS = ("a photo of sks mug", "a red robot in the snow", "a blue cat at night")


@pytest.fixture
def scored(tiny_sd: Path, tmp_path: Path) -> list[tuple[str, int, Path]]:
    """Prompts, seeds and picture files as an evaluation leaves them."""
    pipe = load.load_pipeline_folder(tiny_sd, device=torch.device("cpu"))
    prompts, seeds = [PROMPTS[i % 3] for i in range(5)], list(range(5))
    images = sampling.sample(
        pipe, prompts=prompts, seeds=seeds, steps=STEPS, guidance=GUIDANCE,
        resolution=SIDE, batch_size=BLOCK,
    )  # fmt: skip
    pictures: list[tuple[str, int, Path]] = []
    for prompt, seed, image in zip(prompts, seeds, images, strict=True):
        image.save(tmp_path / f"{seed}.png")
        pictures.append((prompt, seed, tmp_path / f"{seed}.png"))
    return pictures


def plan(requests: tuple[ParityRequest, ...]) -> ParityPlan:
    return ParityPlan(
        model_uri=f"models:/{MODEL}/1",
        requests=requests,
        steps=STEPS,
        guidance=GUIDANCE,
        compute=CPU,
    )


def with_one_wrong(requests: tuple[ParityRequest, ...]) -> tuple[ParityRequest, ...]:
    return (*requests[:-1], requests[-1].model_copy(update={"pixels_sha256": "0" * 64}))


def test_upload_reproduces_the_scored_images_in_a_fresh_process(
    tracking, run, tiny_sd, tmp_path, scored
) -> None:
    candidate = examples.candidate(tiny_sd)
    versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
    requests = tuple(parity.request_of(*image) for image in scored)
    result = parity.check_parity(tracking, plan(with_one_wrong(requests)))
    assert result.compared == 5
    # The last image is the one whose expected hash was falsified; the other four are the same.
    assert [(m.prompt, m.seed) for m in result.mismatches] == [scored[-1][:2]]
    assert result.mismatches[0].pixels_sha256 == requests[-1].pixels_sha256
    assert not result.passed
    assert result.text.startswith("1 of 5 images")


def test_a_comparison_of_nothing_has_not_passed() -> None:
    assert not ParityResult(model_uri="models:/x/1", compared=0, mismatches=()).passed
    assert ParityResult(model_uri="models:/x/1", compared=1, mismatches=()).passed


def test_hash_depends_on_pixels_and_not_on_the_file_format(tmp_path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.bmp")
    hashes = [
        parity.request_of("x", 1, tmp_path / name).pixels_sha256 for name in ("a.png", "a.bmp")
    ]
    assert hashes[0] == hashes[1] == parity.pixels_sha256(image)
    image.putpixel((3, 3), (255, 0, 1))
    assert parity.pixels_sha256(image) != hashes[0]


@pytest.mark.slow
def test_model_that_fails_to_load_raises_with_the_last_lines(tracking, run) -> None:
    request = ParityRequest(prompt="x", seed=1, pixels_sha256="0")
    with pytest.raises(StageError, match=r"(?s)ended with code 1.*not found"):
        parity.check_parity(tracking, plan((request,)))


@pytest.mark.slow
def test_a_stopped_check_leaves_no_process(tracking, run) -> None:
    with pytest.raises(Stopped):
        parity.check_parity(tracking, plan(()), should_stop=lambda: True)
    assert not [p for p in psutil.Process().children() if "parity" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_fresh_process_ends_with_a_killed_parent_and_leaves_no_folder_in_tmp(
    tracking, tmp_path
) -> None:
    program = f"""
from dreambooth_core.registry import parity, tracking
from dreambooth_core.workspace import Workspace
from pathlib import Path
from tests.unit.registry.test_parity import plan
parity.check_parity(tracking.resolve_tracking(Workspace(Path({str(tmp_path)!r}))), plan(()))
"""
    shared = tmp_path / "tmp"
    shared.mkdir()
    env = {**os.environ, "TMPDIR": str(shared)}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path.cwd(), env=env)
    child = first_child(psutil.Process(parent.pid))
    assert child.environ()["TMPDIR"].startswith(str(tmp_path / ".state" / "parity"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=60)
    assert list(shared.iterdir()) == []
    assert all(files.is_aside(path.name) for path in (tmp_path / ".state" / "parity").iterdir())


def first_child(process: psutil.Process) -> psutil.Process:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in process.children():
            if "parity" in child.cmdline():
                return child
        time.sleep(0.2)
    raise AssertionError("no fresh process was started")
