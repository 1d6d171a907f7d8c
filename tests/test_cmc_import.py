"""Published weights as a user has them: state dict → cmc import → the logits that the published code recorded."""

from __future__ import annotations

import json
import os
from glob import glob
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from cmc import run as runs
from cmc.cli import main
from cmc.data import load
from cmc.evaluate import evaluate, predict_split
from mmfeat.layout import (
    REGRESSION,
    TIMED,
    FeatureFile,
    create_split,
    write_clips,
    write_head,
    write_train_stats,
    write_words,
)

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "golden" / "*.npz"
PATTERN = os.environ.get("MMFEAT_GOLDEN", str(DEFAULT))
FILES = sorted(glob(PATTERN))  # noqa: PTH207 - the variable holds a whole pattern, folders included


class Published:
    """One recorded file as a feature file, a text encoder's folder and a state dict."""

    def __init__(self, recorded: Path, folder: Path):
        with np.load(recorded, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))
        self.encoder, self.features = folder / "bert", folder / "features.h5"
        BertModel(BertConfig(**self.meta["bert"])).save_pretrained(self.encoder)
        prefix = "stage2/epoch3/model/"
        self.weights = {
            name.removeprefix(prefix): torch.tensor(values)
            for name, values in self.arrays.items()
            if name.startswith(prefix)
        }
        self._write_features()
        hp = self.meta["hp"]
        question = "positive" if "SIMS" in hp["dataset"] else "negative"
        self.flags = ["--heads", str(hp["nhead"]), "--top-k", str(hp["top_k"]), "--polarity", question]

    def _write_features(self) -> None:
        columns = {"text": self.meta["bert"]["hidden_size"]} | {
            m: self.arrays[f"data/train/{m}"].shape[2] for m in TIMED
        }
        with h5py.File(self.features, "w") as file:
            write_head(
                file,
                aligned=False,
                language="",
                recipe={"name": "recorded", "text": {"extractor": "transformers", "model": str(self.encoder)}},
                fingerprints=dict.fromkeys(columns, "recorded"),
                class_names=(),
                names={m: [f"{m}_{k}" for k in range(columns[m])] for m in TIMED},
                versions={},
                created="",
            )
            for split in ("train", "valid", "test"):
                data = {
                    key: self.arrays[f"data/{split}/{key}"]
                    for key in ("id", "text_bert", "audio", "vision", "regression_labels")
                }
                clips = len(data["id"])
                shapes = {m: (data[m].shape[1], columns[m]) for m in TIMED}
                group = create_split(
                    file, split, clips, {"text": (data["text_bert"].shape[2], columns["text"]), **shapes}
                )
                group["id"][:] = [str(id) for id in data["id"]]
                group["raw_text"][:] = group["annotations"][:] = [""] * clips
                group["text_bert"][:], group[REGRESSION][:] = data["text_bert"], data["regression_labels"]
                for m in TIMED:
                    group[m][:], group[f"{m}_mask"][:] = data[m], True
                    if split == "train":
                        write_train_stats(file, m, np.zeros(columns[m]), np.ones(columns[m]))
                write_words(group, [])
            write_clips(file, [])


@pytest.fixture(
    scope="module",
    params=FILES or [pytest.param("", marks=pytest.mark.skip(reason=f"no recorded values match {PATTERN}"))],
    ids=lambda path: Path(path).stem or "none",
)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(Path(request.param), tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_imported_weights_give_the_recorded_logits(published: Published, ending: str, tmp_path: Path) -> None:
    path, run = tmp_path / f"weights{ending}", tmp_path / "run"
    if ending == ".pt":
        torch.save(published.weights | {"text_model.model.embeddings.position_ids": torch.arange(32)[None]}, path)
    else:
        save_file(published.weights, path)
    call = ["import", str(path), str(published.features), "-o", str(run), *published.flags]
    assert main(call) == 0
    record = runs.read(run)
    assert record.config.mode == "reference" and record.config.layers == published.meta["hp"]["transformer_layers"]
    with FeatureFile(published.features) as file:
        test = load(file, "test", record.task, masked=False)
    logits = predict_split(runs.load_model(run, record), test).logits
    np.testing.assert_allclose(logits, published.arrays["stage2/epoch3/test_logits"], atol=1e-5)
    truth = np.sign(published.arrays["data/test/regression_labels"]) + 1
    found = evaluate(run, published.features)["cmc"]["overall"]["accuracy"]
    assert found == pytest.approx(np.mean(published.arrays["stage2/epoch3/test_logits"].argmax(1) == truth))
    assert main(call) == 2 and main([*call, "--overwrite"]) == 0


def test_what_cannot_be_imported(published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(weights: Any, *flags: str) -> str:
        path = tmp_path / "weights.pt"
        torch.save(weights, path)
        assert main(["import", str(path), str(published.features), "-o", str(tmp_path / "run"), *flags]) == 2
        assert not (tmp_path / "run" / "run.json").exists()
        return capsys.readouterr().err

    assert "state_dict()" in refused(BertModel(BertConfig(**published.meta["bert"]))), "a whole module"
    assert "no state dict" in refused([1, 2])
    assert "no state dict" in refused({1: torch.zeros(1)})
    for expert in ("5", "x", "-1"):
        assert f"'proj1s.{expert}.weight' is of an expert" in refused({f"proj1s.{expert}.weight": torch.zeros(1)})
    flat = published.weights | {"proj_a.weight": torch.zeros(1)}
    assert "audio's projection is not" in refused(flat)
    assert "'fc.weight' is not a weight" in refused(published.weights | {"fc.weight": torch.zeros(1)})
    alone = {name: t for name, t in published.weights.items() if "router" not in name}
    assert "unimodal" in refused(alone)
    wider = published.weights | {"proj_a.weight": torch.zeros(32, 9, 1)}
    assert "9 columns of audio" in refused(wider)
    odd = {name: t for name, t in published.weights.items() if "word_embeddings" not in name}
    assert "does not fit" in refused(odd, *published.flags)


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pt"])
def test_a_file_of_no_weights_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights at all")
    assert main(["import", str(path), str(tmp_path / "features.h5"), "-o", str(tmp_path / "run")]) == 2
    assert f"{path} holds" in capsys.readouterr().err
