"""Damaged outputs of a run: the next run makes them again, with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace after a run; each test leaves it as it was."""
    built = workspaces.build(tmp_path_factory.mktemp("damage") / "checkout")
    complete(built)
    return built


def complete(workspace: Workspace) -> str:
    done = workspaces.call(workspace.root, "run", SUBJECT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def published(workspace: Workspace) -> dict[str, str]:
    """The hashes of what stages publish, without the pages, which have dates."""
    hashes = files.tree_hashes(workspace.root / "work" / SUBJECT)
    return {name: value for name, value in hashes.items() if not name.startswith("report/")}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def from_a_newer_version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "new_field": 1}))


WEIGHTS = f"work/{SUBJECT}/train/*/unet/*.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "checkpoint, one bit": (flip_a_bit, WEIGHTS),
    "checkpoint, cut": (cut, WEIGHTS),
    "latents, one bit": (flip_a_bit, f"work/{SUBJECT}/cache/moments/*.safetensors"),
    "text embeddings, cut": (cut, f"work/{SUBJECT}/cache/text.safetensors"),
    "class image, cut": (cut, f"work/{SUBJECT}/class-images/images/*.png"),
    "scored image, cut": (cut, f"work/{SUBJECT}/evaluate/images/step-0/*.png"),
    "record, newer": (from_a_newer_version, f"work/{SUBJECT}/train/record.json"),
}


@pytest.mark.parametrize(("damage", "pattern"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_output_is_made_again_with_the_same_bytes(
    finished: Workspace, damage: Callable[[Path], None], pattern: str
) -> None:
    before = published(finished)
    damage(min(finished.root.glob(pattern)))
    assert published(finished) != before
    complete(finished)
    assert published(finished) == before
