from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest
from mlflow import MlflowClient

from dreambooth_core import files
from dreambooth_core.errors import CorruptRecordError, RegistryError
from dreambooth_core.records import ModelVersion, Scores
from dreambooth_core.registry import attachments, logged_models, package, versions
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def register(tracking: Tracking, run: RunRef, export: Path, scratch: Path, **changes):
    return versions.register_version(
        tracking, run, examples.candidate(export, **changes), scratch=scratch
    )


def test_the_same_fingerprint_is_registered_once(tracking, run, tiny_sd, scratch) -> None:
    first = register(tracking, run, tiny_sd, scratch)
    again = register(tracking, run, tiny_sd, scratch)
    assert (first, first.version) == (again, 1)
    assert len(versions.list_versions(tracking, name=MODEL)) == 1
    assert list(scratch.iterdir()) == []


def test_version_of_another_process_during_the_upload_is_the_version(
    tracking, run, tiny_sd, scratch, monkeypatch
) -> None:
    upload, others = versions._upload, []

    def upload_while_another_process_registers(*arguments) -> str:
        model_id = upload(*arguments)
        if not others:
            others.append(None)
            others[0] = register(tracking, run, tiny_sd, scratch)
        return model_id

    monkeypatch.setattr(versions, "_upload", upload_while_another_process_registers)
    assert register(tracking, run, tiny_sd, scratch) == others[0]
    assert [info.version for info in versions.list_versions(tracking, name=MODEL)] == others


def test_two_calls_at_once_register_one_version(
    tracking, run, tiny_sd, scratch, monkeypatch
) -> None:
    """Each would create a version if the other could get as far meanwhile."""
    ensure, both = versions._ensure_registered_model, Barrier(2)

    def ensure_when_both_are_here(*arguments) -> None:
        with contextlib.suppress(BrokenBarrierError):
            both.wait(timeout=1)
        ensure(*arguments)

    monkeypatch.setattr(versions, "_ensure_registered_model", ensure_when_both_are_here)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(register, tracking, run, tiny_sd, scratch / name) for name in "ab"]
    assert calls[0].result() == calls[1].result()
    assert len(versions.list_versions(tracking, name=MODEL)) == 1


def test_another_fingerprint_with_the_same_files_uploads_nothing_new(
    tracking, run, tiny_sd, scratch
) -> None:
    register(tracking, run, tiny_sd, scratch)
    second = register(tracking, run, tiny_sd, scratch, fingerprint="e" * 64)
    assert second.version == 2
    rows = MlflowClient(tracking.uri).search_logged_models([run.experiment_id])
    assert [row.name for row in rows] == ["checkpoint-100"]


def test_upload_with_other_sampling_does_not_replace_a_version(
    tracking, run, tiny_sd, scratch
) -> None:
    register(tracking, run, tiny_sd, scratch)
    register(
        tracking, run, tiny_sd, scratch, fingerprint="e" * 64, serving=examples.serving(steps=7)
    )
    client = MlflowClient(tracking.uri)
    sources = [client.get_model_version(MODEL, str(n)).source for n in (1, 2)]
    assert sources[0] != sources[1]


def test_version_tags_hold_scores_settings_and_lineage(tracking, run, tiny_sd, scratch) -> None:
    register(tracking, run, tiny_sd, scratch)
    [info] = versions.list_versions(tracking, name=MODEL)
    assert info.scores["dino"] == pytest.approx(0.4)
    assert info.intervals["dino"].low == pytest.approx(0.39)
    assert info.settings == {"train": {"learning_rate": 5e-6}}
    assert info.version.qualified
    assert info.tags["dvc.train"].endswith(".dir")
    assert info.tags["data_sha256"] == "d" * 64
    assert info.tags["git_commit"] == "c" * 40
    assert info.tags["base_model"] == "assets/tiny"
    assert "base_model_revision" not in info.tags  # a folder has none, and MLflow keeps no ""
    version = MlflowClient(tracking.uri).get_model_version(MODEL, "1")
    assert version.description == "# A mug\n\nBest of two checkpoints."


def test_version_links_its_model_and_leaves_its_records(tracking, run, tiny_sd, scratch) -> None:
    for fingerprint in ("f" * 64, "f" * 64, "e" * 64):
        candidate = examples.candidate(tiny_sd, fingerprint=fingerprint)
        registered = versions.register_version(tracking, run, candidate, scratch=scratch)
        attachments.attach(tracking, registered, candidate)
    client = MlflowClient(tracking.uri)
    model_id = client.get_model_version(MODEL, "1").source.removeprefix("models:/")
    linked = json.loads(client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    assert linked == [{"name": MODEL, "version": "1"}, {"name": MODEL, "version": "2"}]
    for version in ("1", "2"):
        paths = [file.path for file in client.list_artifacts(run.run_id, f"versions/{version}")]
        assert {Path(path).name for path in paths} == {"README.md", "scores.json", "selection.json"}
    file = client.download_artifacts(run.run_id, "versions/1/scores.json")
    assert Scores.read(Path(file).parent, "scores.json") == examples.scores(100)


def test_settings_too_long_for_a_tag_are_cut_with_full_hash(
    tracking, run, tiny_sd, scratch
) -> None:
    settings = {"train": {f"setting_{i}": i for i in range(600)}}
    register(tracking, run, tiny_sd, scratch, settings=settings)
    [info] = versions.list_versions(tracking, name=MODEL)
    assert len(info.tags["settings"]) == versions.TAG_LIMIT
    assert len(info.tags["settings_sha256"]) == 64
    assert info.settings == {}


def test_an_export_with_a_possible_pickle_is_refused(tracking, run, tmp_path, scratch) -> None:
    export = tmp_path / "export"
    (export / "unet").mkdir(parents=True)
    (export / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(RegistryError, match=r"unet/diffusion_pytorch_model\.bin"):
        register(tracking, run, export, scratch)


def test_only_the_best_checkpoint_is_uploaded_and_keeps_its_row(
    tracking, run, tiny_sd, scratch
) -> None:
    checkpoints = [examples.checkpoint(step) for step in (50, 100)]
    models = logged_models.record_scores(
        tracking, run, checkpoints=checkpoints, scores=examples.scores(50, 100)
    )
    register(tracking, run, tiny_sd, scratch)
    client = MlflowClient(tracking.uri)
    assert len(client.search_logged_models([run.experiment_id])) == 2
    best = client.get_logged_model(models["checkpoint-100"])
    other = client.get_logged_model(models["checkpoint-50"])
    assert "mlflow.model.isExternal" not in best.tags
    assert other.tags["mlflow.model.isExternal"] == "true"
    assert {m.key: m.value for m in best.metrics}["score/dino"] == pytest.approx(0.4)
    assert client.get_model_version(MODEL, "1").source == f"models:/{best.model_id}"
    assert [o.model_id for o in client.get_run(run.run_id).outputs.model_outputs] == [best.model_id]
    assert stored_files(best) > 5 * stored_files(other)


def stored_files(model) -> int:
    folder = Path(model.artifact_location.removeprefix("file://"))
    return sum(path.is_file() for path in folder.rglob("*"))


def test_next_run_completes_an_upload_after_a_kill(
    tracking, run, tiny_sd, scratch, monkeypatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(logged_models, "_finish_upload", killed)
        with pytest.raises(KeyboardInterrupt):
            register(tracking, run, tiny_sd, scratch)
    assert versions.find_version(tracking, name=MODEL, fingerprint="f" * 64) is None
    assert register(tracking, run, tiny_sd, scratch).version == 1
    assert len(MlflowClient(tracking.uri).search_logged_models([run.experiment_id])) == 1


def test_fetch_gives_the_uploaded_files_and_downloads_them_once(
    tracking, run, tiny_sd, scratch
) -> None:
    register(tracking, run, tiny_sd, scratch)
    folder = versions.fetch(tracking, f"models:/{MODEL}/1")
    assert files.tree_hashes(folder) == files.tree_hashes(tiny_sd)
    stamp = folder.stat().st_mtime_ns
    assert versions.fetch(tracking, f"models:/{MODEL}/1") == folder
    assert folder.stat().st_mtime_ns == stamp


def test_fetch_refuses_files_that_are_not_those_that_were_uploaded(
    tracking, run, tiny_sd, scratch
) -> None:
    register(tracking, run, tiny_sd, scratch)
    [model] = MlflowClient(tracking.uri).search_logged_models([run.experiment_id])
    stored = Path(model.artifact_location.removeprefix("file://")) / "artifacts" / package.ARTIFACT
    (stored / "unet" / "config.json").write_text("{}")
    with pytest.raises(CorruptRecordError, match=r"unet/config\.json"):
        versions.fetch(tracking, f"models:/{MODEL}/1")
    assert not any(tracking.cache.glob("m-*"))


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("models:/nobody@champion", "the registry has no model 'nobody'.*allowed: dreambooth-mug"),
        (f"models:/{MODEL}@champion", "has no champion.*it has no alias yet"),
        (f"models:/{MODEL}/7", "has no version 7.*allowed: 1"),
        (f"models:/{MODEL}", "not a model reference.*models:/NAME@champion"),
        ("somewhere/else", "not a model reference"),
    ],
)
def test_a_wrong_reference_is_told_what_there_is(
    tracking, run, tiny_sd, scratch, reference: str, text: str
) -> None:
    register(tracking, run, tiny_sd, scratch)
    with pytest.raises(RegistryError, match=text):
        versions.fetch(tracking, reference)


def test_the_published_schema_is_that_of_the_record() -> None:
    published = json.loads(Path("docs/schemas/version.schema.json").read_bytes())
    published.pop("$schema")
    assert published == ModelVersion.model_json_schema()
