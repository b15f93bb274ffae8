"""Compare our trainer with diffusers' script on the same model, data, settings and machine.

    python -m benchmarks.train --baseline PATH/train_dreambooth.py [--parts steps,start] [--json]

`--baseline` is `examples/dreambooth/train_dreambooth.py` of huggingface/diffusers (58eb52c for the
published results). Parts:

    steps         seconds per training step at equal settings, and the held-out loss of both
    start         seconds from the command to the first completed step
    class-images  seconds per class image, and the quality of the images
    quality       seconds from the command to the DINO score of the baseline's best checkpoint

The two commands run in turn. The results hold wall time and CPU time; other load on the machine
affects CPU time less. Each ratio is the baseline's time divided by ours: above 1, ours is faster.
`--workspace` caches results, so a stopped run resumes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks import quality as time_to_quality
from benchmarks.common import ROOT
from benchmarks.timed_command import Run, rounded_median, run_timed

SUBJECT, NOUN = "mug-stripes", "mug"
WARM_UP_STEPS, TIMED_STEPS = 20, 150
LEARNING_RATE = 1e-4
NUM_CLASS = 48
NUM_CLASS_DOCUMENTED = 200  # in the guide's command
FEW, MANY = 16, 80  # class images; the difference excludes the startup time


@dataclass(frozen=True)
class Bench:
    """The baseline script, the base model and the folder of results."""

    script: Path
    workspace: Path
    model: Path
    threads: int = 1

    def command(self, side: str, flags: dict[str, Any]) -> list[str]:
        """The command line of one side: `accelerate launch` with the same flags."""
        scripts = {
            "baseline": [str(ROOT / "benchmarks" / "run_baseline.py"), str(self.script)],
            "ours": [str(ROOT / "train_dreambooth.py")],
        }
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launch += [] if common.has_gpu() else ["--cpu"]
        return [*launch, *scripts[side], *_as_options(flags)]

    def run(self, side: str, flags: dict[str, Any]) -> Run:
        """Run one side to completion."""
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        env = {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}
        return run_timed(self.command(side, flags), cwd=self.workspace, env=env)

    def flags(self, side: str, **changes: Any) -> dict[str, Any]:
        """The flags of one side; only the folders differ between the sides."""
        flags: dict[str, Any] = {
            "pretrained_model_name_or_path": self.model,
            "instance_data_dir": ROOT / "examples" / SUBJECT,
            "class_data_dir": self.workspace / f"class-{side}",
            "output_dir": self.workspace / f"out-{side}",
            "with_prior_preservation": True,
            "prior_loss_weight": 1.0,
            "instance_prompt": f"a photo of sks {NOUN}",
            "class_prompt": f"a photo of {NOUN}",
            "resolution": 64,
            "center_crop": True,
            "train_batch_size": 1,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "num_class_images": NUM_CLASS,
            "max_train_steps": WARM_UP_STEPS + TIMED_STEPS,
            "checkpointing_steps": 100_000,
            "seed": 0,
        }
        return {**flags, **changes}


def _as_options(flags: dict[str, Any]) -> list[str]:
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags.items()
        if value is not None and value is not False
    ]


def in_turns(repeats: int, run: Callable[[str], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Run both sides in turn, `repeats` times each; returns the medians of each side."""
    taken: dict[str, list[dict[str, float]]] = {"baseline": [], "ours": []}
    for _ in range(repeats):
        for side, figures in taken.items():
            figures.append(run(side))
    return {
        side: {name: rounded_median([one[name] for one in figures]) for name in figures[0]}
        for side, figures in taken.items()
    }


def fill_class_images(bench: Bench) -> None:
    """Copy the same class images into both sides' folders."""
    for side in ("baseline", "ours"):
        folder = bench.workspace / f"class-{side}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(common.class_images(bench.workspace, bench.model, NUM_CLASS), folder)


def steps(bench: Bench, repeats: int) -> dict[str, Any]:
    """Seconds per step at equal settings, and the loss on held-out noise."""

    def one(side: str) -> dict[str, float]:
        fill_class_images(bench)
        shutil.rmtree(bench.workspace / f"out-{side}", ignore_errors=True)
        run = bench.run(side, bench.flags(side))
        wall, cpu = run.seconds_per_step(after=WARM_UP_STEPS)
        loss = common.held_out_loss(
            bench.workspace / f"out-{side}" / "unet", bench.model, subject=SUBJECT, noun=NOUN
        )
        return {"wall_s": wall, "cpu_s": cpu, "held_out_loss": loss}

    sides = in_turns(repeats, one)
    base = common.held_out_loss(bench.model / "unet", bench.model, subject=SUBJECT, noun=NOUN)
    return {**sides, "held_out_loss_step_0": round(base, 4), **ratios(sides)}


def start(bench: Bench, repeats: int) -> dict[str, Any]:
    """Seconds to the first completed step, with and without existing class images."""

    def one(side: str, *, existing: bool, num: int) -> dict[str, float]:
        fill_class_images(bench)
        if not existing:
            shutil.rmtree(bench.workspace / f"class-{side}")
        shutil.rmtree(bench.workspace / f"out-{side}", ignore_errors=True)
        flags = bench.flags(side, max_train_steps=2, num_class_images=num)
        line = bench.run(side, flags).first_step()
        return {"wall_s": line.wall_s, "cpu_s": line.cpu_s}

    cases = {
        f"{NUM_CLASS} class images there": (True, NUM_CLASS),
        f"{NUM_CLASS} class images to make": (False, NUM_CLASS),
        f"{NUM_CLASS_DOCUMENTED} class images to make, as documented": (
            False,
            NUM_CLASS_DOCUMENTED,
        ),
    }
    return {
        case: _start(repeats, functools.partial(one, existing=existing, num=num))
        for case, (existing, num) in cases.items()
    }


def _start(repeats: int, one: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    sides = in_turns(repeats, one)
    return {**sides, **ratios(sides)}


def class_images(bench: Bench, repeats: int) -> dict[str, Any]:
    """Seconds per class image with each side's documented settings, and the images' quality."""

    def seconds(side: str, num: int) -> tuple[float, float]:
        for kind in ("class", "out"):
            shutil.rmtree(bench.workspace / f"{kind}-{side}", ignore_errors=True)
        flags = bench.flags(side, num_class_images=num, max_train_steps=1)
        line = bench.run(side, flags).first_step()
        return line.wall_s, line.cpu_s

    def one(side: str) -> dict[str, float]:
        few, many = seconds(side, FEW), seconds(side, MANY)
        wall, cpu = ((late - early) / (MANY - FEW) for early, late in zip(few, many, strict=True))
        return {"wall_s": wall, "cpu_s": cpu}

    sides = in_turns(repeats, one)
    image_quality = {
        side: common.class_image_quality(bench.workspace / f"class-{side}", bench.model, noun=NOUN)
        for side in ("baseline", "ours")
    }
    return {**sides, **ratios(sides), "likeness": image_quality}


def ratios(sides: dict[str, dict[str, float]]) -> dict[str, float]:
    """The baseline's time divided by ours."""
    baseline, ours = sides["baseline"], sides["ours"]
    return {
        "ratio": round(baseline["wall_s"] / ours["wall_s"], 3),
        "ratio_cpu": round(baseline["cpu_s"] / ours["cpu_s"], 3),
    }


def quality(bench: Bench, repeats: int) -> dict[str, Any]:
    """Time to the DINO score of the baseline's best checkpoint, one run per subject and seed."""
    del repeats
    return time_to_quality.measure(bench)


PARTS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "steps": steps,
    "start": start,
    "class-images": class_images,
    "quality": quality,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workspace", type=Path, default=ROOT / ".state" / "bench-train")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    workspace = arguments.workspace.resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    model = common.base_model(workspace)
    bench = Bench(arguments.baseline.resolve(), workspace, model, threads=arguments.threads)
    results: dict[str, Any] = {"machine": common.machine(arguments.threads)}
    for part in arguments.parts.split(","):
        print(f"--- {part}", file=sys.stderr, flush=True)
        results[part] = PARTS[part](bench, arguments.repeats)
        print(json.dumps(results[part], indent=2), file=sys.stderr, flush=True)
    if "steps" in results:
        results["ratio"] = results["steps"]["ratio"]
    if "quality" in results:
        results["time_to_quality"] = results["quality"]["ratio"]
    print(json.dumps(results, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
