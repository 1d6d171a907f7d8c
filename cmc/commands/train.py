from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cmc.commands.exits import INTERRUPTED, OK
from cmc.commands.flags import add_device, add_threads, config_of, positive, use_threads

SUMMARY = "feature file → run folder"
DESCRIPTION = """\
Train CMC on a feature file: stage 1 pretrains a classifier per modality, by default with pseudo labels (--pretrain);
stage 2 makes the consensus of the modalities.

A folder with a finished run is left as it is: the same call again says so and is done, another one needs --overwrite.
A run that was interrupted or killed goes on with --resume, to the weights that it would have had."""
EXAMPLES = (
    "cmc train features.h5 -o runs/first",
    "cmc train features.h5 -o runs/five --seeds 5",
    "cmc train features.h5 -o runs/five --seeds 5 --resume",
    "cmc train features.h5 -o runs/none --pretrain none",
    "cmc train features.h5 -o runs/masked --pretrain masked --unlabelled more.h5",
    "cmc train features.h5 -o runs/frozen --text freeze --layers 1",
)
CONFIG = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5), or MMSA's (.pkl)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="folder for the run")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="go on with an unfinished run; start it where there is none"
    )
    again.add_argument("--overwrite", action="store_true", help="replace what run there is")
    parser.add_argument(
        "--unlabelled", type=Path, metavar="FILE", help="feature file of further clips, whose labels are not read"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="every epoch's figures for `tensorboard --logdir RUN`"
    )
    parser.add_argument(
        "--stream",
        choices=("auto", "always", "never"),
        default="auto",
        help="read rows batch by batch instead of all at once; auto: where a split takes more than a quarter of the "
        "memory there is (auto); the weights are the same",
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs with seeds SEED, SEED+1, …")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    import json

    from cmc import journal, seeds
    from cmc import run as runs
    from cmc.config import DivergedError, UsageError
    from cmc.report import percent, progress, reconstruction, unseen

    config = config_of(args)
    use_threads(args)
    names = [""] if args.seeds == 1 else [f"seed-{config.seed + k}" for k in range(args.seeds)]
    if (args.out / ("run.json" if args.seeds > 1 else seeds.INDEX)).exists() and not args.overwrite:
        raise UsageError(f"{args.out} holds another kind of run: choose another folder, or --overwrite")
    if args.overwrite:
        _clear(args.features, args.out, names)
    records = []
    for k, name in enumerate(names):
        label = f"{name}: " if name else ""
        wanted = config.model_copy(update={"seed": config.seed + k})
        done = _done(args, args.out / name, wanted)
        if done is None:
            from cmc.train import train

            try:
                with progress(label) as report:
                    done = train(
                        args.features,
                        args.out / name,
                        wanted,
                        report,
                        args.resume,
                        args.stream,
                        args.tensorboard,
                        args.device,
                        args.unlabelled,
                    )
            except DivergedError:
                journal.forget(args.out / name)  # there is nothing to go on from
                raise
            if done.streamed:
                print(f"{label}read {args.given} batch by batch (--stream {args.stream})", file=sys.stderr)
        else:
            print(f"{label}already trained, nothing to do (--overwrite trains again)")
            if args.tensorboard:
                from cmc.board import write

                write(args.out / name, wanted, done.history, done.validation)
        records.append(done)
        if done.reconstruction:
            told = reconstruction(done.reconstruction)
            print(f"{label}loss of reconstructing validation clips, in that of seeing nothing: {told}")
        for note in (*unseen(done.task.class_names, done.majority), *_left_out(args.features, done)) if k == 0 else ():
            print(f"note: {note}", file=sys.stderr)
        if done.status == "interrupted":
            print(f"interrupted: {args.out / name} holds the best model so far; --resume goes on", file=sys.stderr)
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
    print(f"next: cmc evaluate {args.out} {args.given}")
    return OK


def _left_out(features: Path, record: Any) -> list[str]:
    """What is to be said of clips without a label."""
    from cmc.data import unlabelled
    from cmc.strategies import STRATEGIES
    from mmfeat.layout import FeatureFile

    with FeatureFile(features) as file:
        counts = {split: unlabelled(file, split, record.task) for split in ("train", "valid")}
    what = {"train": "left out", "valid": "left out"}
    if STRATEGIES[record.config.pretrain].unlabelled:
        what["train"] = "only pretrained on"
    return [f"{n} clips of split {split} {what[split]}: they have no label" for split, n in counts.items() if n]


def _clear(features: Path, out: Path, names: list[str]) -> None:
    """Remove the runs in `out`, of whatever kind, and what belongs to them, before any is trained: if this call is
    killed, none that is still to be trained may look finished."""
    from cmc import board, seeds
    from cmc import run as runs
    from cmc.journal import RunJournal
    from mmfeat.layout import FeatureFile

    with FeatureFile(features):  # where it is none, runs are kept
        older = seeds.index(out) or []
        for folder in dict.fromkeys([out, *(out / name for name in [*older, *names])]):
            with RunJournal(folder, {}, resume=False):
                runs.forget(folder)
                board.forget(folder)
        seeds.forget(out)


def _done(args: argparse.Namespace, folder: Path, config: Any) -> Any:
    """The finished run of the very same config and features, None where there is none yet; refuses any other."""
    from cmc import journal
    from cmc import run as runs

    record = runs.read(folder) if (folder / "run.json").is_file() else None
    if not args.resume and (journal.is_unfinished(folder) or (record and record.status == "interrupted")):
        raise runs.RunError(f"{folder} holds an unfinished run: add --resume to continue, --overwrite to start anew")
    if record is None or record.status == "interrupted":
        return None
    from cmc.train import content_digest
    from mmfeat.layout import FeatureFile

    with FeatureFile(args.features) as file:
        same = record.config == config and record.features["content"] == content_digest(file)
    further = None
    if args.unlabelled:
        with FeatureFile(args.unlabelled) as file:
            further = content_digest(file, file.splits)
    if not same or record.features.get("unlabelled") != further:
        raise runs.RunError(
            f"{folder} holds a finished run of another config or feature file: choose another folder, or --overwrite"
        )
    journal.forget(folder)  # a kill may have come between the run and this
    return record
