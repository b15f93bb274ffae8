"""Run diffusers' tests of its DreamBooth scripts against ours.

    python -m benchmarks.baseline_tests --diffusers PATH [--only TEXT] [--json]

PATH is a checkout of huggingface/diffusers (58eb52c for the published results). The tests run from
copies in a temporary folder, with tiny pipelines built here instead of those of the hub, four drawn
photos, and the scripts of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.common import ROOT
from tests import tiny_models

TEST_FILES = ("test_dreambooth.py", "test_dreambooth_lora.py")
SKIPPED = {
    "test_dreambooth_if": "DeepFloyd IF is not supported",
    "test_dreambooth_lora_if_model": "DeepFloyd IF is not supported",
    "test_dreambooth_lora_sdxl_custom_captions": "needs a data set from the hub",
    "test_dreambooth_lora_sdxl_text_encoder_custom_captions": "needs a data set from the hub",
}
SCRIPT = re.compile(r"examples/dreambooth/(train_dreambooth\w*\.py)")


def copy_tests(diffusers: Path, folder: Path) -> None:
    """Copy the tests into `folder`, with paths of our scripts, models and photos."""
    models = {
        "hf-internal-testing/tiny-stable-diffusion-torch": tiny_models.build_tiny_sd(folder / "sd"),
        "hf-internal-testing/tiny-stable-diffusion-xl-pipe": tiny_models.build_tiny_sdxl(
            folder / "sdxl"
        ),
        "docs/source/en/imgs": tiny_models.build_photos(folder / "photos"),
    }
    tests = folder / "tests"
    tests.mkdir()
    examples = diffusers / "examples"
    for source in (examples / "test_examples_utils.py", *_test_files(examples)):
        text = SCRIPT.sub(lambda found: str(ROOT / found[1]), source.read_text())
        for theirs, ours in models.items():
            text = text.replace(theirs, str(ours))
        (tests / source.name).write_text(text)


def _test_files(examples: Path) -> list[Path]:
    return [examples / "dreambooth" / name for name in TEST_FILES]


def run_tests(folder: Path, only: str | None) -> dict[str, str]:
    """The outcome of each test by name: "passed", or the last line of the failure."""
    report = folder / "report.xml"
    skipped = " and ".join(f"not {name}" for name in SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "-k", f"({only}) and {skipped}" if only else skipped]
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
    parser.add_argument("--diffusers", type=Path, required=True)
    parser.add_argument("--only", help="pytest's -k expression")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        copy_tests(arguments.diffusers.resolve(), Path(name))
        outcomes = run_tests(Path(name), arguments.only)
    skipped = {test: f"skipped, {reason}" for test, reason in SKIPPED.items()}
    if arguments.json:
        print(json.dumps({**outcomes, **skipped}))
    else:
        print("\n".join(f"{test}: {outcome}" for test, outcome in {**outcomes, **skipped}.items()))
    return 0 if outcomes and all(each == "passed" for each in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
