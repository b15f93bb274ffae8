"""Parsing of command lines, and the messages for their mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from dreambooth_core.errors import Problem, SettingsError, StageError
from dreambooth_core.scripts import prepare, resume
from dreambooth_core.scripts.checkpoints import ScriptCheckpoint
from dreambooth_core.scripts.flags import (
    DREAMBOOTH,
    DREAMBOOTH_FLAX,
    DREAMBOOTH_LORA,
    DREAMBOOTH_LORA_SDXL,
)
from dreambooth_core.scripts.parsing import help_text, in_flags, parse
from dreambooth_core.scripts.settings import make_settings
from tests.paths import ROOT

SUBJECT = ROOT / "examples" / "mug-stripes"
NEEDED = [
    "--pretrained_model_name_or_path=m", f"--instance_data_dir={SUBJECT}", "--instance_prompt=p",
]  # fmt: skip
PRIOR = ["--with_prior_preservation", "--class_data_dir=c", "--class_prompt=a dog"]
SEED_FLAGS = """
pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir
output_dir instance_prompt class_prompt with_prior_preservation prior_loss_weight num_class_images
sample_batch_size resolution center_crop train_batch_size num_train_epochs max_train_steps
gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler
lr_warmup_steps lr_num_cycles lr_power use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay
adam_epsilon max_grad_norm mixed_precision prior_generation_precision train_text_encoder
checkpointing_steps checkpoints_total_limit resume_from_checkpoint
enable_xformers_memory_efficient_attention set_grads_to_none allow_tf32 offset_noise snr_gamma
pre_compute_text_embeddings tokenizer_max_length text_encoder_use_attention_mask validation_prompt
num_validation_images validation_steps report_to logging_dir seed push_to_hub hub_token hub_model_id
"""


def problems(script, *arguments: str, env=None) -> str:
    with pytest.raises(SettingsError) as caught:
        make_settings(script, parse(script, arguments), env or {})
    assert caught.value.exit_code == 2
    return str(caught.value)


def train_settings(*arguments: str, script=DREAMBOOTH, env=None):
    settings = make_settings(script, parse(script, [*NEEDED, *arguments]), env or {})
    return settings.train(seed=0, max_train_steps=10)


def test_four_random_crops_of_each_photo_are_cached_unless_centred():
    for flags, center_crop in (((), False), (("--center_crop",), True)):
        data = make_settings(DREAMBOOTH, parse(DREAMBOOTH, [*NEEDED, *flags]), {}).data
        assert (data.crops_per_image, data.center_crop) == (4, center_crop)


def test_every_flag_of_the_guide_is_accepted_and_has_help():
    text = help_text(DREAMBOOTH)
    for name in SEED_FLAGS.split():
        assert name in DREAMBOOTH.flags.model_fields
        assert f"--{name}" in text
    for script in (DREAMBOOTH_LORA, DREAMBOOTH_LORA_SDXL):
        assert {"rank", "lora_alpha", "lora_dropout", "lora_layers"} <= set(
            script.flags.model_fields
        )


def kind(annotation: object) -> str:
    """The word for a flag's type in the table of the documented scripts."""
    if annotation is bool:
        return "switch"
    if annotation in (int, float, str):
        return annotation.__name__
    options = [each for each in get_args(annotation) if each is not type(None)]
    return "str" if get_origin(annotation) is Literal else kind(options[0])


def documented_flags(column: int) -> dict[str, tuple[str, str]]:
    """Type and default of each flag of one documented script."""
    lines = (Path(__file__).parent / "peer_flags.txt").read_text().splitlines()
    cells = [line.split() for line in lines if not line.startswith("#")]
    return {name: (kind, own[column]) for name, kind, *own in cells if own[column] != "-"}


@pytest.mark.parametrize(
    ("column", "script", "other"),
    [
        (0, DREAMBOOTH, {}),
        (1, DREAMBOOTH_LORA, {}),
        (2, DREAMBOOTH_LORA_SDXL, {"instance_data_dir": "must"}),  # no data set of the hub instead
        (3, DREAMBOOTH_FLAX, {"instance_prompt": "must", "mixed_precision": "None"}),
    ],
    ids=["dreambooth", "lora", "sdxl", "flax"],
)
def test_defaults_are_those_of_the_documented_scripts(column, script, other):
    """All of them, with their types; a flag that is not taken is refused with its reason."""
    documented, fields = documented_flags(column), script.flags.model_fields
    assert documented.keys() - fields.keys() <= script.refused.keys()
    expected = {n: (t, other.get(n, d)) for n, (t, d) in documented.items() if n in fields}
    assert len(expected) > 30
    assert expected == {
        name: (kind(field.annotation), "must" if field.is_required() else repr(field.default))
        for name, field in fields.items()
        if name in documented
    }


def test_all_mistakes_are_reported_at_once_with_nearest_flags():
    text = problems(
        DREAMBOOTH, "--lerning_rate=1", "--max_train_steps", "0", "--resolution=big",
        "--instance_data_dir=.", "--instance_prompt=p", "--center_crop=yes", "stray", "--variant",
    )  # fmt: skip
    assert text.splitlines() == [
        "--lerning_rate: unknown flag; did you mean --learning_rate?",
        "--center_crop: a switch takes no value, found 'yes'",
        "stray: not a flag; flags begin with --",
        "--variant: the value is missing",
        "--pretrained_model_name_or_path: missing",
        "--resolution: Input should be a valid integer, unable to parse string as an integer, "
        "found 'big'",
        "--max_train_steps: Input should be greater than 0, found '0'",
    ]


def test_flag_value_follows_a_space_or_an_equals_sign():
    flags = parse(DREAMBOOTH, [*NEEDED, "--learning_rate", "5.0e-04", "--adam_beta1=0.8"])
    assert (flags.learning_rate, flags.adam_beta1) == (5e-4, 0.8)


def test_prior_preservation_without_its_folder_or_prompt_is_refused():
    text = problems(DREAMBOOTH, *NEEDED, "--with_prior_preservation")
    assert "--class_data_dir: missing; required by --with_prior_preservation" in text
    assert "--class_prompt: missing; required by --with_prior_preservation" in text


def test_missing_xformers_is_refused_with_sdpa_as_the_alternative():
    text = problems(DREAMBOOTH, *NEEDED, "--enable_xformers_memory_efficient_attention")
    assert "xFormers is not installed" in text
    assert "SDPA" in text


def test_launcher_env_with_one_of_several_processes_is_refused():
    env = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    text = problems(DREAMBOOTH, *NEEDED, env=env)
    assert "several processes were requested, but one was started" in text
    assert "accelerate launch --multi_gpu --num_processes N" in text
    assert "`unset MASTER_ADDR MASTER_PORT`" in text
    assert train_settings(env=env | {"WORLD_SIZE": "2"}).num_processes == 2


def test_exported_master_address_alone_does_not_mean_several_processes():
    env = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "10.0.0.1"}
    assert train_settings(env=env).num_processes == 1


@pytest.mark.parametrize(
    ("file", "launcher", "flag", "precision"),
    [
        ({"fp16": {"enabled": True}}, "no", None, "fp16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "no", None, "bf16"),
        ({"bf16": {"enabled": True}}, "bf16", "bf16", "bf16"),
        ({"bf16": {"enabled": "auto"}}, "no", "bf16", "bf16"),
        ({}, "bf16", None, "bf16"),
        ({}, "no", None, "no"),
    ],
)
def test_precision_defaults_to_that_of_the_deepspeed_file(
    file, launcher, flag, precision, tmp_path
):
    more = [] if flag is None else [f"--mixed_precision={flag}"]
    env = deepspeed_launch(tmp_path, file, launcher)
    assert train_settings(*more, env=env).mixed_precision == precision


@pytest.mark.parametrize(
    ("file", "launcher", "flag", "words"),
    [
        ({"fp16": {"enabled": True}}, "no", "no", "no, but DeepSpeed's configuration has fp16 on"),
        ({"fp16": {"enabled": True}}, "bf16", None, "bf16, but DeepSpeed's configuration has fp16"),
        (
            {"bf16": {"enabled": False}},
            "no",
            "bf16",
            "bf16, but DeepSpeed's configuration has bf16",
        ),
    ],
)
def test_precision_unlike_deepspeeds_is_refused(file, launcher, flag, words, tmp_path):
    more = [] if flag is None else [f"--mixed_precision={flag}"]
    text = problems(DREAMBOOTH, *NEEDED, *more, env=deepspeed_launch(tmp_path, file, launcher))
    assert f"--mixed_precision: {words}" in text
    assert "omit the flag to follow the file" in text


def deepspeed_launch(folder: Path, file: dict[str, object], precision: str) -> dict[str, str]:
    """The environment that `accelerate launch` makes for a configuration that names `file`."""
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(file))
    return {
        "ACCELERATE_MIXED_PRECISION": precision,
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
    }


def test_save_steps_is_an_alias_of_checkpointing_steps():
    assert parse(DREAMBOOTH_FLAX, [*NEEDED, "--save_steps=7"]).checkpointing_steps == 7


def test_errors_of_settings_are_spelled_as_flags():
    problems = [
        Problem("needs a GPU; turn compile_blocks off", "train.mixed_precision"),
        Problem("fits no layer", "train.lora.lora_layers"),
        Problem("DeepSpeed cannot be imported", "train.strategy"),  # not a flag
        Problem("missing", "--seed"),
    ]
    error = SettingsError.of(problems)
    assert str(error).splitlines()[0].startswith("train.mixed_precision: needs a GPU")
    assert in_flags(error, DREAMBOOTH_LORA.flags.model_fields).splitlines() == [
        "--mixed_precision: needs a GPU; turn compile_blocks off",
        "--lora_layers: fits no layer",
        "DeepSpeed cannot be imported",
        "--seed: missing",
    ]
    assert in_flags(StageError("train.seed.png is torn"), ()) == "train.seed.png is torn"


def test_photo_settings_are_spelled_as_flags_or_omitted():
    line = "enlarged (data.resolution); looks blurry (data.blur_threshold), data.resolution.png"
    assert prepare._in_flags(line, DREAMBOOTH.flags.model_fields) == (
        "enlarged (--resolution); looks blurry, data.resolution.png"
    )


def test_missing_photo_folder_is_reported_before_anything_loads():
    text = problems(DREAMBOOTH, NEEDED[0], "--instance_data_dir=nowhere", NEEDED[2])
    assert text == "--instance_data_dir: no folder nowhere"


def test_unusable_inputs_are_reported_together_before_torch_is_imported(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("x")
    (tmp_path / "out").mkdir(mode=0o500)
    flags = ("--pretrained_model_name_or_path=./nowhere/at/all", "--tokenizer_name=no/such/folder")
    folders = (f"--instance_data_dir={tmp_path}/photos", f"--output_dir={tmp_path}/out/new")
    lines = problems(DREAMBOOTH, *flags, *folders, "--instance_prompt=p").splitlines()
    told = [line.partition(";")[0] for line in lines]
    expected = [
        "--pretrained_model_name_or_path: the model ./nowhere/at/all does not exist",
        "--tokenizer_name: the model no/such/folder does not exist",
        f"--instance_data_dir: no photo in {tmp_path}/photos",
        f"--output_dir: {tmp_path}/out is not writable",
    ]
    is_root = os.access(tmp_path / "out", os.W_OK)  # whom no permissions bind
    assert told == expected[: 3 if is_root else 4]
    assert "notes.txt: " in lines[2]
    flags = (f"--pretrained_model_name_or_path={tmp_path}", *NEEDED[1:])
    assert "has no model_index.json" in problems(DREAMBOOTH, *flags)


def test_numbers_that_would_fail_later_are_refused_at_once():
    text = problems(DREAMBOOTH, *NEEDED, "--adam_beta1=1", "--learning_rate=inf", "--resolution=4")
    assert text.splitlines() == [
        "--resolution: Input should be greater than or equal to 8, found '4'",
        "--learning_rate: Input should be a finite number, found 'inf'",
        "--adam_beta1: Input should be less than 1, found '1'",
    ]


@pytest.mark.parametrize(("side", "nearest"), [(65, "64 or 72"), (101, "96 or 104")])
@pytest.mark.parametrize("model", ["assets/pocket-sd", "CompVis/stable-diffusion-v1-4"])
def test_side_that_the_model_cannot_use_is_refused(model, side, nearest, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = (f"--pretrained_model_name_or_path={model}", *NEEDED[1:], f"--resolution={side}")
    text = problems(DREAMBOOTH, *flags)
    assert (
        f"--resolution: {side}, but this base model needs a multiple of 8; nearest: {nearest}"
        in text.splitlines()
    )


def test_photos_class_images_models_and_results_need_separate_folders(tmp_path):
    (tmp_path / "photo.png").touch()
    model = problems(DREAMBOOTH, *NEEDED[1:], f"--pretrained_model_name_or_path={tmp_path}",
                     f"--output_dir={tmp_path}")  # fmt: skip
    assert (
        "--output_dir: the same folder as --pretrained_model_name_or_path; each needs its own"
    ) in model
    folders = [f"--instance_data_dir={tmp_path}", f"--class_data_dir={tmp_path}/."]
    text = problems(DREAMBOOTH, NEEDED[0], NEEDED[2], *folders, f"--output_dir={tmp_path}/x/..")
    assert text.splitlines() == [
        "--class_data_dir: the same folder as --instance_data_dir; each needs its own",
        "--output_dir: the same folder as --instance_data_dir; each needs its own",
        "--output_dir: the same folder as --class_data_dir; each needs its own",
    ]


def test_flags_without_effect_are_noted_before_the_run():
    def notes_on(*arguments: str) -> str:
        return "; ".join(
            make_settings(DREAMBOOTH, parse(DREAMBOOTH, [*NEEDED, *arguments]), {}).notes
        )

    rate = "--text_encoder_lr=1e-4"
    notes = notes_on(rate, "--class_prompt=a dog", "--lr_warmup_steps=5")
    assert "--text_encoder_lr has no effect without --train_text_encoder" in notes
    assert "--class_prompt has no effect without --with_prior_preservation" in notes
    assert "--lr_warmup_steps has no effect with --lr_scheduler constant" in notes
    assert "text_encoder_lr" not in notes_on(rate, "--train_text_encoder")
    assert "--validation_prompt is empty" in notes_on("--validation_prompt= ")


def test_validation_after_the_last_step_is_noted_in_advance():
    def note_on(*arguments: str, script=DREAMBOOTH) -> str:
        flags = parse(script, [*NEEDED, "--validation_prompt=a mug", *arguments])
        return "; ".join(make_settings(script, flags, {}).notes)

    assert note_on("--max_train_steps=99") == (
        "--validation_prompt: no image is generated: --validation_steps is 100, and the run ends "
        "at step 99"
    )
    assert note_on("--max_train_steps=100") == ""
    assert "--validation_steps is 9," in note_on("--max_train_steps=8", "--validation_steps=9")
    assert note_on("--max_train_steps=2", script=DREAMBOOTH_LORA) == ""  # validates at its end


def test_flags_of_other_model_families_are_refused():
    text = problems(DREAMBOOTH, *NEEDED, "--class_labels_conditioning", "timesteps")
    assert "DeepFloyd IF" in text
    text = problems(DREAMBOOTH_LORA_SDXL, *NEEDED, "--dataset_name=x")
    assert "--instance_data_dir" in text


@pytest.mark.parametrize(
    "script",
    [DREAMBOOTH, DREAMBOOTH_LORA, DREAMBOOTH_LORA_SDXL, DREAMBOOTH_FLAX],
    ids=lambda script: script.name,
)
def test_refused_flags_come_with_their_reason(script):
    assert script.refused
    text = problems(script, *NEEDED, *(f"--{name}=x" for name in script.refused))
    assert text.splitlines() == [
        f"--{n}: not supported: {why}" for n, why in script.refused.items()
    ]


def test_separate_vae_is_refused_with_the_reason():
    for script, name in (
        (DREAMBOOTH_LORA_SDXL, "pretrained_vae_model_name_or_path"),
        (DREAMBOOTH_FLAX, "pretrained_vae_name_or_path"),
    ):
        text = problems(script, *NEEDED, f"--{name}=owner/vae-fp16-fix")
        assert (
            f"--{name}: not supported: omit it: the model's own VAE encodes photos in fp32" in text
        )


def test_text_encoder_weight_decay_is_refused():
    text = problems(DREAMBOOTH_LORA_SDXL, *NEEDED, "--adam_weight_decay_text_encoder=1e-3")
    assert "--adam_weight_decay (default 1e-4) applies to the adapters of all" in text
    assert "1e-3 for the text encoders" in text
    both = train_settings("--train_text_encoder", script=DREAMBOOTH_LORA_SDXL)
    assert both.adam_weight_decay == 1e-4


def test_8bit_adam_under_deepspeed_is_refused():
    env = {"ACCELERATE_USE_DEEPSPEED": "true"}
    text = problems(DREAMBOOTH, *NEEDED, "--use_8bit_adam", env=env)
    assert "8-bit Adam does not work with DeepSpeed" in text


def test_validation_under_fsdp_is_refused():
    env = {"ACCELERATE_USE_FSDP": "true"}
    text = problems(DREAMBOOTH, *NEEDED, "--validation_prompt=a mug", env=env)
    assert "no process can generate images alone while FSDP splits the networks" in text


def test_scale_lr_multiplies_by_batch_accumulation_and_processes():
    flags = ["--learning_rate=1e-6", "--train_batch_size=2", "--gradient_accumulation_steps=3"]
    settings = train_settings(*flags, "--scale_lr", env={"WORLD_SIZE": "4", "RANK": "1"})
    assert settings.learning_rate == pytest.approx(24e-6)
    assert settings.num_processes == 4


def test_launcher_precision_is_the_default():
    env = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert train_settings(env=env).mixed_precision == "bf16"
    assert train_settings("--mixed_precision=no", env=env).mixed_precision == "no"
    assert train_settings().mixed_precision == "no"


def test_constant_scheduler_ignores_the_default_warmup():
    assert train_settings().lr_warmup_steps == 0
    assert train_settings("--lr_scheduler=linear").lr_warmup_steps == 500


def test_offset_noise_is_a_switch_of_strength_a_tenth():
    assert train_settings("--offset_noise").offset_noise == 0.1
    assert train_settings().offset_noise == 0.0


def test_lora_alpha_defaults_to_the_rank():
    lora = train_settings("--rank=8", script=DREAMBOOTH_LORA).lora
    assert lora is not None
    assert (lora.rank, lora.lora_alpha) == (8, 8.0)
    assert lora.lora_layers == ("to_k", "to_q", "to_v", "to_out.0")
    given = train_settings(
        "--lora_alpha=2", "--lora_layers=to_q, to_v", script=DREAMBOOTH_LORA
    ).lora
    assert given is not None
    assert (given.lora_alpha, given.lora_layers) == (2.0, ("to_q", "to_v"))


@pytest.mark.parametrize(
    ("script", "given", "found", "expected"),
    [
        (DREAMBOOTH, [], 7, 7), (DREAMBOOTH_FLAX, [], 7, 7), (DREAMBOOTH_FLAX, [], None, 0),
        (DREAMBOOTH, ["--seed=3"], 7, 3), (DREAMBOOTH_FLAX, ["--seed=0"], 7, 0),
    ],
)  # fmt: skip
def test_resume_uses_the_checkpoints_seed_unless_given_one(
    script, given, found, expected, monkeypatch
):
    monkeypatch.setattr(
        "dreambooth_core.scripts.settings._num_replicas", lambda *_: 1
    )  # without JAX
    settings = make_settings(script, parse(script, [*NEEDED, *given]), {})
    record = ScriptCheckpoint(step=2, method="full", settings={"seed": found}, files={})
    assert resume.seed_of(settings, None if found is None else (Path(), record)) == expected


def test_epoch_is_larger_set_over_batch_processes_and_accumulation():
    flags = [*NEEDED, *PRIOR, "--train_batch_size=2", "--gradient_accumulation_steps=2"]
    settings = make_settings(DREAMBOOTH, parse(DREAMBOOTH, flags), {})
    assert settings.steps_per_epoch(num_instance=5, num_class=0) == 2  # 3 batches, 2 an update
    assert settings.steps_per_epoch(num_instance=5, num_class=20) == 5


def test_hub_token_appears_in_no_error():
    text = problems(DREAMBOOTH, *NEEDED, "--hub_token=", "--seed=-1")
    assert "hub_token" not in text
    assert "--seed: Input should be greater than or equal to 0, found '-1'" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--nonsense", "1"], "error: --nonsense: unknown flag"),
        ([*NEEDED[1:], "--pretrained_model_name_or_path=no/such/model"], "error: --pretrained"),
        ([NEEDED[0], NEEDED[2], "--instance_data_dir=tests"], "error: --instance_data_dir: no"),
    ],
    ids=["flag", "model", "photos"],
)
def test_wrong_flags_do_not_import_torch(arguments, error):
    code = (
        f"import sys, runpy; sys.argv = ['x', *{arguments!r}]\n"
        "try: runpy.run_path('train_dreambooth.py', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert error in done.stderr
