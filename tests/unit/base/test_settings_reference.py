"""The settings explain themselves: in the files, in an editor, on the page and on the screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from cli.main import app
from dreambooth_core import config
from dreambooth_core.config import Section, Settings, reference
from dreambooth_core.config.__main__ import generated
from dreambooth_core.errors import SettingsError
from tests.contract.test_dvc import TABLE
from tests.paths import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
FILES = [ROOT / "params.yaml", *PRESETS]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
SCHEMA = Draft202012Validator(json.loads(reference.json_schema()))
ENTRIES = {entry.key: entry for entry in reference.entries()}


def test_generated_files_are_up_to_date() -> None:
    """If not: `python -m dreambooth_core.config write`."""
    stale = [p.name for p, text in generated(ROOT).items() if p.read_text(encoding="utf-8") != text]
    assert stale == []


@each_file
def test_settings_file_states_every_setting(path: Path) -> None:
    stated = {reference.key_of(key) for key in config.flatten(config.read_yaml(path))}
    sections = {key for key, entry in ENTRIES.items() if entry.allowed == "this section, or null"}
    wanted = {key for key in ENTRIES.keys() - sections if not key.startswith("subjects.")}
    assert wanted - stated == set()


@each_file
def test_every_line_of_a_settings_file_has_its_comment(path: Path) -> None:
    own = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    bare = [line.strip() for line in own if " # " not in line and not line.strip().startswith("#")]
    assert [line for line in bare if line not in ("subjects:", "subjects: {}", "mug:")] == []


def test_every_declared_setting_is_in_the_reference() -> None:
    def declared(section: type[Section], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            key = f"{prefix}{field.alias or name}"
            types = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = [t for t in types if isinstance(t, type) and issubclass(t, Section)]
            if inner:
                below = f"{key}.NAME." if key == "subjects" else f"{key}."
                yield from declared(inner[0], below)
            else:
                yield key

    keys = set(declared(Settings, ""))
    assert len(keys) >= 100
    assert keys <= ENTRIES.keys()
    assert all(ENTRIES[key].meaning.endswith((".", "?")) for key in keys)


@pytest.mark.parametrize(("key", "stages"), TABLE.items())
def test_reference_names_the_stages_that_dvc_runs_again(key: str, stages: set[str]) -> None:
    assert set(ENTRIES[reference.key_of(key)].stages) == stages


@each_file
def test_schema_accepts_every_shipped_settings_file(path: Path) -> None:
    assert [error.message for error in SCHEMA.iter_errors(config.read_yaml(path))] == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("train", "method"), "fulll"),
        (("train", "lerning_rate"), 1e-5),
        (("train", "adam_beta1"), 1.5),
        (("data", "background"), "white"),
        (("evaluate", "images_per_prompt"), 0),
        (("subjects", "Mug!"), {}),
        (("subjects", "mug", "overrides"), {"train": {"sed": 1}}),
        (("subjects", "mug", "overrides"), {"compute": {"num_threads": 1}}),
    ],
)
def test_schema_and_loading_refuse_the_same_mistakes(
    tmp_path: Path, keys: tuple[str, ...], value: Any
) -> None:
    raw = config.read_yaml(ROOT / "params.yaml")
    place = raw
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    assert list(SCHEMA.iter_errors(raw))
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(raw))
    with pytest.raises(SettingsError):
        config.load_settings(path)


def test_schema_accepts_overrides_of_single_settings() -> None:
    raw = config.read_yaml(ROOT / "params.yaml")
    raw["subjects"]["mug"]["overrides"] = {"train": {"learning_rate": 1e-5}}
    assert SCHEMA.is_valid(raw)


def test_editors_find_the_schema_from_the_first_line() -> None:
    first = (ROOT / "params.yaml").read_text().splitlines()[0]
    language_server, _, path = first.partition("$schema=")
    assert language_server == "# yaml-language-server: "
    assert (ROOT / path).is_file()


def test_write_replaces_comments_and_keeps_values(tmp_path: Path) -> None:
    text = (
        "runtime:\r\n  # kept\r\n  keep_store_days: 3  # old\r\n  log_every_steps: 'a # b' # c\r\n"
    )
    lines = reference.commented(text).split("\r\n")
    assert lines[1:3] == [
        "  # kept",
        "  keep_store_days: 3  # `dreambooth clean` deletes store entries older than N days.",
    ]
    assert lines[3] == "  log_every_steps: 'a # b'  # Log metrics every N steps."


def settings(*words: str, root: Path = ROOT) -> Any:
    done = CliRunner().invoke(app, ["--workspace", str(root), "settings", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_key_shows_the_setting_in_full() -> None:
    words = " ".join(settings("train.snr_gamma").split())
    assert "value: null default: null" in words
    assert "allowed: number > 0 or null" in words
    assert "runs again: train presets: pocket null" in words


def test_word_searches_keys_and_meanings() -> None:
    text = settings("warm")
    assert "lr_warmup_steps" in text
    assert "constant_with_warmup" not in text
    assert "learning_rate" not in text.split("meaning")[0]


@pytest.mark.parametrize(
    ("word", "near"),
    [("train.lerning_rate", "train.learning_rate"), ("max_trian_steps", "train.max_train_steps")],
)
def test_unknown_setting_gets_the_nearest_one(word: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean .*{near}"):
        settings(word)


def test_values_and_overrides_of_subjects_are_shown(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("overrides: {}", "overrides: {train: {seed: 7}}")
    text = text.replace("ema_decay: null", "ema_decay: 0.99")
    (tmp_path / "params.yaml").write_text(text)
    assert "mug 7" in settings("train.seed", root=tmp_path)
    assert "0.99 (differs from the default)" in settings("train.ema_decay", root=tmp_path)
