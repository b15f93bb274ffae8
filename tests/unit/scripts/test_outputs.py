"""What becomes of what is in output_dir already."""

from __future__ import annotations

from tests.unit.scripts.command import run


def test_file_in_place_of_a_component_is_refused_before_training(tiny_sd, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "vae").write_text("mine")
    (out / "model_index.json").mkdir()
    assert run(tiny_sd, photos, out) == 2
    assert "in the way of the result; found: vae, model_index.json" in capsys.readouterr().err
    assert (out / "vae").read_text() == "mine"
    assert not (out / "unet").exists()


def test_older_result_is_replaced_and_other_files_stay(tiny_sd, photos, tmp_path):
    out = tmp_path / "out"
    shard = out / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    (out / "unet" / "notes").mkdir(parents=True)
    shard.write_bytes(b"of an older result")
    (out / "unet" / "notes" / "mine.txt").write_text("mine")
    assert run(tiny_sd, photos, out) == 0
    assert not shard.exists()
    assert (out / "unet" / "notes" / "mine.txt").read_text() == "mine"
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size > 1000
