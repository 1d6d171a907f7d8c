"""`cmc train | evaluate | predict`: heavy imports wait until a command runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

OK, USAGE, NOTHING_USABLE, INTERRUPTED = 0, 2, 4, 130
_EXIT = "exit status: 0 fine, 2 bad usage or configuration, 4 nothing usable in the file, 130 interrupted"
_TRAIN = f"""\
Train CMC on a feature file: stage 1 makes pseudo labels, stage 2 the consensus of the modalities.

A folder with a finished run is left as it is: the same call again says so and is done, another one needs --overwrite.
An interrupted run is trained anew.

examples:
  cmc train features.h5 -o runs/first
  cmc train features.h5 -o runs/five --seeds 5
  cmc train features.h5 -o runs/frozen --text freeze --layers 1
{_EXIT}"""
_EVALUATE = f"""\
Evaluate a run, once, on a split it was not trained on. Writes metrics.json and confusion.png into the run folder.

examples:
  cmc evaluate runs/first features.h5
  cmc evaluate runs/first features.h5 --truth planted.csv      consistent and conflicting clips apart
  cmc evaluate runs/first features.h5 --drop audio             as if no clip had sound
{_EXIT}"""
_ABLATE = f"""\
Train CMC, CMC without each of its parts, and plain baselines; print one table, mean ± std over seeds.

Every result is a file in DIR; a call that is repeated continues where it stopped.

examples:
  cmc ablate features.h5 -o ablation --seeds 5
  cmc ablate features.h5 -o ablation --truth planted.csv --text freeze --variants CMC "no PLGM" "late fusion"
{_EXIT}"""
_PLANT = f"""\
Write a feature file whose true unimodal labels are known, and conflict with the clip's label on a share of the clips.
The labels go into FILE_truth.csv beside it.

examples:
  cmc plant planted.h5
  cmc ablate planted.h5 -o ablation --truth planted_truth.csv --text freeze --layers 1
{_EXIT}"""
_PREDICT = f"""\
Classify one clip: extracts its features with the recipe that the run stores.

examples:
  cmc predict runs/first clip.mp4 --text "what a lovely day"
  cmc predict runs/first clip.mp4 --text "what a lovely day" --json
{_EXIT}"""
# The matrices are small: more threads gain little, cost much on a busy machine, and change the last digits of weights.
_THREADS = "threads of torch (1): weights then do not depend on how many cores there are; recorded with the run"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    # Idle OpenMP threads that spin make training many times slower where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser(arguments).parse_args(arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        status = _status(error)
        if status is None or args.debug:
            raise
        print(f"cmc: {' '.join(str(error).split())}", file=sys.stderr)
        return status


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole parser; the flags of the config are there when `arguments` ask for a command that has them."""
    whole = argparse.ArgumentParser("cmc", description="Calibrated multimodal consensus: train, evaluate, predict.")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = _adder(commands)

    train = add("train", "feature file → run folder", _TRAIN, _train)
    train.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5)")
    train.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="folder for the run")
    train.add_argument("--overwrite", action="store_true", help="replace a finished run")
    train.add_argument("--seeds", type=_positive, default=1, metavar="N", help="runs with seeds SEED, SEED+1, …")
    train.add_argument("--threads", type=_positive, default=1, metavar="N", help=_THREADS)
    if "train" in arguments[:1]:
        add_config_flags(train)

    evaluate = add("evaluate", "figures of a run on the test split", _EVALUATE, _evaluate)
    evaluate.add_argument("folder", type=Path, metavar="RUN")
    evaluate.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5)")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"))
    evaluate.add_argument("--truth", type=Path, metavar="CSV", help="unimodal labels that the file does not have")
    evaluate.add_argument("--drop", action="append", default=[], choices=("text", "audio", "vision"), help="hide it")
    evaluate.add_argument("--json", action="store_true", help="print metrics.json instead of tables")

    predict = add("predict", "one clip → probabilities", _PREDICT, _predict)
    predict.add_argument("folder", type=Path, metavar="RUN")
    predict.add_argument("clip", type=Path, metavar="CLIP", help="video or sound file")
    predict.add_argument("--text", default="", help="what is said in it")
    predict.add_argument("--start", type=float, metavar="SECONDS", help="where the clip begins within the file")
    predict.add_argument("--end", type=float, metavar="SECONDS", help="where it ends")
    predict.add_argument("--json", action="store_true", help="print JSON")

    ablate = add("ablate", "what each part of the method is worth", _ABLATE, _ablate)
    ablate.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5)")
    ablate.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    ablate.add_argument("--seeds", type=_positive, default=5, metavar="N", help="runs with seeds SEED, SEED+1, …")
    ablate.add_argument("--truth", type=Path, metavar="CSV", help="unimodal labels that the file does not have")
    ablate.add_argument("--variants", nargs="+", metavar="NAME", help="some of the variants only")
    ablate.add_argument("--threads", type=_positive, default=1, metavar="N", help=_THREADS)
    if "ablate" in arguments[:1]:
        add_config_flags(ablate)

    plant = add("plant", "a feature file with known unimodal labels", _PLANT, _plant)
    plant.add_argument("out", type=Path, metavar="FILE", help="feature file to write (.h5)")
    plant.add_argument("--clips", type=_positive, nargs=3, default=(150, 60, 200), metavar=("TRAIN", "VALID", "TEST"))
    plant.add_argument("--conflict", type=float, default=0.6, metavar="SHARE", help="of clips with one odd modality")
    plant.add_argument("--signal", type=float, default=3.0, help="distance of classes, in a clip's own scatter")
    plant.add_argument(
        "--missing", type=float, default=0.0, metavar="SHARE", help="of clips without sound; of those without face"
    )
    plant.add_argument("--seed", type=int, default=0)
    return whole


def _adder(commands: Any) -> Callable[..., argparse.ArgumentParser]:
    def add(name: str, summary: str, description: str, run: Callable[[argparse.Namespace], int]) -> Any:
        command = commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
        return command

    return add


def add_config_flags(command: argparse.ArgumentParser) -> None:
    """One flag per field of the config: `--out-dropout 0.3`, `--no-fusion`, `--use text audio`."""
    from cmc.config import Config

    group = command.add_argument_group("config", "Defaults are those of calibrated mode.")
    defaults = Config().model_dump()
    for name, field in Config.model_fields.items():
        default, kind = defaults[name], field.annotation
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options: dict[str, Any] = {"help": f"{field.description} ({shown})", "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            members = [member for member in get_args(kind) if member is not Ellipsis]
            if get_origin(members[0]) is Literal:
                options |= {"nargs": "+", "choices": get_args(members[0])}
            else:
                options |= {"nargs": len(members), "type": members[0], "metavar": ("T", "A", "V")}
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper() if kind else None}
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"config_{name}", **options)


def config_of(args: argparse.Namespace, **more: Any) -> Any:
    from cmc.config import Config

    prefix = "config_"
    given = {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}
    return Config(**(given | more))


def _train(args: argparse.Namespace) -> int:
    import json

    from cmc import run as runs
    from cmc import seeds
    from cmc.config import UsageError
    from cmc.report import percent, progress

    config = config_of(args)
    _threads(args.threads)
    names = [""] if args.seeds == 1 else [f"seed-{config.seed + k}" for k in range(args.seeds)]
    if (args.out / ("run.json" if args.seeds > 1 else seeds.INDEX)).exists() and not args.overwrite:
        raise UsageError(f"{args.out} holds another kind of run: choose another folder, or --overwrite")
    records = []
    for k, name in enumerate(names):
        label = f"{name}: " if name else ""
        wanted = config.model_copy(update={"seed": config.seed + k})
        done = None if args.overwrite else _done(args.out / name, args.features, wanted)
        if done is None:
            from cmc.train import train

            with progress(label) as report:
                done = train(args.features, args.out / name, wanted, report)
        else:
            print(f"{label}already trained, nothing to do (--overwrite trains again)")
        records.append(done)
        if done.status == "interrupted":
            print(f"interrupted: {args.out / name} holds the best model so far", file=sys.stderr)
            return INTERRUPTED
    if args.seeds > 1:
        (args.out / "run.json").unlink(missing_ok=True)
        seeds.write_index(args.out, names, records)
        summary = json.loads((args.out / seeds.INDEX).read_text(encoding="utf-8"))["validation"]
        accuracy = percent([summary["accuracy"]["mean"], summary["accuracy"]["std"]])
        print(f"{args.out}: {args.seeds} runs, validation accuracy {accuracy} %")
    else:
        (args.out / seeds.INDEX).unlink(missing_ok=True)
        valid, record = runs.read(args.out).validation, records[0]
        print(f"{args.out}: validation accuracy {percent(valid['accuracy'])} %, trained in {record.seconds:.0f} s")
    print(f"next: cmc evaluate {args.out} {args.features}")
    return OK


def _done(folder: Path, features: Path, config: Any) -> Any:
    """The finished run of the very same config and features, None where there is none; refuses any other."""
    from cmc import run as runs

    if not (folder / "run.json").is_file():
        return None
    record = runs.read(folder)
    if record.status != "finished":
        return None
    from cmc.train import content_digest
    from mmfeat.layout import FeatureFile

    with FeatureFile(features) as file:
        same = record.config == config and record.features["content"] == content_digest(file)
    if not same:
        raise runs.RunError(
            f"{folder} holds a finished run of another config or feature file: choose another folder, or --overwrite"
        )
    return record


def _threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


def _evaluate(args: argparse.Namespace) -> int:
    import json

    from cmc import seeds
    from cmc.evaluate import evaluate, write
    from cmc.report import show_evaluation

    folders = seeds.folders(args.folder)
    results = [evaluate(f, args.features, args.split, args.truth, tuple(args.drop)) for f in folders]
    if len(results) > 1:
        for folder, result in zip(folders, results, strict=True):
            write(folder, result)
    result = results[0] if len(results) == 1 else seeds.together(results)
    metrics, confusion = write(args.folder, result)
    if args.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        show_evaluation(result)
        print(f"written: {metrics}, {confusion}")
    return OK


def _ablate(args: argparse.Namespace) -> int:
    from cmc.ablate import VARIANTS, ablate
    from cmc.report import progress, show_ablation

    _threads(args.threads)
    with progress() as report:
        results = ablate(
            args.features, args.out, config_of(args), args.seeds, args.truth, args.variants or tuple(VARIANTS), report
        )
    show_ablation(results)
    return OK


def _plant(args: argparse.Namespace) -> int:
    from cmc.planted import Plan, plant

    splits = dict(zip(("train", "valid", "test"), args.clips, strict=True))
    plant(args.out, Plan(splits, args.conflict, args.signal, args.missing, seed=args.seed))
    print(f"{args.out}, true labels in {args.out.with_name(f'{args.out.stem}_truth.csv')}")
    return OK


def _predict(args: argparse.Namespace) -> int:
    import json

    from cmc import seeds
    from cmc.predict import predict

    prediction = predict(seeds.best(args.folder), args.clip, args.text, args.start, args.end)
    if args.json:
        print(json.dumps(prediction.plain(), indent=1, ensure_ascii=False))
    else:
        from cmc.report import show_prediction

        show_prediction(prediction)
    return OK


# By name, so that no module is imported only to say what it may raise.
_EXPECTED = {
    "cmc.config.UsageError": USAGE,
    "cmc.data.DataError": NOTHING_USABLE,
    "mmfeat.layout.LayoutError": USAGE,
    "mmfeat.media.MediaError": NOTHING_USABLE,
    "mmfeat.recipe.RecipeError": USAGE,
    "mmfeat.registry.MissingBackendError": USAGE,
    "mmfeat.words.AlignmentError": NOTHING_USABLE,
    "pydantic_core._pydantic_core.ValidationError": USAGE,
    "builtins.FileNotFoundError": USAGE,
    "builtins.PermissionError": USAGE,
}


def _status(error: BaseException) -> int | None:
    for kind in type(error).__mro__:
        if f"{kind.__module__}.{kind.__qualname__}" in _EXPECTED:
            return _EXPECTED[f"{kind.__module__}.{kind.__qualname__}"]
    return None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
