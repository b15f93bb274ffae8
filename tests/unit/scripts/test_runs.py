"""What a script's run leaves behind, on a tiny model."""

import csv
import io
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_core import files
from dreambooth_core.scripts import checkpoints, shared_weights
from dreambooth_core.scripts.checkpoints import ScriptCheckpoint
from dreambooth_core.scripts.flags import DREAMBOOTH, DREAMBOOTH_LORA
from dreambooth_core.supervision import free_port
from tests.flushes import Flushes
from tests.unit.scripts.command import prior, run

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UPLOAD = {"push_to_hub": True, "hub_token": "hf_secret", "hub_model_id": "me/mug"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_run_saves_a_pipeline_and_checkpoints_that_load_as_documented(tiny_sd, photos, tmp_path):
    out = tmp_path / "out"
    assert run(tiny_sd, photos, out, max_train_steps=5, checkpointing_steps=2) == 0
    assert names(out) == [
        "checkpoint-2", "checkpoint-4", "model_index.json", "scheduler", "text_encoder",
        "tokenizer", "unet", "vae",
    ]  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(out)
    assert pipe("photo", num_inference_steps=1, output_type="pil").images[0].size == (64, 64)
    unet = UNet2DConditionModel.from_pretrained(out / "checkpoint-2" / "unet")
    DiffusionPipeline.from_pretrained(tiny_sd, unet=unet, safety_checker=None)
    base = load_file(tiny_sd / WEIGHTS)["conv_in.weight"]
    moved = [
        (load_file(out / part / WEIGHTS)["conv_in.weight"] - base).abs().max().item()
        for part in ("checkpoint-2", "checkpoint-4", "")
    ]
    assert 1e-4 < moved[0] < moved[1] < moved[2] < 6e-4  # AdamW moves about its rate a step
    assert torch.equal(
        load_file(out / "vae/diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"],
        load_file(tiny_sd / "vae/diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"],
    )
    text = "".join(path.read_text() for path in out.rglob("*.json"))
    assert str(tiny_sd.parent) not in text.replace(json.dumps(str(tiny_sd)), "")


def test_checkpoints_and_result_are_on_the_disk(tiny_sd, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for script in (DREAMBOOTH, DREAMBOOTH_LORA):
        flushes = Flushes(out, monkeypatch)
        assert run(tiny_sd, photos, out, script=script, checkpointing_steps=1) == 0
        assert {"checkpoint-1", "checkpoint-2"} < set(flushes.named)
        assert flushes.named_too_early == flushes.lost_names == []


def test_result_of_a_half_precision_model_samples_as_loaded(tiny_sd, photos, tmp_path):
    model, out = tmp_path / "half", tmp_path / "out"
    StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float16).save_pretrained(model)
    assert run(model, photos, out, max_train_steps=1) == 0
    pipe = StableDiffusionPipeline.from_pretrained(out)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe("photo", num_inference_steps=1).images[0].size == (64, 64)


def test_limit_keeps_the_last_checkpoints_and_resume_takes_the_newest(
    tiny_sd, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    flags = {"checkpointing_steps": 1, "max_train_steps": 3}
    assert run(tiny_sd, photos, out, **flags, checkpoints_total_limit=2) == 0
    assert names(out)[:2] == ["checkpoint-2", "checkpoint-3"]
    (out / "checkpoint-3" / WEIGHTS).write_bytes(b"cut short")
    (out / "checkpoint-tmp").mkdir()
    flags = {"checkpointing_steps": 2, "max_train_steps": 4, "learning_rate": 2e-4}
    assert run(tiny_sd, photos, out, **flags, resume_from_checkpoint="latest", seed=None) == 0
    said = capsys.readouterr().out
    assert "checkpoint-3 is not whole: passed by" in said
    assert "resuming from checkpoint-2" in said
    assert "another setting than the checkpoint's: learning_rate: 0.0001 -> 0.0002" in said
    assert "seed" not in said.partition("resuming")[2]  # the checkpoint's own goes on
    table = (out / "checkpoint-4" / "training_state" / "metrics.csv").open()
    rates = [float(row["learning_rate"]) for row in csv.DictReader(table)]
    assert rates == pytest.approx([1e-4, 1e-4, 2e-4, 2e-4])


def test_older_checkpoints_are_pruned_only_after_the_new_one_verifies(
    tiny_sd, photos, tmp_path, capsys, monkeypatch
):
    read_whole = checkpoints.read_whole
    monkeypatch.setattr(
        checkpoints,
        "read_whole",
        lambda path: None if path.name == "checkpoint-2" else read_whole(path),
    )
    out, flags = tmp_path / "out", {"checkpointing_steps": 1, "checkpoints_total_limit": 1}
    assert run(tiny_sd, photos, out, **flags, max_train_steps=3) == 1
    assert "checkpoint-2 was written but cannot be read back" in capsys.readouterr().err
    assert read_whole(out / "checkpoint-1") is not None


def test_resumed_run_equals_the_uninterrupted_one(tiny_sd, photos, tmp_path):
    flags = {"max_train_steps": 4, "checkpointing_steps": 2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(tiny_sd, photos, whole, **flags) == 0
    assert run(tiny_sd, photos, resumed, **flags | {"max_train_steps": 2}) == 0
    assert run(tiny_sd, photos, resumed, **flags, resume_from_checkpoint="checkpoint-2") == 0
    assert files.sha256_file(whole / WEIGHTS) == files.sha256_file(resumed / WEIGHTS)


def test_checkpoint_stores_each_weight_once_and_resumes_from_older_layout(
    tiny_sd, photos, tmp_path
):
    flags = {"train_text_encoder": True, "max_train_steps": 4, "checkpointing_steps": 2}
    new, old = tmp_path / "new", tmp_path / "old"
    assert run(tiny_sd, photos, new, **flags) == 0
    state = new / "checkpoint-2" / "training_state"
    assert names(state) == ["beside.json", "metrics.csv", "optimizer.safetensors"]
    moments = load_file(state / "optimizer.safetensors")
    assert set(json.loads((state / "beside.json").read_text())) == {
        name.partition("|")[0] for name in moments
    }
    shutil.copytree(new / "checkpoint-2", old / "checkpoint-2")
    _store_twice(old / "checkpoint-2")
    undisturbed = _networks(new)
    for out in (new, old):
        assert run(tiny_sd, photos, out, **flags, resume_from_checkpoint="checkpoint-2") == 0
        assert _networks(out) == undisturbed
        assert not (out / ".dreambooth").exists()


def _networks(out):
    return [files.tree_hashes(out / part) for part in ("unet", "text_encoder")]


def _store_twice(checkpoint):
    """What this project's checkpoints were: the state with all weights in a file of its own."""
    state = checkpoint / "training_state"
    weights = shared_weights.read_weights(state, checkpoint=checkpoint, trained=())
    save_file(weights, state / "weights.safetensors")
    (state / "beside.json").unlink()
    record = ScriptCheckpoint.read(checkpoint)
    (checkpoint / "record.json").unlink()
    record.model_copy(update={"files": files.tree_hashes(checkpoint)}).write(checkpoint)


def test_resume_at_the_last_step_reports_nothing_left_to_train(tiny_sd, photos, tmp_path, capsys):
    assert run(tiny_sd, photos, tmp_path / "out", checkpointing_steps=2) == 0
    flags = {"resume_from_checkpoint": "latest", "max_train_steps": 1}
    assert run(tiny_sd, photos, tmp_path / "out", **flags) == 0
    said = capsys.readouterr().out
    assert (
        "nothing is left to train, as --max_train_steps is 1: the weights of checkpoint-2" in said
    )


def test_unusable_folders_and_tokenizers_are_refused(tiny_sd, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out, flags, error in (
        ("file/out", {}, "--output_dir: "),
        ("out", prior(tmp_path / "file" / "class", 2), "--class_data_dir: "),
        ("out", {"tokenizer_name": photos}, "holds no tokenizer"),
        ("out", {"tokenizer_max_length": 500}, "found: 500; allowed: up to 77"),
    ):
        assert run(tiny_sd, photos, tmp_path / out, **flags) == 2
        assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"pretrained_model_name_or_path": "no/such/model"}, "does not exist"),
        ({"instance_data_dir": "tests"}, "no photo in"),
        ({"instance_prompt": "a photo " * 60}, "does not fit the text encoder"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"prior": "fp16"}, "fp16 needs a GPU"),
        ({"tokenizer_name": "examples/mug-stripes"}, "holds no tokenizer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_input_leaves_output_dir_as_it_was(flags, error, tiny_sd, photos, tmp_path, capsys):
    if "fp16" in error and torch.cuda.is_available():
        pytest.skip("a GPU can do it")
    if "prior" in flags:
        flags = prior(tmp_path / "class", 2, prior_generation_precision="fp16")
    assert run(tiny_sd, photos, tmp_path / "new" / "out", **flags) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    assert run(tiny_sd, photos, tmp_path / "old", **flags) == 2
    assert names(tmp_path / "old") == ["notes.txt"]


def test_missing_checkpoint_is_refused_with_the_existing_ones(tiny_sd, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(tiny_sd, photos, out, checkpointing_steps=2)
    assert run(tiny_sd, photos, out, resume_from_checkpoint="checkpoint-7") == 2
    error = capsys.readouterr().err
    assert "checkpoint-7 does not exist" in error
    assert "allowed: checkpoint-2, latest" in error


def test_resume_refuses_another_lora_rank(tiny_sd, photos, tmp_path, capsys):
    flags = {"script": DREAMBOOTH_LORA, "checkpointing_steps": 2}
    run(tiny_sd, photos, tmp_path / "out", **flags, rank=2)
    again = {**flags, "rank": 3, "resume_from_checkpoint": "latest", "max_train_steps": 4}
    assert run(tiny_sd, photos, tmp_path / "out", **again) == 2
    assert "holds other weights than are trained now" in capsys.readouterr().err


def test_adapter_is_in_output_dir_and_every_checkpoint(tiny_sd, photos, tmp_path):
    out = tmp_path / "out"
    flags = {"max_train_steps": 3, "checkpointing_steps": 2, "learning_rate": 1e-2}
    assert run(tiny_sd, photos, out, script=DREAMBOOTH_LORA, **flags) == 0
    assert names(out) == ["checkpoint-2", "pytorch_lora_weights.safetensors"]
    for folder in (out, out / "checkpoint-2"):
        keys = load_file(folder / "pytorch_lora_weights.safetensors").keys()
        assert keys
        assert all(key.startswith("unet.") and "lora" in key for key in keys)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(out)


def test_missing_class_images_are_sampled_ignoring_broken_ones(tiny_sd, photos, tmp_path, capsys):
    folder = tmp_path / "class"
    shutil.copytree(photos, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    before = {path.name: files.sha256_file(path) for path in folder.iterdir()}
    assert run(tiny_sd, photos, tmp_path / "out", **prior(folder, 7)) == 0
    after = {path.name: files.sha256_file(path) for path in folder.iterdir()}
    made = sorted(after.keys() - before.keys())
    assert {name: after[name] for name in before} == before
    assert [name[:5] for name in made] == ["00000", "00001", "00002"]
    assert "class image broken.jpg: " in capsys.readouterr().out
    (manifest,) = json.loads((tmp_path / "class.manifest.json").read_text())["sets"]
    assert [(each["file"], each["sha256"]) for each in manifest["images"]] == [
        (name, after[name]) for name in made
    ]
    assert manifest["class_prompt"] == "a photo of a mug"
    assert len({each["seed"] for each in manifest["images"]}) == 3


def test_growing_set_of_class_images_keeps_the_smaller_one(tiny_sd, photos, tmp_path):
    once, grown = tmp_path / "once", tmp_path / "grown"
    run(tiny_sd, photos, tmp_path / "a", **prior(once, 3))
    run(tiny_sd, photos, tmp_path / "b", **prior(grown, 1))
    times = {path.name: path.stat().st_mtime_ns for path in grown.iterdir()}
    run(tiny_sd, photos, tmp_path / "b", **prior(grown, 3))
    assert files.tree_hashes(grown) == files.tree_hashes(once)
    assert len(names(once)) == 3
    assert all((grown / name).stat().st_mtime_ns == time for name, time in times.items())


def test_class_images_of_another_prompt_are_refused(tiny_sd, photos, tmp_path, capsys):
    folder = tmp_path / "class"
    assert run(tiny_sd, photos, tmp_path / "out", **prior(folder, 2)) == 0
    zebra = {**prior(folder, 3), "class_prompt": "a photo of a zebra"}
    assert run(tiny_sd, photos, tmp_path / "out", **zebra) == 2
    error = capsys.readouterr().err
    assert "class images of another prompt" in error
    assert "2 of 'a photo of a mug'" in error
    assert len(names(folder)) == 2  # nothing was added
    assert run(tiny_sd, photos, tmp_path / "out", **prior(folder, 3, seed=2)) == 0
    sets = json.loads((tmp_path / "class.manifest.json").read_text())["sets"]
    assert [len(one["images"]) for one in sets] == [2, 1]  # another seed, another set


def test_only_num_class_images_of_a_folder_are_used(tiny_sd, photos, tmp_path):
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(photos.iterdir())[:2]:
        shutil.copy(path, some)
    hashes = []
    for folder, num in ((some, 2), (photos, 2), (photos, 4)):
        class_dir, out = tmp_path / f"class-{len(hashes)}", tmp_path / f"out-{len(hashes)}"
        shutil.copytree(folder, class_dir)
        assert run(tiny_sd, photos, out, **prior(class_dir, num), max_train_steps=4) == 0
        hashes.append(files.sha256_file(out / WEIGHTS))
        assert files.tree_hashes(class_dir) == files.tree_hashes(folder)
    assert hashes[0] == hashes[1] != hashes[2]


def test_unusable_photo_warns_and_no_usable_photo_exits_with_2(tiny_sd, photos, tmp_path, capsys):
    (photos / "torn.png").write_bytes((photos / "photo-0.png").read_bytes()[:200])
    before = files.tree_hashes(photos)
    assert run(tiny_sd, photos, tmp_path / "out", max_train_steps=1) == 0
    assert "warning: photo torn.png is left out: truncated" in capsys.readouterr().out
    assert files.tree_hashes(photos) == before
    for path in photos.glob("photo-*"):
        path.unlink()
    assert run(tiny_sd, photos, tmp_path / "out", max_train_steps=1) == 2
    error = capsys.readouterr().err
    assert "no photo of your subject can be used" in error
    assert "--instance_data_dir" in error


def test_epochs_set_the_steps_without_max_train_steps(tiny_sd, photos, tmp_path):
    flags = {"max_train_steps": None, "num_train_epochs": 2, "train_batch_size": 2}
    assert run(tiny_sd, photos, tmp_path / "out", **flags, checkpointing_steps=4) == 0
    assert "checkpoint-4" in names(tmp_path / "out")  # 4 photos, 2 a step, twice


def test_epoch_too_short_for_validation_is_noted(tiny_sd, photos, tmp_path, capsys):
    flags = {"max_train_steps": None, "train_batch_size": 4, "validation_prompt": "a mug"}
    assert run(tiny_sd, photos, tmp_path / "out", **flags) == 0
    said = capsys.readouterr().out
    told = "no image is generated: --validation_steps is 100, and the run ends at step 1"
    assert said.count(told) == 1
    assert said.index(told) < said.index("training starts")


def test_curves_and_validation_images_are_in_tensorboard(tiny_sd, photos, tmp_path):
    flags = {"report_to": "tensorboard", "validation_prompt": "a mug", "validation_steps": 2}
    out = tmp_path / "out"
    assert run(tiny_sd, photos, out, **flags, num_validation_images=2, max_train_steps=2) == 0
    events = EventAccumulator(str(out / "logs" / "dreambooth"), size_guidance={"images": 0})
    events.Reload()
    assert [round(each.value, 9) for each in events.Scalars("lr")] == [1e-4, 1e-4]
    assert {each.step for each in events.Scalars("loss")} == {1, 2}
    (picture,) = events.Images("validation")  # two squares side by side
    assert (picture.step, picture.width, picture.height) == (2, 128, 64)
    grid = Image.open(io.BytesIO(picture.encoded_image_string))
    left, right = (grid.crop((x, 0, x + 64, 64)).tobytes() for x in (0, 64))
    assert left != right  # each of its own seed


def test_seed_defaults_to_a_random_one_that_is_logged(tiny_sd, photos, tmp_path, capsys):
    seeds = []
    for name in ("a", "b"):
        run(tiny_sd, photos, tmp_path / name, seed=None, max_train_steps=1)
        said = capsys.readouterr().out
        seeds.append(next(line for line in said.splitlines() if line.startswith("seed ")))
    assert seeds[0] != seeds[1]


def test_fp16_class_images_on_a_cpu_are_refused(tiny_sd, photos, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU can do it")
    flags = prior(tmp_path / "class", 2, prior_generation_precision="fp16")
    assert run(tiny_sd, photos, tmp_path / "out", **flags) == 2
    assert "--prior_generation_precision: fp16 needs a GPU" in capsys.readouterr().err


def test_class_images_are_converted_to_upright_srgb(tiny_sd, photos, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("CMYK", (90, 70), (10, 20, 30, 40)).save(folder / "print.jpg")
    Image.effect_noise((80, 64), 60).save(folder / "grey.png")
    assert run(tiny_sd, photos, tmp_path / "out", **prior(folder, 2), max_train_steps=1) == 0
    assert names(folder) == ["grey.png", "print.jpg"]


def test_impossible_upload_is_refused_before_training(
    tiny_sd, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(tiny_sd, photos, tmp_path / "out", **UPLOAD) == 2
    said = capsys.readouterr()
    assert "--push_to_hub: the repository me/mug cannot be made" in said.err
    assert "hf_secret" not in said.err + said.out
    assert "training starts" not in said.out


def test_upload_without_network_is_refused_before_training(
    tiny_sd, photos, tmp_path, capsys, monkeypatch
):
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", nobody)
    assert run(tiny_sd, photos, tmp_path / "out", **UPLOAD) == 2
    said = capsys.readouterr()
    assert "--push_to_hub: the repository me/mug cannot be made; found: ConnectError: " in said.err
    assert "hf_secret" not in said.err + said.out


def test_attention_mask_and_token_limit_change_the_training(tiny_sd, photos, tmp_path, capsys):
    for is_trained in (None, True):  # embedded once, and at every step
        results = []
        for masks in (None, True):
            out = tmp_path / f"{is_trained}-{masks}"
            flags = {"train_text_encoder": is_trained, "text_encoder_use_attention_mask": masks}
            assert run(tiny_sd, photos, out, max_train_steps=1, **flags) == 0
            results.append(load_file(out / WEIGHTS)["conv_out.weight"])
        assert not torch.equal(*results)
    assert run(tiny_sd, photos, tmp_path / "short", tokenizer_max_length=3) == 2
    assert "does not fit the text encoder; found: 7 tokens; allowed: 3" in capsys.readouterr().err


def test_text_encoder_has_its_own_learning_rate(tiny_sd, photos, tmp_path):
    """AdamW's first update is as large as the rate, whatever the gradient is."""
    out = tmp_path / "out"
    flags = {"train_text_encoder": True, "max_train_steps": 1, "adam_weight_decay": 0.0}
    assert run(tiny_sd, photos, out, learning_rate=1e-4, text_encoder_lr=3e-4, **flags) == 0
    for part, name, rate in (
        ("unet", WEIGHTS, 1e-4),
        ("text_encoder", "text_encoder/model.safetensors", 3e-4),
    ):
        (base,) = (tiny_sd / part).glob("*.safetensors")
        before, after = load_file(base), load_file(out / name)
        moved = max((after[key] - before[key]).abs().max().item() for key in before)
        assert moved == pytest.approx(rate, rel=1e-3), part


def test_text_encoder_adapter_is_saved_with_the_unets(tiny_sd, photos, tmp_path):
    out = tmp_path / "out"
    flags = {"train_text_encoder": True, "max_train_steps": 2, "learning_rate": 1e-2}
    assert run(tiny_sd, photos, out, script=DREAMBOOTH_LORA, **flags) == 0
    keys = load_file(out / "pytorch_lora_weights.safetensors").keys()
    assert {key.split(".")[0] for key in keys} == {"unet", "text_encoder"}
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(out)


def test_resume_with_another_optimizer_keeps_only_the_weights(tiny_sd, photos, tmp_path):
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "out"
    assert run(tiny_sd, photos, out, checkpointing_steps=2) == 0
    flags = {"use_8bit_adam": True, "resume_from_checkpoint": "latest", "max_train_steps": 3}
    assert run(tiny_sd, photos, out, **flags) == 0
    before = load_file(out / "checkpoint-2" / WEIGHTS)["conv_in.weight"]
    moved = (load_file(out / WEIGHTS)["conv_in.weight"] - before).abs().max().item()
    assert 0 < moved < 2e-4
