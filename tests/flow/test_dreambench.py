"""The benchmark over many subjects, on tiny models: plan, conditions, resume, tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.testing.utilities import prefect_test_harness

from dreambooth_core.data.subject_folders import write_classes
from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation.paper_tables import NO_NOUN, NO_PRIOR, SHIPPED, WRONG_NOUN
from dreambooth_core.pipeline import dreambench
from dreambooth_core.records import LatentCache, Manifest
from dreambooth_core.workspace import Workspace
from flows.dreambench import dreambench as flow
from tests import tiny_models
from tests.flow import workspaces

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

CLASSES = {"mug1": "mug", "cat1": "cat"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A checkout with tiny models, and two subjects in the folder `subjects`."""
    workspace = workspaces.build(tmp_path_factory.mktemp("bench") / "checkout")
    for name in CLASSES:
        tiny_models.build_photos(workspace.root / "subjects" / name)
    write_classes(workspace.root / "subjects", CLASSES)
    return workspace


@pytest.fixture(scope="module")
def bench(built: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dreambench.Bench:
    """The finished benchmark, with the ablations of the first subject."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workspaces.environment(built.root).items():
            patch.setenv(name, value)
        with prefect_test_harness(server_startup_timeout=300):
            flow("subjects", "out", None, 1, str(built.root))
    return dreambench.Bench(built.root, built.root / "out", plan(built))


def plan(workspace: Workspace) -> dreambench.BenchPlan:
    scratch = workspace.root / ".state" / "scratch"
    subjects = workspace.root / "subjects"
    return dreambench.plan_for(workspace.root, subjects, scratch=scratch, num_ablated=1)[0]


def command(root: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "cli", "dreambench", "--subjects-root", "subjects", *options]


def told(root: Path, *options: str) -> dict[str, Any]:
    done = workspaces.run_in(root, *command(root, *options, "--json"), check=False)
    return json.loads(done.stdout)


def finished_blocks(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (out / "store").rglob("block/record.json")}


def test_plan_shows_photos_prompts_and_conditions(built: Workspace) -> None:
    shown = told(built.root, "--plan", "--ablations", "1")
    mug, cat = shown["subjects"]
    assert (mug["name"], mug["class_noun"], mug["wrong_noun"]) == ("mug1", "mug", "cat")
    assert (mug["photos"], mug["num_prompts"], mug["images_per_prompt"]) == (4, 8, 12)
    assert mug["conditions"] == [SHIPPED, NO_PRIOR, NO_NOUN, WRONG_NOUN]
    assert cat["conditions"] == [SHIPPED]
    assert shown["images"] == 5 * 96


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--subjects", "mgu1"), "no subject has the name mgu1"),
        (("--subjects-root", "nowhere"), "no folder of subjects"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    built: Workspace, options: tuple[str, ...], said: str
) -> None:
    answer = told(built.root, "--plan", *options)
    assert said in answer["error"]["what"]
    assert answer["exit_code"] == 2


def test_real_subjects_get_the_prompts_of_their_kind(built: Workspace) -> None:
    params = built.params.read_text()
    try:
        workspaces.change(built.root, "evaluate.suite", "objects")
        found = {s.name: (s.suite, s.images_per_prompt) for s in plan(built).subjects}
    finally:
        built.params.write_text(params)
    assert found == {"mug1": ("objects", 4), "cat1": ("live", 4)}


@pytest.mark.slow
def test_every_case_is_scored_at_the_step_of_the_shipped_one(bench: dreambench.Bench) -> None:
    cases = [bench.finished(*case) for case in bench.plan.cases()]
    steps = {case.condition: case.step for case in cases if case and case.subject == "mug1"}
    assert set(steps) == {SHIPPED, NO_PRIOR, NO_NOUN, WRONG_NOUN}
    assert len(set(steps.values())) == 1
    assert all(case and case.evaluation.rows[0].n == 96 for case in cases)


@pytest.mark.slow
def test_conditions_change_words_and_class_images_alone(bench: dreambench.Bench) -> None:
    prompts = {}
    for condition in (SHIPPED, NO_PRIOR, NO_NOUN, WRONG_NOUN):
        places = bench.places("mug1", condition)
        cache = LatentCache.read(places.stage_dir("cache"))
        prompts[condition] = sorted({image.prompt for image in cache.images})
        scored = bench.finished("mug1", condition)
        assert scored is not None
        words = f"sks {scored.class_noun}".rstrip()
        assert f"a photo of {words} on the beach" in scored.evaluation.harness.prompts
    assert prompts == {
        SHIPPED: ["a photo of mug", "a photo of sks mug"],
        NO_PRIOR: ["a photo of sks mug"],
        NO_NOUN: ["a photo of", "a photo of sks"],
        WRONG_NOUN: ["a photo of cat", "a photo of sks cat"],
    }
    bare = Manifest.read(bench.places("mug1", NO_PRIOR).stage_dir("class-images"))
    assert bare.images == ()


@pytest.mark.slow
def test_finished_benchmark_keeps_no_weights_and_registers_nothing(
    built: Workspace, bench: dreambench.Bench
) -> None:
    assert list(bench.out.rglob("*/train/*/**/*.safetensors")) == []
    assert list(bench.out.rglob("runs/*/*/train")) == []
    assert not (built.root / "mlflow.db").exists()
    assert not (built.root / "work").exists()


@pytest.mark.slow
def test_results_hold_tables_models_and_seeds(bench: dreambench.Bench) -> None:
    results = json.loads((bench.out / "results.json").read_text())
    assert [table["rows"][0]["n"] for table in results["tables"]] == [2, 1, 1]
    assert len(results["suites"]["pocket"]["seeds"]) == 96
    assert len(results["base_model"]["sha256"]) == len(results["scorers"]["dino"]["sha256"]) == 64
    assert "Prior preservation" in (bench.out / "results.md").read_text()


def test_other_settings_and_photos_are_refused_where_results_are(
    built: Workspace, tmp_path: Path
) -> None:
    known = plan(built)
    dreambench.store_plan(tmp_path, known)
    settings = {**known.settings, "train": {**known.settings["train"], "seed": 77}}
    other = known.model_copy(update={"settings": settings})
    with pytest.raises(SettingsError, match=r"results of another benchmark.*values of train"):
        dreambench.store_plan(tmp_path, other)
    photos = known.subjects[0].model_copy(update={"photos": {"0.png": "other"}})
    with pytest.raises(SettingsError, match="values of mug1"):
        dreambench.store_plan(tmp_path, known.model_copy(update={"subjects": (photos,)}))
    fewer = known.model_copy(update={"subjects": known.subjects[1:]})
    dreambench.store_plan(tmp_path, fewer)


@pytest.mark.slow
def test_killed_benchmark_draws_no_image_twice(built: Workspace, bench: dreambench.Bench) -> None:
    root, out = built.root, built.root / "killed"
    options = ("--ablations", "1", "--out", "killed")
    process = subprocess.Popen(
        command(root, *options),
        cwd=root,
        env=workspaces.environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(finished_blocks(out)) < 20:
        time.sleep(0.01)
    assert process.poll() is None
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        member.kill()
    process.wait()
    before = finished_blocks(out)

    answer = told(root, *options)
    assert before.items() <= finished_blocks(out).items()
    assert Path(answer["results"]).read_bytes() == (bench.out / "results.json").read_bytes()

    again, when = finished_blocks(out), time.monotonic()
    told(root, *options)
    assert finished_blocks(out) == again
    assert time.monotonic() - when < 120
