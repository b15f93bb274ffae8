"""The trainer against the peer's script: the same model, data, settings and machine, side by side.

    python benchmarks/train.py --baseline PATH/train_dreambooth.py [--parts steps,start] [--json]

`--baseline` is `examples/dreambooth/train_dreambooth.py` of huggingface/diffusers (58eb52c was
measured against). Parts:

    steps         seconds of a training step at equal settings, and that both learn alike
    start         from typing the command to the first completed step
    class-images  class images a second, and that they are as good
    quality       from typing the command to the DINO of the peer's best checkpoint

Wall times of two commands that take turns; their CPU time beside it, which other work on the
machine moves less. Every ratio is the peer's time divided by ours: above 1, ours is faster. What is
measured is kept in `--workspace`, so a run that was stopped goes on.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import measured  # noqa: E402
from watching import Run, middle, watch  # noqa: E402

SUBJECT, NOUN = "mug-stripes", "mug"
WARM_UP_STEPS, TIMED_STEPS = 20, 150
LEARNING_RATE = 1e-4
NUM_CLASS = 48
NUM_CLASS_DOCUMENTED = 200  # of the seed document's command
FEW, MANY = 16, 80  # class images: the difference leaves out what a process needs to start


@dataclass(frozen=True)
class Bench:
    """Where the model and the results are, and what the peer is."""

    peer: Path
    workspace: Path
    model: Path
    threads: int = 1

    def command(self, side: str, flags: dict[str, Any]) -> list[str]:
        """The command line of one side: `accelerate launch` and the same flags."""
        scripts = {
            "peer": [str(ROOT / "benchmarks" / "run_peer.py"), str(self.peer)],
            "ours": [str(ROOT / "train_dreambooth.py")],
        }
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launch += [] if measured.has_gpu() else ["--cpu"]
        return [*launch, *scripts[side], *_as_options(flags)]

    def run(self, side: str, flags: dict[str, Any]) -> Run:
        """Run one side to its end."""
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        env = {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}
        return watch(self.command(side, flags), cwd=self.workspace, env=env)

    def flags(self, side: str, **changes: Any) -> dict[str, Any]:
        """The flags of both sides, with folders of their own."""
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
    """Both sides in turn, `repeats` times each; the median of every figure of each side."""
    taken: dict[str, list[dict[str, float]]] = {"peer": [], "ours": []}
    for _ in range(repeats):
        for side, figures in taken.items():
            figures.append(run(side))
    return {
        side: {name: middle([one[name] for one in figures]) for name in figures[0]}
        for side, figures in taken.items()
    }


def fill_class_images(bench: Bench) -> None:
    """The same class images in both sides' folders."""
    for side in ("peer", "ours"):
        folder = bench.workspace / f"class-{side}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(measured.class_images(bench.workspace, bench.model, NUM_CLASS), folder)


def steps(bench: Bench, repeats: int) -> dict[str, Any]:
    """Seconds of a step at equal settings, and the fall of the loss on held-out noise."""

    def one(side: str) -> dict[str, float]:
        fill_class_images(bench)
        shutil.rmtree(bench.workspace / f"out-{side}", ignore_errors=True)
        run = bench.run(side, bench.flags(side))
        wall, cpu = run.seconds_per_step(after=WARM_UP_STEPS)
        loss = measured.held_out_loss(
            bench.workspace / f"out-{side}" / "unet", bench.model, subject=SUBJECT, noun=NOUN
        )
        return {"wall_s": wall, "cpu_s": cpu, "held_out_loss": loss}

    sides = in_turns(repeats, one)
    base = measured.held_out_loss(bench.model / "unet", bench.model, subject=SUBJECT, noun=NOUN)
    return {**sides, "held_out_loss_step_0": round(base, 4), **ratios(sides)}


def start(bench: Bench, repeats: int) -> dict[str, Any]:
    """From the command to the first completed step: with class images there, and with none."""

    def one(side: str, *, there: bool, num: int) -> dict[str, float]:
        fill_class_images(bench)
        if not there:
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
        case: _start(repeats, functools.partial(one, there=there, num=num))
        for case, (there, num) in cases.items()
    }


def _start(repeats: int, one: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    sides = in_turns(repeats, one)
    return {**sides, **ratios(sides)}


def class_images(bench: Bench, repeats: int) -> dict[str, Any]:
    """Seconds of a class image, each side as its documentation has it, and how good they are."""

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
    looks = {
        side: measured.likeness(bench.workspace / f"class-{side}", bench.model, noun=NOUN)
        for side in ("peer", "ours")
    }
    return {**sides, **ratios(sides), "likeness": looks}


def ratios(sides: dict[str, dict[str, float]]) -> dict[str, float]:
    """The peer's time divided by ours."""
    peer, ours = sides["peer"], sides["ours"]
    return {
        "ratio": round(peer["wall_s"] / ours["wall_s"], 3),
        "ratio_cpu": round(peer["cpu_s"] / ours["cpu_s"], 3),
    }


def quality(bench: Bench, repeats: int) -> dict[str, Any]:
    """Time to the DINO of the peer's best checkpoint (one run per subject and seed)."""
    import quality as time_to_quality

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
    parser.add_argument("--threads", type=int, default=1, help="of each side on a CPU")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    workspace = arguments.workspace.resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    model = measured.base_model(workspace)
    bench = Bench(arguments.baseline.resolve(), workspace, model, threads=arguments.threads)
    results: dict[str, Any] = {"machine": measured.machine(arguments.threads)}
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
