"""The whole way, from a folder of videos to a trained model, its figures on the test split, and one prediction.

Every step is what its own command does. A step is skipped where its result is there and nothing it depends on, code
included, has changed.
"""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfeat import corpus as corpora
from mmfeat.clip import FAILED
from mmfeat.corpus import Clip, Corpus
from mmfeat.layout import FeatureFile
from mmfeat.recipe import Recipe, load_recipe
from pipelines.exits import Exit
from pipelines.features import DEFAULT_OPTIONS, Options, default_workdir, make_features
from pipelines.show import table
from pipelines.stages import Stages, digest, source_digest


class StepError(RuntimeError):
    """A step ended with an exit status of its own; it has said why."""

    def __init__(self, status: int):
        super().__init__(f"stopped: a step ended with exit status {status}")
        self.status = status


@dataclass(frozen=True)
class Places:
    """Where each result lies."""

    folder: Path

    @property
    def features(self) -> Path:
        return self.folder / "features.h5"

    @property
    def model(self) -> Path:
        return self.folder / "cmc"

    @property
    def metrics(self) -> Path:
        return self.model / "metrics.json"

    @property
    def confusion(self) -> Path:
        return self.model / "confusion.png"

    @property
    def prediction(self) -> Path:
        return self.folder / "prediction.json"


def footage_to_model(
    corpus_folder: Path,
    out: Path,
    *,
    seeds: int = 3,
    recipe: str | Recipe = "default",
    options: Options = DEFAULT_OPTIONS,
) -> Exit:
    """Features, training with several seeds, evaluation and one prediction, all below the folder `out`.

    Planted unimodal labels are used in the evaluation, and nowhere else, where they lie beside the corpus
    (`<corpus>.truth/planted.csv`, as `mmfeat demo` writes them). Prints a summary; returns the exit status.
    """
    corpus = corpora.load(corpus_folder.resolve())
    places, stages = Places(out), Stages(out / "stages.json")
    _headline("Features", f"mmfeat extract {corpus_folder} -o {places.features}")
    extracted = make_features(corpus, load_recipe(recipe), places.features, options=options, stages=stages)
    if extracted == Exit.INTERRUPTED:
        return extracted
    truth = corpus_folder.with_name(f"{corpus_folder.name}.truth") / "planted.csv"
    try:
        _train(places, stages, seeds)
        _evaluate(places, stages, truth if truth.is_file() else None)
        _predict(places, stages, corpus)
    except StepError as error:
        return Exit(error.status)
    _summarise(places, corpus_folder, seeds)
    return extracted


def _train(places: Places, stages: Stages, seeds: int) -> None:
    from cmc.train import content_digest

    command = ["train", str(places.features), "-o", str(places.model), "--seeds", str(seeds)]
    with FeatureFile(places.features) as file:
        # Not the file's own digest: a changed test clip must not train the model again.
        content = content_digest(file)
    inputs = {"features": content, "seeds": seeds, "code": source_digest("cmc")}
    outputs = [places.model / ("seeds.json" if seeds > 1 else "run.json")]
    # Runs of other features or other code are replaced; an interrupted try goes on.
    again = "--resume" if stages.was_cut_short("train", inputs) else "--overwrite"
    _headline("Training", _spoken(command))
    if not stages.run("train", inputs, outputs, lambda: _cmc([*command, again])):
        print(f"{places.model} is up to date.")


def _evaluate(places: Places, stages: Stages, truth: Path | None) -> None:
    command = ["evaluate", str(places.model), str(places.features)]
    command += ["--truth", str(truth)] if truth else []
    inputs = {
        "features": digest(places.features),
        "models": [digest(path) for path in sorted(places.model.rglob("*.safetensors"))],
        "truth": digest(truth) if truth else None,
        "code": source_digest("cmc"),
    }
    _headline("Evaluation", _spoken(command))
    if not stages.run("evaluate", inputs, [places.metrics, places.confusion], lambda: _cmc(command)):
        print(f"{places.metrics} is up to date.")


def _predict(places: Places, stages: Stages, corpus: Corpus) -> None:
    clip = _example(places.features, corpus)
    if clip is None:
        print("\nNo clip of the test split could be extracted, so none is predicted.")
        return
    assert clip.path is not None
    command = ["predict", str(places.model), str(clip.path), "--text", clip.text]
    for option, value in (("--start", clip.start), ("--end", clip.end)):
        command += [option, str(value)] if value is not None else []
    inputs = {
        "clip": clip.id,
        "media": digest(clip.path),
        "command": command,
        "models": [digest(path) for path in sorted(places.model.rglob("*.safetensors"))],
        "code": source_digest("cmc", "mmfeat"),
    }

    def write() -> None:
        from cmc import seeds
        from cmc.predict import predict
        from cmc.report import show_prediction

        assert clip.path is not None
        found = predict(seeds.best(places.model), clip.path, clip.text, clip.start, clip.end)
        show_prediction(found)
        label = clip.classes.get("label", clip.label)
        said = {"clip": clip.id, "label": label, "prediction": found.plain()}
        places.prediction.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")

    _headline("One prediction", _spoken(command))
    if not stages.run("predict", inputs, [places.prediction], write):
        print(f"{places.prediction} is up to date.")


def _example(features: Path, corpus: Corpus) -> Clip | None:
    """The first test clip that gave features, one with all modalities if there is one."""
    with FeatureFile(features) as file:
        status = {clip.id: clip.status for clip in file.clips()}
    tested = [clip for clip in corpus.usable if clip.split == "test" and status.get(clip.id, FAILED) != FAILED]
    return min(tested, key=lambda clip: status[clip.id] != "ok", default=None)


def _cmc(arguments: list[str]) -> None:
    from cmc.cli import main

    if status := main(arguments):
        raise StepError(status)


def _headline(step: str, command: str) -> None:
    print(f"\n== {step}\n$ {command}", flush=True)


def _spoken(arguments: list[str]) -> str:
    return shlex.join(["cmc", *arguments])


def _summarise(places: Places, corpus_folder: Path, seeds: int) -> None:
    metrics: dict[str, Any] = json.loads(places.metrics.read_text(encoding="utf-8"))
    print()
    rows = [
        (
            {"overall": "all test clips"}.get(group, f"{group} clips"),
            clips,
            _percent(metrics["cmc"][group]["accuracy"]),
            _percent(metrics["majority"][group]["accuracy"]),
            _percent(metrics["cmc"][group]["f1"]),
        )
        for group, clips in metrics["clips"].items()
    ]
    columns = ("", "clips", "CMC accuracy", "majority class", "CMC weighted F1")
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    table(f"Result on the test split, {over}", columns, rows, numbers=columns[1:])
    if "consistent" in metrics["clips"]:
        print("Consistent: text, sound and face were given the same polarity; conflicting: they were not.")
    if places.prediction.exists():
        said = json.loads(places.prediction.read_text(encoding="utf-8"))
        found = said["prediction"]
        sure = found["fused"][found["label"]]
        label = said["label"] if isinstance(said["label"], str) else f"{said['label']:g}"
        print(f"Clip {said['clip']} (label {label}) is {found['label']}, says the model: {sure:.0%} sure.")
    print()
    results = [
        ("features", places.features, f"mmfeat info {places.features}"),
        ("features of each clip", default_workdir(places.features), "kept, so that a run can continue"),
        ("models", places.model, "one folder per seed" if seeds > 1 else "weights and run.json"),
        ("figures", places.metrics, ""),
        ("confusion matrix", places.confusion, ""),
        ("prediction", places.prediction, ""),
    ]
    table("Where things are", ("what", "where", ""), [row for row in results if row[1].exists()])
    print(
        "\nYour own videos: put them into MY_CORPUS/Raw/<video_id>/<clip_id>.mp4, describe them in\n"
        f"MY_CORPUS/label.csv ({_header(corpus_folder)}), then\n"
        "  mmfeat check MY_CORPUS\n"
        "  mmfeat run MY_CORPUS -o MY_RESULTS\n"
        f'  cmc predict {places.model} ANY_CLIP.mp4 --text "what is said in it"\n'
        "Commands that are not found are in .venv/bin: `source .venv/bin/activate` first."
    )


def _header(corpus_folder: Path) -> str:
    with (corpus_folder / "label.csv").open(encoding="utf-8-sig", newline="") as file:
        return ", ".join(next(csv.reader(file)))


def _percent(value: float | list[float]) -> str:
    """`61.3 %` of 0.613, `61.3 ± 2.0 %` of a mean and its standard deviation."""
    if isinstance(value, list):
        return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f} %"
    return f"{100 * value:.1f} %"
