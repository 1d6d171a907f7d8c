"""Transformers models as extractors and the transcriber load them: whole, or an error that names the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfeat import models
from mmfeat.registry import MissingBackendError


@contextmanager
def loading(name: str, what: str = "cannot be loaded") -> Iterator[None]:
    """Whatever goes wrong inside is said of model `name` in one line, as a MissingBackendError: no clip could succeed.

    A cut file, one of another model, and settings that do not fit end in exceptions of safetensors, tokenizers (plain
    ones of theirs), torch and transformers, of any kind.
    """
    try:
        yield
    except MissingBackendError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise MissingBackendError(f"model {name!r} {what}: {said}") from error


def load_encoder(name: str, needs_pooler: bool = False) -> Any:
    """The model of a hub name or folder, float32, in evaluation mode; of an encoder with a decoder, the encoder.

    Many checkpoints lack the weights of the pooler, which may stay random where it is not needed. Raises
    MissingBackendError.
    """
    from transformers import AutoModel

    model = load_weights(AutoModel, name, unused=() if needs_pooler else ("pooler",))
    return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def load_weights(kind: Any, name: str, unused: Collection[str] = ()) -> Any:
    """The model of a hub name or folder by one of transformers' `AutoModel…`, float32.

    transformers draws weights that the files lack at random; here they are an error, unless their names hold one of
    `unused`. Raises MissingBackendError.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # a table of the heads that an encoder has no use for
    try:
        with loading(name):
            model, report = kind.from_pretrained(
                models.resolve(name), local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    finally:
        logging.set_verbosity(said)
    unused = ("masked_spec_embed", *unused)  # the former is for training
    absent = sorted(key for key in report["missing_keys"] if not any(part in key for part in unused))
    if absent:
        hint = "; choose another `pooling`" if all("pooler" in key for key in absent) else ""
        raise MissingBackendError(f"the files of model {name!r} hold no weights for {', '.join(absent[:3])}{hint}")
    return model


def check_vocabulary(tokenizer: Any, name: str) -> None:
    """transformers makes a tokenizer that knows no word where its files are missing. Raises MissingBackendError."""
    names = [tokenizer.vocab_files_names.get(key) for key in ("tokenizer_file", "vocab_file")]
    files = sorted({"tokenizer.json", *filter(None, names)})
    folder = Path(models.resolve(name))
    if any(names) and not any((folder / file).is_file() for file in files):
        raise MissingBackendError(
            f"model {name!r} has no tokenizer: {folder} holds no {' or '.join(files)}; copy them there from where the "
            "model was published"
        )
