"""Our exports in the hands of the real client, MMSA 2.2.1, which needs an environment of its own.

    python3 -m venv mmsa && mmsa/bin/pip install MMSA==2.2.1
    python tests/benchmarks/mmsa_client.py mmsa/bin/python [FEATURES.h5 …]

Every file is exported in every dialect that it allows. Without files, planted ones are taken: unaligned and aligned,
with and without unimodal labels. In the other environment, MMSA's MMDataLoader must yield the feature file's arrays,
and MMSA_run must train lf_dnn, tfn and, where there are unimodal labels, mtfn, told of the file by our config alone.
One line of MMSA's has to be mended for mtfn, see `mend_mtfn`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "valid", "test")
# MMSA's own sizes make a tensor of 280 000 columns per clip in tfn, and minutes per epoch on a laptop.
SMALL = {"hidden_dims": [16, 8, 16], "text_out": 16, "post_fusion_dim": 16, "early_stop": 2}
LABELS = {"M": "regression_labels"} | {letter: f"regression_labels_{letter}" for letter in "TAV"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="interpreter of the environment that has MMSA")
    parser.add_argument("features", type=Path, nargs="*", help="feature files (.h5); without any, planted ones")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"{'file':24} {'dialect':8} {'aligned':8} result")
        for path in args.features or planted(folder):
            for dialect, aligned in exports(path, folder):
                # Not resolved: the link's place is what makes an interpreter that of its environment.
                command = [str(args.python), __file__, "--client", str(folder / "export"), str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
                print(f"{path.name:24} {dialect:8} {aligned!s:8} {lines[-1] if lines else 'nothing said'}", flush=True)
                failed += done.returncode != 0
    sys.exit(f"{failed} failed" if failed else 0)


def planted(folder: Path) -> list[Path]:
    """Unaligned and aligned, with unimodal labels and without; the aligned ones come from a pickle."""
    import pickle

    from cmc.planted import Plan, plant
    from mmfeat.layout import FeatureFile
    from mmfeat.mmsa.read import convert
    from mmfeat.mmsa.write import dialect_data

    files = []
    for annotated in (True, False):
        path = folder / f"{'annotated' if annotated else 'plain'}.h5"
        plant(path, Plan({"train": 70, "valid": 20, "test": 20}, missing=0.1, annotated=annotated))
        with FeatureFile(path) as file:
            data = dialect_data(file, "sims" if annotated else "mosi")
        for split in data.values():
            inside = split["text_bert"][:, 1, :, None] > 0
            for modality in ("audio", "vision"):
                split[modality] = np.where(inside, split[modality][:, : inside.shape[1]], 0)
                del split[f"{modality}_lengths"]
        pickled = folder / f"aligned-{path.stem}.pkl"
        pickled.write_bytes(pickle.dumps(data))
        files += [path, convert(pickled, pickled.with_suffix(".h5"))]
    return files


def exports(path: Path, folder: Path) -> Any:
    """Export in each dialect in turn, with the arrays that the client must see beside it; gives (dialect, aligned)."""
    from mmfeat.layout import FeatureFile
    from mmfeat.mmsa import MMSAError
    from mmfeat.mmsa.original import came_from_pickle
    from mmfeat.mmsa.write import DIALECTS, export

    with FeatureFile(path) as file:
        aligned, restored = file.aligned, came_from_pickle(file)
        keys = ["id", "text", "text_bert", "audio", "vision", "audio_lengths", "vision_lengths", *LABELS.values()]
        arrays = {f"{split}/{key}": file.read(split, key) for split in SPLITS for key in keys}
        masks = {f"{split}/{m}": file.read(split, f"{m}_mask") for split in SPLITS for m in ("audio", "vision")}
    arrays = {key: array.astype(str) if array.dtype.hasobject else array for key, array in arrays.items()}
    zeroed = arrays | {key: np.where(mask[:, :, None], arrays[key], 0) for key, mask in masks.items()}
    for dialect in [*DIALECTS, *([""] if restored else [])]:
        try:
            config = export(path, folder / "export.pkl", dialect)
        except MMSAError as error:
            if "sims" not in dialect or "use --dialect mosi" not in str(error):
                raise
        else:
            if config:  # MMSA can load it
                np.savez(folder / "export.npz", **(zeroed if dialect else arrays))
                yield dialect or "as it was", aligned


# ---- what follows runs where MMSA is installed, and this project is not ----


def client(stem: Path) -> str:
    import torch
    from easydict import EasyDict

    settings = json.loads(stem.with_suffix(".mmsa.json").read_text(encoding="utf-8"))
    torch.cuda.set_device = lambda device: None  # MMSA calls it on any machine
    expected = np.load(stem.with_suffix(".npz"))
    # Files of word vectors have no token ids, and their exports no text_bert.
    for use_bert in (False, True) if any(expected[f"{split}/text_bert"][:, 0].any() for split in SPLITS) else (False,):
        compare(EasyDict(settings, use_bert=use_bert, batch_size=16), expected)
    models = ["lf_dnn", "tfn", *(["mtfn"] if settings["dataset_name"] == "sims" else [])]
    said = ["MMDataLoader yields our arrays"]
    mend_mtfn()
    for model in models:
        said.append(f"{model} {train(model, settings, stem.parent / 'mmsa')}")
    return "; ".join(said)


def compare(settings: Any, expected: Any) -> None:
    """Every batch of MMSA's loaders against the feature file's arrays."""
    from MMSA.data_loader import MMDataLoader

    settings.update(custom_feature=None, feature_T="", feature_A="", feature_V="")
    steps = tuple(settings.seq_lens)
    loaders = MMDataLoader(settings, num_workers=0)
    assert tuple(settings.seq_lens) == steps, "seq_lens"
    for split in SPLITS:
        seen = 0
        for batch in loaders[split]:
            rows = batch["index"].numpy()
            assert list(batch["id"]) == expected[f"{split}/id"][rows].tolist(), "id"
            found = {"text_bert" if settings.use_bert else "text": batch["text"]}
            found |= {"audio": batch["audio"], "vision": batch["vision"]}
            for letter, label in batch["labels"].items():
                found[LABELS[letter]] = label[:, 0]
            for key in () if settings.need_data_aligned else ("audio_lengths", "vision_lengths"):
                found[key] = batch[key]
            for key, tensor in found.items():
                array = expected[f"{split}/{key}"][rows]
                if key.endswith("lengths"):
                    array = array.clip(1)  # MMSA packs sequences, and packing refuses an empty one
                if key == "audio":
                    array = np.where(array == -np.inf, 0, array)  # as MMSA's loader does
                assert np.array_equal(tensor.numpy(), array), f"{split}, {key} differs"
            seen += len(rows)
        assert seen == len(expected[f"{split}/id"]), "clips"


def train(model: str, settings: dict[str, Any], folder: Path) -> str:
    """Train one small model for one seed, told of the file by our config alone; gives its test figure."""
    import pandas
    from MMSA import MMSA_run

    results = folder / model
    MMSA_run(
        model,
        settings["dataset_name"],
        config=settings | SMALL,
        seeds=[1111],
        gpu_ids=[],
        num_workers=0,
        verbose_level=0,
        model_save_dir=results,
        res_save_dir=results,
        log_dir=results,
    )
    table = pandas.read_csv(results / "normal" / f"{settings['dataset_name']}.csv").iloc[-1]
    mean, _ = re.findall(r"\d+\.\d+", table["MAE"])  # mean and deviation over seeds, in percent
    return f"MAE {float(mean) / 100:.2f}"


def mend_mtfn() -> None:
    """MMSA 2.2.1 logs a variable of MTFN's training loop before it is set, so that mtfn trains on no file at all."""
    module = importlib.import_module("MMSA.trains.multiTask.MTFN")
    source = textwrap.dedent(inspect.getsource(module.MTFN.do_train))
    exec(source.replace(" {dict_to_str(train_results)}", ""), vars(module))
    module.MTFN.do_train = module.do_train


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        print(client(Path(sys.argv[2])))
    else:
        main()
