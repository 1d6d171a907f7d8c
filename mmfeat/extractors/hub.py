"""Transformers encoders as extractors load them."""

from __future__ import annotations

from typing import Any

from mmfeat import models
from mmfeat.registry import MissingBackendError


def load_encoder(name: str, needs_pooler: bool = False) -> Any:
    """The model of a hub name or folder, float32, in evaluation mode; of an encoder with a decoder, the encoder.

    transformers draws weights that the files lack at random; here they are an error, unless they are those of the
    pooler and it is not needed: many checkpoints lack it. Raises MissingBackendError.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # a table of the heads that an encoder has no use for
    try:
        model, loading = AutoModel.from_pretrained(
            models.resolve(name), local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise MissingBackendError(f"model {name!r} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(said)
    unused = ["masked_spec_embed", *([] if needs_pooler else ["pooler"])]  # the former is for training
    absent = sorted(key for key in loading["missing_keys"] if not any(part in key for part in unused))
    if absent:
        hint = "; choose another `pooling`" if all("pooler" in key for key in absent) else ""
        raise MissingBackendError(f"the files of model {name!r} hold no weights for {', '.join(absent[:3])}{hint}")
    return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
