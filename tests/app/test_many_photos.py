"""50 photos of 24 megapixels: verdicts at once, bounded memory, and a server that answers."""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.app.conftest import RunningApp, cpu_seconds, running_app
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1500)]

COUNT, SIZE = 50, (6000, 4000)


def write_photos(folder: Path) -> list[Path]:
    """Photos of coloured shapes; each has its own, so that none is a near duplicate."""
    folder.mkdir()
    paths = [folder / f"photo-{index:02d}.jpg" for index in range(COUNT)]
    for index, path in enumerate(paths):
        small = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
        draw = ImageDraw.Draw(small)
        for part in range(6):
            left, top = (index * 17 + part * 23) % 50, (index * 11 + part * 29) % 34
            colour = ((index * 37 + part * 80) % 256, (part * 67) % 256, (index * 53) % 256)
            draw.rectangle((left, top, left + 4 + index % 9, top + 3 + part), fill=colour)
        small.resize(SIZE, Image.Resampling.NEAREST).save(path, quality=80)
    return paths


def peak_mib(pid: int) -> float:
    """The most memory that a process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


@pytest.fixture
def app(tmp_path: Path) -> Iterator[RunningApp]:
    """Ends after the browser, which would miss it."""
    with running_app(workspaces.build(tmp_path / "project")) as running:
        yield running


def test_first_verdicts_come_at_once_and_the_server_answers(
    app: RunningApp, opened: Any, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    page = opened(app.url)
    start = time.monotonic()
    page.get_by_label("Choose photos", exact=True).set_input_files(photos)
    page.get_by_role("heading", name="New subject").wait_for()
    uploaded = time.monotonic()
    page.locator(".photo").first.wait_for()
    first = time.monotonic()
    answers = list[float]()
    while not page.get_by_text(re.compile(r"\d+ accepted, ")).is_visible():
        asked = time.monotonic()
        with urllib.request.urlopen(f"{app.url}/train", timeout=60) as answer:
            answer.read()
        answers.append(time.monotonic() - asked)
        page.wait_for_timeout(500)
    peak, used = peak_mib(app.process.pid), cpu_seconds(app.process.pid)
    size = sum(path.stat().st_size for path in photos) / 2**20
    sys.stdout.write(
        f"{size:.0f} MiB uploaded in {uploaded - start:.1f} s, first verdict "
        f"{first - uploaded:.1f} s later, all after {time.monotonic() - uploaded:.0f} s; "
        f"server: {peak:.0f} MiB, {used:.1f} s of CPU time, "
        f"slowest answer {max(answers):.2f} s\n"
    )
    assert page.locator(".photo").count() == COUNT
    assert first - uploaded < 30
    assert peak < 300
    assert max(answers) < 3
