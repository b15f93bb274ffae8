"""The peer's own tests of its DreamBooth scripts, pointed at ours.

    python benchmarks/peer_tests.py --peer PATH [--only TEXT]

`--peer` is a checkout of huggingface/diffusers (58eb52c was used). Its test files are copied to a
temporary folder; there the hub's tiny pipelines become tiny ones of our own, the folder of pictures
becomes four drawn ones, and the scripts become those of this project. Nothing of theirs is kept.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEST_FILES = ("test_dreambooth.py", "test_dreambooth_lora.py")
NOT_RUN = {
    "test_dreambooth_if": "DeepFloyd IF is not trained here",
    "test_dreambooth_lora_if_model": "DeepFloyd IF is not trained here",
    "test_dreambooth_lora_sdxl_custom_captions": "its data set is on the hub",
    "test_dreambooth_lora_sdxl_text_encoder_custom_captions": "its data set is on the hub",
}
SCRIPT = re.compile(r"examples/dreambooth/(train_dreambooth\w*\.py)")


def point_at_ours(peer: Path, folder: Path) -> None:
    """Copy the tests into `folder`, with our scripts, models and pictures in them."""
    from tests import tiny_models

    models = {
        "hf-internal-testing/tiny-stable-diffusion-torch": tiny_models.build_tiny_sd(folder / "sd"),
        "hf-internal-testing/tiny-stable-diffusion-xl-pipe": tiny_models.build_tiny_sdxl(
            folder / "sdxl"
        ),
        "docs/source/en/imgs": tiny_models.build_photos(folder / "pictures"),
    }
    tests = folder / "tests"
    tests.mkdir()
    examples = peer / "examples"
    for source in (examples / "test_examples_utils.py", *_test_files(examples)):
        text = SCRIPT.sub(lambda found: str(ROOT / found[1]), source.read_text())
        for theirs, ours in models.items():
            text = text.replace(theirs, str(ours))
        (tests / source.name).write_text(text)


def _test_files(examples: Path) -> list[Path]:
    return [examples / "dreambooth" / name for name in TEST_FILES]


def run_tests(folder: Path, only: str | None) -> dict[str, str]:
    """The outcome of every test by name: passed, or the last lines of why not."""
    report = folder / "report.xml"
    left_out = " and ".join(f"not {name}" for name in NOT_RUN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "-k", f"({only}) and {left_out}" if only else left_out]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PYTHONPATH": path, "PATH": binaries, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *TEST_FILES], cwd=folder / "tests", env=env, check=False)
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        broken = [*case.iter("failure"), *case.iter("error")]
        reason = (broken[0].text or "").strip().splitlines()[-1] if broken else ""
        outcomes[case.attrib["name"]] = f"FAILED: {reason}" if broken else "passed"
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--only", help="pytest's -k expression")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        point_at_ours(arguments.peer.resolve(), Path(name))
        outcomes = run_tests(Path(name), arguments.only)
    for test, outcome in outcomes.items():
        print(f"{test}: {outcome}")
    for test, reason in NOT_RUN.items():
        print(f"{test}: not run, {reason}")
    return 0 if outcomes and all(each == "passed" for each in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
