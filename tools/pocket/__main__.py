"""`python -m tools.pocket`: pretrain, evaluate, pack, sample, examples."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tools.pocket.settings import POCKET

if TYPE_CHECKING:
    from tools.pocket.bundle import Bundle

PART_NAMES = ("vae", "clip", "identifiers", "classifier", "dino", "unet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".state/pocket"), help="training state")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 means all cores")
    parser.add_argument("--assets", type=Path, default=Path("assets"), help="the packed models")
    parser.add_argument(
        "--from-state", action="store_true", help="use the models in training, not the packed ones"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("pretrain", help="train one part or all of them")
    train.add_argument("part", nargs="?", default="all", choices=("all", *PART_NAMES))
    train.add_argument("--minutes", type=float, help="stop and save after this long")
    judge = commands.add_parser("evaluate", help="measure every bar")
    judge.add_argument("part", nargs="?", default="all", choices=("all", *PART_NAMES))
    judge.add_argument("--json", action="store_true", help="one JSON object on stdout")
    judge.add_argument("--samples", type=int, default=500, help="pictures for the sd bars")
    judge.add_argument("--update-cards", action="store_true", help="write the figures into assets")
    commands.add_parser("pack", help="write the weights as fp16, with their cards")
    draw = commands.add_parser("sample", help="a contact sheet, or pictures of one prompt")
    draw.add_argument("--prompt", help="default: random full captions")
    draw.add_argument("--num", type=int, default=64)
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--steps", type=int, default=25)
    draw.add_argument("--guidance", type=float, default=3.0)
    draw.add_argument("--out", type=Path, default=Path("pocket-sheet.png"))
    shown = commands.add_parser("examples", help="draw the example subjects")
    shown.add_argument("--out", type=Path, default=Path("examples"))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 when done, 1 when a bar does not hold."""
    options = _parser().parse_args(arguments)
    # Stdout belongs to the answer: what libraries say while they work goes to stderr.
    with contextlib.redirect_stdout(sys.stderr):
        answer, code = _run(options)
    if answer:
        sys.stdout.write(answer + "\n")
    return code


def _run(options: argparse.Namespace) -> tuple[str, int]:
    """The answer of a command and its exit code."""
    if options.command == "examples":
        from tools.pocket.examples import write_examples

        write_examples(options.out)
        return "", 0
    from tools.pocket import commands  # loads torch, which --help can do without

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    shop = commands.open_workshop(
        POCKET, state=options.state, device=options.device, threads=options.threads, say=say
    )
    if options.command == "pretrain":
        until = None if options.minutes is None else time.time() + 60 * options.minutes
        commands.pretrain_parts(shop, part=options.part, until=until)
        return "", 0
    if options.command == "pack":
        from tools.pocket.pack import pack

        return json.dumps(pack(shop, assets=options.assets)), 0
    models = commands.open_bundle(shop, assets=options.assets, packed=not options.from_state)
    if options.command == "evaluate":
        return _evaluate(models, options, say=say)
    commands.write_sheet(
        models.pipeline,
        prompt=options.prompt,
        num=options.num,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        out=options.out,
    )
    return "", 0


def _evaluate(
    models: Bundle, options: argparse.Namespace, *, say: Callable[[str], None]
) -> tuple[str, int]:
    from tools.pocket import commands
    from tools.pocket.pack import write_cards

    measured = commands.measure(
        models, part=options.part, assets=options.assets, num_samples=options.samples, say=say
    )
    if options.update_cards and not options.from_state:
        write_cards(options.assets, measured=measured)
    missed = any(bar["holds"] is False for bar in measured.values())
    return json.dumps(measured) if options.json else commands.as_table(measured), int(missed)


if __name__ == "__main__":
    sys.exit(main())
