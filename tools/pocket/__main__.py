"""`python -m tools.pocket`: pretrain, evaluate, pack and sample the models; draw the examples."""

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
    from tools.pocket.models import PocketModels

PART_NAMES = ("vae", "clip", "identifiers", "classifier", "dino", "unet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".state/pocket"), help="state folder")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--assets", type=Path, default=Path("assets"), help="packed models")
    parser.add_argument(
        "--from-state", action="store_true", help="use the models of --state, not of --assets"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("pretrain", help="train one part or all")
    train.add_argument("part", nargs="?", default="all", choices=("all", *PART_NAMES))
    train.add_argument("--minutes", type=float, help="save and stop after this time")
    evaluate = commands.add_parser("evaluate", help="compute all metrics and compare with targets")
    evaluate.add_argument("part", nargs="?", default="all", choices=("all", *PART_NAMES))
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument("--samples", type=int, default=500, help="images for the sd metrics")
    evaluate.add_argument(
        "--update-cards", action="store_true", help="write the values into the model cards"
    )
    commands.add_parser("pack", help="write fp16 weights and model cards to --assets")
    sheet = commands.add_parser("sample", help="sample a contact sheet")
    sheet.add_argument("--prompt", help="prompt of all images; default: random captions")
    sheet.add_argument("--num", type=int, default=64)
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("--steps", type=int, default=25)
    sheet.add_argument("--guidance", type=float, default=3.0)
    sheet.add_argument("--out", type=Path, default=Path("pocket-sheet.png"))
    examples = commands.add_parser("examples", help="draw the photos of the example subjects")
    examples.add_argument("--out", type=Path, default=Path("examples"))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 if a metric misses its target."""
    options = _parser().parse_args(arguments)
    # Stdout is for the result: redirect output of the libraries to stderr.
    with contextlib.redirect_stdout(sys.stderr):
        output, code = _run(options)
    if output:
        sys.stdout.write(output + "\n")
    return code


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _run(options: argparse.Namespace) -> tuple[str, int]:
    """The command's output and exit code."""
    if options.command == "examples":
        from tools.pocket.examples import write_examples

        write_examples(options.out)
        return "", 0
    # Only now: these imports load torch, which --help does not need.
    from tools.pocket.models import load_from_state, load_packed
    from tools.pocket.pretrain import make_context, pretrain

    context = make_context(
        POCKET, state=options.state, device=options.device, threads=options.threads, log=_log
    )
    if options.command == "pretrain":
        until = None if options.minutes is None else time.time() + 60 * options.minutes
        pretrain(context, part=options.part, until=until)
        return "", 0
    if options.command == "pack":
        from tools.pocket.pack import pack

        return json.dumps(pack(context, assets=options.assets)), 0
    if options.from_state:
        models = load_from_state(context)
    else:
        models = load_packed(context, assets=options.assets)
    if options.command == "evaluate":
        return _evaluate(models, options, log=_log)
    _sample(models, options)
    return "", 0


def _evaluate(
    models: PocketModels, options: argparse.Namespace, *, log: Callable[[str], None]
) -> tuple[str, int]:
    from tools.pocket.evaluate import as_table, measure
    from tools.pocket.pack import write_cards

    measured = measure(
        models, part=options.part, assets=options.assets, num_samples=options.samples, log=log
    )
    if options.update_cards and not options.from_state:
        write_cards(options.assets, measured=measured)
    missed = any(metric["holds"] is False for metric in measured.values())
    return json.dumps(measured) if options.json else as_table(measured), int(missed)


def _sample(models: PocketModels, options: argparse.Namespace) -> None:
    from tools.pocket.sample import sample, sheet_prompts, write_contact_sheet

    prompts = [options.prompt] * options.num if options.prompt else None
    prompts = prompts or sheet_prompts(options.num, seed=options.seed)
    images = sample(
        models.pipeline, prompts, seed=options.seed, steps=options.steps, guidance=options.guidance
    )
    write_contact_sheet(options.out, images, prompts)


if __name__ == "__main__":
    sys.exit(main())
