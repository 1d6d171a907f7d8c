"""`transformers`: wordpieces and their contextual vectors from any transformers text encoder."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mmfeat import models
from mmfeat.extractors import MissingBackendError, TextConfig, register
from mmfeat.track import Wordpieces


class TransformersConfig(TextConfig):
    model: str = Field("all-MiniLM-L6-v2", description="registered model, local folder, or Hugging Face hub name")
    layer: int | Literal["mean_last_4"] = Field(-1, description="hidden layer; -1 is the last")


@register("transformers", TransformersConfig, version=1, models=lambda config: (config.model,))
class Transformers:
    """Wordpieces of a transcript with one vector each.

    An empty transcript has just `[CLS] [SEP]`. Every clip goes through alone, so that no result depends on others.
    """

    def __init__(self, config: TransformersConfig):
        # Imported here, so that a client that only needs the config does not load a gigabyte of libraries.
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.config = config
        folder = models.resolve(config.model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not self._tokenizer.is_fast:
            raise MissingBackendError(f"{config.model}: its tokenizer gives no character offsets (no fast version)")
        self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self._no_gradients = torch.inference_mode
        layers = self._model.config.num_hidden_layers
        if config.layer != "mean_last_4" and not -layers - 1 <= config.layer <= layers:
            raise ValueError(f"layer {config.layer}: {config.model} has layers 0 (input) to {layers}")
        self.names = tuple(f"hidden_{k}" for k in range(self._model.config.hidden_size))

    def __call__(self, text: str) -> Wordpieces:
        """Wordpieces of `text`, at most `max_wordpieces` with the special ones, values of shape (L, D)."""
        tokens = self._tokenizer(
            text,
            truncation=True,
            max_length=self.config.max_wordpieces,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        spans = tokens.pop("offset_mapping")[0].numpy().astype(np.int32)
        accepted = {key: value for key, value in tokens.items() if key in self._tokenizer.model_input_names}
        with self._no_gradients():
            hidden = self._model(**accepted, output_hidden_states=True).hidden_states
        layer = self.config.layer
        values = sum(hidden[-4:]) / 4 if layer == "mean_last_4" else hidden[layer]
        return Wordpieces(
            tokens["input_ids"][0].numpy().astype(np.int32),
            tokens["token_type_ids"][0].numpy().astype(np.int32),
            spans,
            values[0].numpy().astype(np.float32),
        )
