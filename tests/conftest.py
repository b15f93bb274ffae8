"""Shared by all tests: an offline environment without telemetry, and session-wide tiny models."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # spinning threads on a busy machine take ten times as long
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "DVC_CHECK_UPDATE": "false",
    "GIT_CONFIG_NOSYSTEM": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp/mpl-dreambooth-tests",
}
os.environ.update(ENVIRONMENT)

import pytest  # noqa: E402 - libraries read the environment at import
import torch  # noqa: E402

from tests import tiny_models  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny StableDiffusionPipeline (epsilon, PNDM, 64 px). Never write into it."""
    return tiny_models.build_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_sd` with v-prediction and DPM-Solver++. Never write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd-v"
    return tiny_models.build_tiny_sd(folder, prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pipeline like Stable Diffusion 2.x. Never write into it."""
    return tiny_models.build_tiny_sd2(tmp_path_factory.mktemp("models") / "tiny-sd2")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny StableDiffusionXLPipeline. Never write into it."""
    return tiny_models.build_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIPModel with its processor. Never write into it."""
    return tiny_models.build_tiny_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny ViTModel with its image processor. Never write into it."""
    return tiny_models.build_tiny_dino(tmp_path_factory.mktemp("models") / "tiny-dino")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A writable folder with four distinct 96 px photos."""
    return tiny_models.build_photos(tmp_path / "photos")
