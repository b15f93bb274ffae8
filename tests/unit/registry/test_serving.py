from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from dreambooth_core.config import LoraSettings
from dreambooth_core.models import load, lora, sampling
from dreambooth_core.registry import aliases, package, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, Decision
from dreambooth_core.registry.tracking import as_default
from tests.unit.registry import examples
from tests.unit.registry.examples import BLOCK, GUIDANCE, MODEL, SIDE, STEPS

PROMPTS = ("a photo of sks mug", "a red robot in the snow", "a photo of a dog on the beach")


def picture(text: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        image.load()
        return image


def evaluated(folder: Path, prompts, seeds) -> list[Image.Image]:
    """The images as the evaluation draws them."""
    pipe = load.load_pipeline_folder(folder, device=torch.device("cpu"))
    return sampling.sample(
        pipe,
        prompts=prompts,
        seeds=seeds,
        steps=STEPS,
        guidance=GUIDANCE,
        resolution=SIDE,
        batch_size=BLOCK,
    )


@pytest.fixture(scope="module")
def packed(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("packed")
    with package.packed(
        tiny_sd,
        serving=examples.serving(),
        metadata={},
        prompt=PROMPTS[0],
        scratch=scratch / "work",
    ) as model:
        return model.rename(scratch / "model")


@pytest.fixture(scope="module")
def served(packed: Path):
    return mlflow.pyfunc.load_model(str(packed))


def test_served_model_reproduces_every_evaluation_image_bit_for_bit(served, tiny_sd) -> None:
    prompts = [PROMPTS[i % 3] for i in range(6)]  # one full block and one that is filled up
    seeds = list(range(10, 16))
    expected = evaluated(tiny_sd, prompts, seeds)
    requests = [{"prompt": p, "seed": s} for p, s in zip(prompts, seeds, strict=True)]
    got = [picture(text) for text in served.predict(requests)]
    assert [image.tobytes() for image in got] == [image.tobytes() for image in expected]


def test_input_example_is_a_request_that_the_model_serves(packed, served) -> None:
    example = json.loads((packed / "input_example.json").read_text())
    assert example == [{"prompt": PROMPTS[0], "seed": 0}]
    [text] = served.predict(example)
    assert picture(text).size == (SIDE, SIDE)


def test_single_request_reproduces_an_image_scored_in_a_block(served, tiny_sd) -> None:
    expected = evaluated(tiny_sd, PROMPTS, [1, 2, 3])
    for prompt, seed, image in zip(PROMPTS, [1, 2, 3], expected, strict=True):
        [text] = served.predict([{"prompt": prompt, "seed": seed}])
        assert picture(text).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "photo " * 90}, r"the prompt does not fit .* found: 92 tokens; allowed: 77"),
        ({"prompt": "a mug", "negative_prompt": "photo " * 90}, "the negative prompt does not fit"),
        ({"prompt": " "}, "the prompt is empty"),
    ],
)
def test_prompts_that_would_be_cut_or_are_empty_are_refused(served, request_, message) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict([{"prompt": "a mug"}, request_])
    assert caught.value.get_http_status_code() == 400


def test_bytes_depend_on_the_seed(served) -> None:
    one, two, other = (
        served.predict([{"prompt": PROMPTS[0], "seed": seed}])[0] for seed in (5, 5, 6)
    )
    assert one == two != other


def test_num_images_of_a_request_have_consecutive_seeds(served) -> None:
    three = served.predict([{"prompt": PROMPTS[0], "seed": 5, "num": 3}])
    assert three[1] == served.predict([{"prompt": PROMPTS[0], "seed": 6}])[0]
    assert len(set(three)) == 3


def test_requests_with_different_steps_do_not_disturb_each_other(served) -> None:
    mixed = served.predict(
        [
            {"prompt": PROMPTS[0], "seed": 1},
            {"prompt": PROMPTS[0], "seed": 1, "steps": STEPS + 1},
            {"prompt": PROMPTS[1], "seed": 2, "negative_prompt": "blurry"},
        ]
    )
    alone = served.predict([{"prompt": PROMPTS[0], "seed": 1, "steps": STEPS + 1}])
    plain = served.predict([{"prompt": PROMPTS[1], "seed": 2}])
    assert mixed[1] == alone[0] != mixed[0]
    assert mixed[2] != plain[0]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"prompt": "x", "guidence": 3}, "Extra inputs are not permitted"),
        ({"seed": 1}, "Field required"),
        ({"prompt": "x", "num": 1000}, "less than or equal to 64"),
    ],
)
def test_a_wrong_request_is_refused_in_words(served, wrong: dict, text: str) -> None:
    with pytest.raises(MlflowException, match=text):
        served.predict([wrong])


def test_packed_model_has_no_pickle_and_no_local_path(packed, tiny_sd) -> None:
    suffixes = {path.suffix for path in packed.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".safetensors", ".py", ".yaml", ".txt"}
    text = (packed / "MLmodel").read_text()
    assert str(packed.parent) not in text
    assert str(tiny_sd) not in text
    assert str(Path(package.__file__).parent) not in text


def test_champion_loads_by_alias_without_this_project_or_pickle(
    tracking, run, tiny_sd, tmp_path
) -> None:
    candidate = examples.candidate(tiny_sd)
    versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
    aliases.set_tags(tracking, name=MODEL, version=1, tags={PARITY: PARITY_PASSED})
    why = Decision(who="ada", when="now", why="first")
    aliases.promote(tracking, name=MODEL, version=1, decision=why, expected=None)
    program = f"""
import sys
sys.modules["dreambooth_core"] = None  # importing it would fail from here on
import torch, mlflow
torch.set_num_threads(1)
mlflow.set_tracking_uri({tracking.uri!r})
model = mlflow.pyfunc.load_model("models:/{MODEL}@champion")
sys.stdout.write(model.predict([{{"prompt": {PROMPTS[0]!r}, "seed": 7}}])[0])
"""
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    ).stdout
    assert picture(output).tobytes() == evaluated(tiny_sd, PROMPTS[:1], [7])[0].tobytes()


def test_default_store_is_restored_with_the_environment(tracking, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    with as_default(tracking):
        assert mlflow.get_tracking_uri() == tracking.uri
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere.db"
    assert mlflow.get_tracking_uri() == "sqlite:////elsewhere.db"


def test_lora_weights_are_served_on_their_base_model(tiny_sd, tmp_path) -> None:
    adapter = tmp_path / "export"
    adapter.mkdir()
    write_random_lora(tiny_sd, adapter)
    serving = examples.serving(base_model=str(tiny_sd))
    with package.packed(
        adapter, serving=serving, metadata={}, prompt=PROMPTS[0], scratch=tmp_path
    ) as model:
        served = mlflow.pyfunc.load_model(str(model))
    [text] = served.predict([{"prompt": PROMPTS[0], "seed": 3}])
    pipe = load.load_pipeline_folder(tiny_sd, device=torch.device("cpu"))
    pipe.load_lora_weights(str(adapter), weight_name="pytorch_lora_weights.safetensors")
    [expected] = sampling.sample(
        pipe, prompts=PROMPTS[:1], seeds=[3], steps=STEPS, guidance=GUIDANCE,
        resolution=SIDE, batch_size=BLOCK,
    )  # fmt: skip
    assert picture(text).tobytes() == expected.tobytes()
    assert picture(text).tobytes() != evaluated(tiny_sd, PROMPTS[:1], [3])[0].tobytes()


def test_sdxl_is_served_as_scored_with_and_without_adapters(tiny_sdxl, tmp_path) -> None:
    cpu = torch.device("cpu")
    adapter = tmp_path / "export"
    parts = {}
    settings = LoraSettings(rank=4, lora_alpha=6.0, lora_dropout=0.0, lora_layers=("to_q", "to_v"))
    trained = load.load_pipeline_folder(tiny_sdxl, device=cpu)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        parts[part] = getattr(trained, part)
        lora.add_adapter(parts[part], settings, part=part, seed=1)
        for weight in lora.adapter_parameters(parts[part]):
            weight.data += 0.3
    lora.write_adapter(parts, adapter)
    pipe = load.load_pipeline_folder(tiny_sdxl, device=cpu)
    for folder, base in ((tiny_sdxl, None), (adapter, str(tiny_sdxl))):
        serving = examples.serving(base_model=base)
        with package.packed(
            folder, serving=serving, metadata={}, prompt=PROMPTS[0], scratch=tmp_path
        ) as model:
            served = mlflow.pyfunc.load_model(str(model))
        if base:
            pipe.load_lora_weights(str(adapter))
        [expected] = sampling.sample(
            pipe, prompts=PROMPTS[:1], seeds=[3], steps=STEPS, guidance=GUIDANCE,
            resolution=SIDE, batch_size=BLOCK,
        )  # fmt: skip
        requests = [{"prompt": PROMPTS[0], "seed": 3}, {"prompt": "x", "negative_prompt": "y"}]
        [text, _] = served.predict(requests)
        assert picture(text).tobytes() == expected.tobytes()


def test_lora_weights_without_base_model_raise_with_the_fix(tiny_sd, tmp_path) -> None:
    adapter = tmp_path / "export"
    adapter.mkdir()
    write_random_lora(tiny_sd, adapter)
    serving = examples.serving(base_model=str(tmp_path / "gone"))
    with (
        package.packed(
            adapter, serving=serving, metadata={}, prompt=PROMPTS[0], scratch=tmp_path
        ) as model,
        pytest.raises(FileNotFoundError, match="say where it is: mlflow"),
    ):
        mlflow.pyfunc.load_model(str(model))


def write_random_lora(base: Path, folder: Path) -> None:
    """Adapters with weights large enough to change every picture."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = load.load_pipeline_folder(base, device=torch.device("cpu")).unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    source = torch.Generator().manual_seed(0)
    noisy = {key: torch.randn(value.shape, generator=source) for key, value in state.items()}
    StableDiffusionPipeline.save_lora_weights(str(folder), unet_lora_layers=noisy)
