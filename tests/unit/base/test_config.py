"""Mistakes in the settings are reported at once, with keys and hints."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dreambooth_core import config
from dreambooth_core.config import Effect, Section, Settings, SubjectView, compatibility
from dreambooth_core.config.__main__ import main as config_main
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace

ROOT = Path(__file__).parents[3]


def changed(tmp_path: Path, **changes: object) -> Path:
    """Copy the shipped params.yaml and set dotted keys; a value of ... removes the key."""
    raw = YAML(typ="safe").load(ROOT / "params.yaml")
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = raw
        for section in sections:
            target = target[section]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    path = tmp_path / "params.yaml"
    YAML().dump(raw, path)
    return path


def view_of(path: Path) -> SubjectView:
    settings = config.load_settings(path)
    return config.for_subject(settings, next(iter(settings.subjects)))


def subject_of_shipped() -> str:
    return next(iter(YAML(typ="safe").load(ROOT / "params.yaml")["subjects"]))


def test_shipped_settings_are_valid() -> None:
    assert config_main([str(ROOT / "params.yaml")]) == 0


def test_unknown_key_is_reported_with_nearest_key(tmp_path: Path) -> None:
    path = changed(tmp_path, train__lerning_rate=1e-5)
    with pytest.raises(SettingsError, match=r"train.lerning_rate: unknown.*learning_rate\?"):
        config.load_settings(path)


def test_all_errors_are_reported_at_once_with_their_values(tmp_path: Path) -> None:
    path = changed(
        tmp_path, train__max_train_steps=-3, data__background="white", evaluate__suite=...
    )
    with pytest.raises(SettingsError) as caught:
        config.load_settings(path)
    text = str(caught.value)
    assert "train.max_train_steps: Input should be greater than 0, found -3" in text
    assert "data.background" in text
    assert "'white'" in text
    assert "evaluate.suite: missing" in text


def test_wrong_override_is_reported_by_its_full_dotted_key(tmp_path: Path) -> None:
    name = subject_of_shipped()
    path = changed(tmp_path, **{f"subjects__{name}__overrides": {"train": {"sed": 1}, "trian": {}}})
    with pytest.raises(SettingsError) as caught:
        config.load_settings(path)
    assert f"subjects.{name}.overrides.train.sed: unknown setting; did you mean seed?" in str(
        caught.value
    )
    assert f"subjects.{name}.overrides.trian" in str(caught.value)


def test_override_changes_only_its_subject(tmp_path: Path) -> None:
    name = subject_of_shipped()
    path = changed(tmp_path, **{f"subjects__{name}__overrides": {"train": {"learning_rate": 0.25}}})
    assert view_of(path).train.learning_rate == 0.25
    assert config.load_settings(path).train.learning_rate != 0.25


def test_lora_method_without_lora_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"train\.lora: method is lora, but this section"):
        config.load_settings(changed(tmp_path, train__method="lora", train__lora=None))


def test_caption_rate_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.caption_rate: no effect while captions is off"):
        config.load_settings(changed(tmp_path, data__caption_rate=0.5))


def test_warm_up_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="lr_warmup_steps: lr_scheduler constant has no warm-up"
    ):
        config.load_settings(changed(tmp_path, train__lr_warmup_steps=10))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_encoder_lr": 1e-5}, "while train_text_encoder is off"),
        ({"use_8bit_adam": True, "optimizer": "adafactor"}, "use_8bit_adam needs optimizer adamw"),
        ({"weight_dtype": "bf16"}, "set mixed_precision to bf16, found 'no'"),
        ({"fused_backward": True}, "cannot clip by the global norm"),
        (
            {"fused_backward": True, "max_grad_norm": None, "gradient_accumulation_steps": 2},
            "updates in every backward pass",
        ),
        (
            {"use_8bit_adam": True, "strategy": "deepspeed"},
            "8-bit Adam does not work with DeepSpeed",
        ),
        ({"ema_decay": 0.99, "strategy": "fsdp"}, "but FSDP splits them"),
    ],
)
def test_incompatible_options_are_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = changed(tmp_path, **{f"train__{key}": value for key, value in changes.items()})
    with pytest.raises(SettingsError, match=reason):
        config.load_settings(path)


def test_all_broken_rules_are_reported_each_on_its_line(tmp_path: Path) -> None:
    own = {"use_8bit_adam": True, "strategy": "deepspeed", "ema_decay": 0.9}
    path = changed(
        tmp_path,
        train__lr_warmup_steps=10,
        train__method="lora",
        train__lora=None,
        **{f"train__{key}": value for key, value in own.items()},
    )
    with pytest.raises(SettingsError) as caught:
        config.load_settings(path)
    begins = [
        "params.yaml: train.lr_warmup_steps: lr_scheduler constant has no warm-up",
        "params.yaml: train.lora: method is lora, but this section is missing",
        "params.yaml: train.use_8bit_adam: 8-bit Adam does not work with DeepSpeed",
        "params.yaml: train.ema_decay: ema_decay averages whole weights, but DeepSpeed splits",
    ]
    lines = str(caught.value).splitlines()
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins


def test_invalid_field_skips_only_the_rules_that_read_it(tmp_path: Path) -> None:
    """max_grad_norm is invalid, so the rule on clipping with fused_backward is skipped."""
    path = changed(
        tmp_path,
        train__train_batch_size=0,
        train__lr_warmup_steps=10,
        train__fused_backward="yes",  # pydantic's true
        train__max_grad_norm=-1.0,
        train__gradient_accumulation_steps=2,
        train__lora={"rank": 0},
        data__min_side=0,
        data__min_photos=20,
    )
    with pytest.raises(SettingsError) as caught:
        config.load_settings(path)
    text = str(caught.value)
    assert "train.train_batch_size: Input should be greater than 0, found 0" in text
    assert "train.max_grad_norm: Input should be greater than 0, found -1.0" in text
    assert "train.lora.rank: Input should be greater than 0, found 0" in text
    assert "train.lora.lora_alpha: missing" in text
    assert "train.lr_warmup_steps: lr_scheduler constant has no warm-up" in text
    assert "train.gradient_accumulation_steps: fused_backward updates in every" in text
    assert "clip by the global norm" not in text
    assert "data.min_side: Input should be greater than 0, found 0" in text
    assert "data.max_photos: less than min_photos, which is 20" in text


def test_broken_rules_are_reported_together_with_unknown_keys(tmp_path: Path) -> None:
    path = changed(tmp_path, train__lerning_rate=1e-5, train__lr_warmup_steps=10)
    with pytest.raises(SettingsError, match=r"(?s)did you mean learning_rate\?.*has no warm-up"):
        config.load_settings(path)


def test_override_reports_broken_rules_and_invalid_fields_together(
    tmp_path: Path,
) -> None:
    name = subject_of_shipped()
    own = {"train": {"train_batch_size": 0, "lr_warmup_steps": 10}}
    with pytest.raises(SettingsError) as caught:
        config.load_settings(changed(tmp_path, **{f"subjects__{name}__overrides": own}))
    at = f"subjects.{name}.overrides.train"
    assert f"{at}.train_batch_size: Input should be greater than 0" in str(caught.value)
    assert f"{at}.lr_warmup_steps: lr_scheduler constant has no warm-up" in str(caught.value)


def test_unknown_subject_is_refused_with_known_ones() -> None:
    with pytest.raises(SettingsError, match=subject_of_shipped()):
        config.for_subject(config.load_settings(ROOT / "params.yaml"), "unknown")


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("rate: 5e-6\n")
    assert config.read_yaml(path) == {"rate": 5e-6}


def test_settings_load_without_torch() -> None:
    code = "import sys, dreambooth_core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def _leaves(model: type[Section]) -> list[tuple[str, object]]:
    return list(model.model_fields.items())


def test_only_runtime_section_has_fields_without_effect() -> None:
    for section in (config.DataSettings, config.TrainSettings, config.EvaluateSettings):
        assert all(config.effect_of(f) is not Effect.NONE for _, f in _leaves(section))
    assert all(config.effect_of(f) is Effect.NONE for _, f in _leaves(config.RuntimeSettings))


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("data__min_side", 48, {"validate"}),
        ("data__resolution", 128, {"validate", "class-images", "cache", "evaluate", "confirm"}),
        ("prior__seed", 99, {"class-images"}),
        ("prior__solver", None, {"class-images"}),
        ("prior__prior_loss_weight", 0.5, {"train"}),
        ("prior__num_class_images", 64, set()),
        ("train__learning_rate", 1e-4, {"train"}),
        ("train__checkpointing_steps", 10, set()),
        ("train__max_train_steps", 900, set()),
        ("evaluate__guidance_scale", 5.0, {"evaluate", "confirm"}),
        ("select__max_pres_gain", 0.5, {"evaluate", "select"}),
        ("runtime__log_every_steps", 3, set()),
        ("runtime__async_checkpointing", True, set()),
        ("runtime__keep_checkpoints", "all", set()),
        ("runtime__report_to", ["tensorboard"], set()),
        ("compute__num_threads", 2, {"class-images", "cache", "train", "evaluate", "confirm"}),
        ("versions__cache", 9, {"cache"}),
    ],
)
def test_setting_changes_only_fingerprints_of_stages_that_read_it(
    tmp_path: Path, key: str, value: object, stages: set[str]
) -> None:
    before = view_of(ROOT / "params.yaml")
    after = view_of(changed(tmp_path, **{key: value}))
    moved = {
        stage
        for stage in config.STAGE_SETTINGS
        if config.settings_of(before, stage) != config.settings_of(after, stage)
    }
    assert moved == stages


def test_max_train_steps_counts_if_the_schedule_depends_on_it(
    tmp_path: Path,
) -> None:
    cosine = view_of(changed(tmp_path, train__lr_scheduler="cosine"))
    assert "max_train_steps" in config.settings_of(cosine, "train")["train"]


def test_subject_view_has_every_settings_section() -> None:
    assert set(Settings.model_fields) - {"subjects"} < set(SubjectView.model_fields)


@pytest.mark.parametrize(
    ("section", "rules"),
    [
        (config.DataSettings, compatibility.DATA_RULES),
        (config.TrainSettings, compatibility.TRAIN_RULES),
    ],
)
def test_every_rule_reads_fields_of_its_section(
    section: type[Section], rules: tuple[compatibility.Rule, ...]
) -> None:
    """A rule that reads an unknown field would be skipped silently."""
    for rule in rules:
        assert set(inspect.signature(rule).parameters) <= set(section.model_fields), rule


def test_flattening_keeps_empty_sections_and_lists_as_values() -> None:
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": [1, {"f": 2}], "g": None}
    assert config.flatten(nested) == {"a.b.c": 1, "a.d": {}, "e": [1, {"f": 2}], "g": None}


def test_all_subjects_cost_few_readings_of_the_file(tmp_path: Path) -> None:
    workspace, settings = Workspace(tmp_path), YAML().load(ROOT / "params.yaml")
    one = next(iter(settings["subjects"].values()))
    settings["subjects"] = {f"subject-{number}": dict(one) for number in range(100)}
    with workspace.params.open("w") as stream:
        YAML().dump(settings, stream)
    start = time.process_time()
    config.load_settings(workspace.params)
    read = time.process_time()
    views = config.load_views(workspace)
    assert time.process_time() - read < 20 * (read - start)
    assert views[7] == config.load_view(workspace, "subject-7")
