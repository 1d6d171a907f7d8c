"""`transformers`: wordpieces and their contextual vectors from any transformers text encoder."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat import models
from mmfeat.extractors import MissingBackendError, TextConfig, register
from mmfeat.extractors.hub import check_vocabulary, load_encoder, loading
from mmfeat.track import Wordpieces


class TransformersConfig(TextConfig):
    model: str = Field("all-MiniLM-L6-v2", description="registered model, local folder, or Hugging Face hub name")
    layer: int | Literal["mean_last_4"] = Field(-1, description="hidden layer; -1 is the last")


@register("transformers", TransformersConfig, version=3, models=lambda config: (config.model,))
class Transformers:
    """Wordpieces of a transcript with one vector each.

    An empty transcript has just `[CLS] [SEP]`, by whatever names the model knows them. Every clip goes through alone,
    so that no result depends on others. Of a model of pictures and text, CLIP for one, the text part is taken. Raises
    MissingBackendError where the model cannot do what the config asks.
    """

    def __init__(self, config: TransformersConfig):
        # Imported here, so that a client that only needs the config does not load a gigabyte of libraries.
        import torch
        from transformers import AutoTokenizer

        self.config = config
        with loading(config.model, "has no tokenizer that can be loaded"):
            self._tokenizer = AutoTokenizer.from_pretrained(models.resolve(config.model), local_files_only=True)
        check_vocabulary(self._tokenizer, config.model)
        if not self._tokenizer.is_fast:
            raise MissingBackendError(f"{config.model}: its tokenizer gives no character offsets (no fast version)")
        if len(self._tokenizer("")["input_ids"]) != 2:
            raise MissingBackendError(
                f"{config.model}: its tokenizer frames no text with [CLS] and [SEP] or their like"
            )
        model = load_encoder(config.model)
        self._model = getattr(model, "text_model", model)
        self._no_gradients = torch.inference_mode
        with loading(config.model, "is no text encoder"):
            self._check(self._model.config)
            self.names = tuple(f"hidden_{k}" for k in range(self._model.config.hidden_size))
            self("")
        # What stands in the config is not always true: RoBERTa takes two of its positions for itself.
        longest = config.max_wordpieces
        with loading(config.model, f"cannot read `max_wordpieces: {longest}` at once, set fewer"):
            self(" ".join(map(str, range(longest))))

    def _check(self, model: Any) -> None:
        layer, layers = self.config.layer, model.num_hidden_layers
        if layer == "mean_last_4" and layers < 4:
            raise MissingBackendError(f"layer mean_last_4: {self.config.model} has {layers} layers")
        if layer != "mean_last_4" and not -layers - 1 <= layer <= layers:
            raise MissingBackendError(f"layer {layer}: {self.config.model} has layers 0 (input) to {layers}")
        limits = [self._tokenizer.model_max_length, getattr(model, "max_position_embeddings", None)]
        # XLNet, which has no limit, says -1.
        if (most := min(limit for limit in limits if limit and limit > 0)) < self.config.max_wordpieces:
            raise MissingBackendError(f"max_wordpieces {self.config.max_wordpieces}: {self.config.model} reads {most}")

    def __call__(self, text: str) -> Wordpieces:
        """Wordpieces of `text`, at most `max_wordpieces` with the special ones, values of shape (L, D)."""
        tokens = self._tokenizer(
            text,
            truncation=True,
            max_length=self.config.max_wordpieces,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_token_type_ids=True,  # zeros where the model has none
            return_tensors="pt",
        )
        spans = tokens.pop("offset_mapping")[0].numpy().astype(np.int32)
        _close_up(spans, text, tokens.pop("special_tokens_mask")[0].numpy() == 0)
        accepted = {key: value for key, value in tokens.items() if key in self._tokenizer.model_input_names}
        with self._no_gradients():
            output = self._model(**accepted, output_hidden_states=True)
        # The last layer is the one that the model gives: some norm it once more.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        layer = self.config.layer
        values = sum(states[-4:]) / 4 if layer == "mean_last_4" else states[layer]
        return Wordpieces(
            tokens["input_ids"][0].numpy().astype(np.int32),
            tokens["token_type_ids"][0].numpy().astype(np.int32),
            spans,
            values[0].numpy().astype(np.float32),
        )


def _close_up(spans: NDArray[np.int32], text: str, ordinary: NDArray[np.bool_]) -> None:
    """Pieces that begin with the blank before a word, or are nothing else, belong to that word.

    Their `spans`, shape (L, 2), are changed in place. `ordinary` is false for special pieces.
    """
    for k in np.flatnonzero(ordinary):
        start, end = spans[k]
        while start < len(text) and text[start].isspace():
            start += 1
        if start < len(text):
            spans[k] = start, max(end, start + 1)
