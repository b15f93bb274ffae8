"""Five fixed-seed steps: a change that does not mean to change the training leaves them alone.

When they must move, raise `versions.train` in params.yaml with them, so that old results are stale.
"""

import csv

import pytest

from tests.unit.training import tiny
from tests.unit.training.conftest import fresh_accelerate_state

__all__ = ["fresh_accelerate_state"]

GOLDEN = {
    "full": [2.15999365, 2.18090725, 1.98208463, 1.91703737, 1.86037791],
    "min-SNR": [1.96535301, 1.86437488, 2.00484705, 1.57903254, 1.59254253],
    "adapter": [2.15999365, 2.27837038, 2.11664605, 2.16285849, 2.23538852],
    "text encoder": [2.14194393, 2.15030289, 1.93103397, 1.92122328, 1.86133981],
    "SDXL, adapters on all": [2.43008757, 2.29716253, 2.31398821, 2.33212805, 2.36632085],
}
SETTINGS = {
    "full": {},
    "min-SNR": {"snr_gamma": 5.0, "offset_noise": 0.1, "gradient_accumulation_steps": 2},
    "adapter": {"method": "lora", "lora": tiny.LORA},
    "text encoder": {"train_text_encoder": True, "text_encoder_lr": 1e-4},
    "SDXL, adapters on all": {"method": "lora", "lora": tiny.LORA, "train_text_encoder": True},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_of_five_steps_are_the_recorded_ones(name, tmp_path, tiny_sd, tiny_sdxl):
    base = tiny_sdxl if name.startswith("SDXL") else tiny_sd
    job = tiny.make_job(tmp_path, base, max_train_steps=5, **SETTINGS[name])
    tiny.train(job)
    rows = list(csv.DictReader((job.out_dir / "metrics.csv").open()))
    assert [float(row["loss"]) for row in rows] == pytest.approx(GOLDEN[name], abs=1e-5)
