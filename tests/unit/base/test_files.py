"""Files are whole or absent, whenever the process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core import files, locks
from dreambooth_core.errors import CorruptRecordError, StageError, repeat_hint
from dreambooth_core.pipeline import common
from dreambooth_core.records import GateReport, Manifest, ManifestImage, RejectedFile
from dreambooth_core.workspace import Workspace
from tests.flushes import Flushes


def test_failed_write_keeps_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old")

    def write_and_fail() -> None:
        with files.atomic_file(target) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_is_replaced_completely(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("first", "second"):
        with files.atomic_dir(target) as aside:
            (aside / f"{text}.txt").write_text(text)
    assert [p.name for p in target.iterdir()] == ["second.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failed_folder_write_keeps_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.atomic_dir(target) as aside:
        (aside / "a").write_text("a")
    with pytest.raises(RuntimeError), files.atomic_dir(target) as aside:
        raise RuntimeError
    assert files.tree_hashes(target) == {"a": files.sha256_bytes(b"a")}


def test_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    flushes = Flushes(tmp_path, monkeypatch)
    for text in ("first", "second"):
        files.write_text(tmp_path / "a.txt", text)
    assert flushes.named == ["a.txt", "a.txt"]
    assert flushes.named_too_early == flushes.lost_names == []


def test_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    flushes = Flushes(tmp_path, monkeypatch)
    for text in ("first", "second"):
        with files.atomic_dir(tmp_path / "out") as aside:
            (aside / "sub" / "empty").mkdir(parents=True)
            (aside / "sub" / "a").write_text(text)
    assert flushes.named == ["out", "out"]
    assert flushes.named_too_early == flushes.lost_names == []


KILLED = """
import sys, time
from pathlib import Path
from dreambooth_core import files
n = 0
while True:
    n += 1
    with files.atomic_dir(Path(sys.argv[1])) as aside:
        for name in "abc":
            (aside / name).write_text(str(n) * 50_000)
    print(n, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.011, 0.037, 0.083])
def test_kill_at_any_moment_leaves_only_complete_folders(tmp_path: Path, delay_s: float) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if target.exists():  # between the two renames of an exchange there is none for an instant
        contents = {(target / name).read_text() for name in "abc"}
        assert len(contents) == 1
    files.remove_asides(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"out"}


def test_mismatches_lists_missing_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("1")
    (tmp_path / "bad").write_text("2")
    expected = files.tree_hashes(tmp_path) | {"gone": "0" * 64}
    (tmp_path / "bad").write_text("3")
    assert files.mismatches(tmp_path, expected) == ["bad", "gone"]


def test_canonical_json_refuses_nan_and_ignores_key_order() -> None:
    assert files.digest_of({"b": 1, "a": 2}) == files.digest_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json(float("nan"))


def test_output_is_replaced_under_workspace_lock_and_leftovers_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Workspace(tmp_path).places("mug")
    target = places.stage_dir("cache")
    (target.parent / ".aside-cache-dead").mkdir(parents=True)

    def publish() -> None:
        with common.publishing(places, "cache") as out:
            (out / "f").write_text("x")

    monkeypatch.setattr(common, "PUBLISH_TIMEOUT_S", 0.1)
    with (
        locks.hold(places.publish_lock, timeout_s=1),
        pytest.raises(StageError, match=r"workspace\.lock is held"),
    ):
        publish()
    assert not target.exists()
    publish()
    assert files.tree_hashes(target) == {"f": files.sha256_bytes(b"x")}
    assert [p.name for p in target.parent.iterdir()] == ["cache"]


def test_record_round_trips_and_damage_is_detected(tmp_path: Path) -> None:
    manifest = Manifest(
        role="class", fingerprint="f", images=(ManifestImage(file="a.png", sha256="0"),)
    )
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(CorruptRecordError, match="is not a Manifest"):
        Manifest.read(tmp_path)
    assert Manifest.read_if_there(tmp_path / "nowhere") is None


def test_record_of_a_newer_version_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    stage = tmp_path / "work" / "mug" / "class-images"
    image = {"file": "a.png", "sha256": "0", "sharpness": 1}
    files.write_json(
        stage / "record.json", {"role": "class", "fingerprint": "f", "images": [image], "k": 1}
    )
    with pytest.raises(CorruptRecordError, match="so a newer version wrote it") as caught:
        Manifest.read(stage)
    assert caught.value.got == "images.0.sharpness, k"
    assert (caught.value.hint or "").endswith(
        "repeat the stage: rm -r work/mug/class-images && dreambooth run mug"
    )


def test_gate_report_has_the_keys_of_its_schema() -> None:
    report = GateReport(
        subject="s", accepted=(), rejected=(RejectedFile(name="a", reason="r"),), skipped=()
    )
    assert set(json.loads(report.model_dump_json())) >= {
        "subject",
        "accepted",
        "rejected",
        "skipped",
    }


HOLDER = """
import sys, time
from pathlib import Path
from dreambooth_core import locks
with locks.hold(Path(sys.argv[1]), timeout_s=1):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_reports_its_holder_and_is_released_by_a_kill(tmp_path: Path) -> None:
    path = Workspace(tmp_path).subject_lock("mug")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    waited: list[str] = []
    with (
        pytest.raises(StageError, match=f"process {holder.pid}"),
        locks.hold(path, timeout_s=0.3, on_wait=waited.append),
    ):
        pass
    assert waited == [f"process {holder.pid}"]
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locks.hold(path, timeout_s=1):
        pass


def test_leftovers_of_a_killed_process_are_removed_and_those_at_work_stay(tmp_path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dreambooth_core import files\n"
        "root = Path(sys.argv[1])\n"
        "with files.scratch_dir(root / 'upload', 'mug') as a, files.atomic_dir(root / 'a/b/c/y'):\n"
        "    with files.atomic_file(root / 'notes.json'):\n"
        "        (a / 'half').write_text('x'); print('ready', flush=True); sys.stdin.read()\n"
    )

    def at_work() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    killed = at_work()
    killed.kill()
    killed.wait()
    left = sorted(tmp_path.rglob(".aside-*"))
    alive = at_work()
    old = time.time() - 60
    for path in tmp_path.rglob(".aside-*"):
        os.utime(path, (old, old))
    files.remove_abandoned(tmp_path)
    kept = sorted(tmp_path.rglob(".aside-*"))
    alive.kill()
    alive.wait()
    assert len(left) == len(kept) == 3
    assert not set(left) & set(kept)


def test_hint_for_a_damaged_output_is_a_command(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    inside = tmp_path / "work" / "my-dog" / "train" / "checkpoint-2" / "unet" / "x.safetensors"
    assert repeat_hint(inside) == "dreambooth run my-dog"
    expected = "rm -r work/my-dog/train && dreambooth run my-dog"
    assert repeat_hint(inside, delete=True) == expected
    other = tmp_path / "output" / "work" / "a" / "b" / "c.json"
    assert "repeat the command" in repeat_hint(other)
