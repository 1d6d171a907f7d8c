"""Transformers models of a few thousand random weights, made on the spot: what a real one's folder holds, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SPEECH = ("wav2vec2", "wav2vec2-layer", "hubert", "wavlm", "whisper")
IMAGE = ("clip", "dinov2", "vit")
_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
_CONVOLUTIONS = {  # the real models' receptive field and stride, at fewer channels
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def speech(family: str, folder: Path, **changes: Any) -> Path:
    """An encoder of speech, one of `SPEECH` or "sew"; `wav2vec2-layer` has layer norms and normalised input."""
    import transformers as t

    torch.manual_seed(0)
    if family == "whisper":
        sizes = {"d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
        sizes |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 60}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
        model: Any = t.WhisperModel(t.WhisperConfig(**{**sizes, **tokens, **changes}))
        extractor: Any = t.WhisperFeatureExtractor()
    else:
        by_layer = family == "wav2vec2-layer"
        norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if by_layer else {}
        kinds = {
            "wav2vec2": (t.Wav2Vec2Config, t.Wav2Vec2Model),
            "hubert": (t.HubertConfig, t.HubertModel),
            "wavlm": (t.WavLMConfig, t.WavLMModel),
            "sew": (t.SEWConfig, t.SEWModel),
        }
        config, kind = kinds[family.removesuffix("-layer")]
        model = kind(config(**{**_SIZES, **_CONVOLUTIONS, **norms, **changes}))
        extractor = t.Wav2Vec2FeatureExtractor(do_normalize=by_layer, return_attention_mask=by_layer)
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def image(family: str, folder: Path, size: int = 32) -> Path:
    """An encoder of pictures, one of `IMAGE`, that takes squares of `size` pixels in patches of 8."""
    import transformers as t

    torch.manual_seed(0)
    shape = {"image_size": size, "patch_size": 8}
    if family == "clip":
        text = {**_SIZES, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        model: Any = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config={**_SIZES, **shape}, projection_dim=16))
        processor: Any = t.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    elif family == "dinov2":
        sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
        model = t.Dinov2Model(t.Dinov2Config(**sizes, **shape))
        processor = t.BitImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    else:
        model = t.ViTModel(t.ViTConfig(**_SIZES, **shape))
        processor = t.ViTImageProcessor(size={"height": size, "width": size})
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def text(folder: Path, words: str = "hello world what a lovely day") -> Path:
    """A BERT with a tokenizer that knows `words`; others are spelt, and what it cannot spell is `[UNK]`."""
    import transformers as t

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    letters = [piece for letter in "abcdefghijklmnopqrstuvwxyz.,!?'" for piece in (letter, f"##{letter}")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words.split(), *letters])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    t.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    t.BertModel(t.BertConfig(**_SIZES, vocab_size=len(vocabulary), max_position_embeddings=64)).eval().save_pretrained(
        folder
    )
    return folder


def recogniser(folder: Path, seed: int = 0) -> Path:
    """A Whisper with tokenizer that hears letters in any sound, 16 of them in half a minute; English and Chinese."""
    import transformers as t
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    special = ["endoftext", "startoftranscript", "en", "zh", "translate", "transcribe", "startofprev", "notimestamps"]
    special += [f"{k / 50:.2f}" for k in range(1501)]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *(f"<|{name}|>" for name in special)])}
    t.WhisperTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    t.WhisperFeatureExtractor().save_pretrained(folder)
    end, start, english, chinese, translate, transcribe, previous, no_times = range(256, 264)
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_target_positions": 64}
    torch.manual_seed(seed)
    model = t.WhisperForConditionalGeneration(
        t.WhisperConfig(vocab_size=len(vocabulary), suppress_tokens=[], begin_suppress_tokens=[], **sizes, **ends)
    )
    with torch.no_grad():  # sure of the letters, so that it does not hear nothing
        model.model.decoder.embed_tokens.weight *= 0.1
        model.model.decoder.embed_tokens.weight[[vocabulary[letter] for letter in "abcdefghijklmnopqrstuvwxyzĠ"]] *= 300
    model.generation_config = t.GenerationConfig(max_length=20, is_multilingual=True, **ends)
    languages = {"lang_to_id": {"<|en|>": english, "<|zh|>": chinese}, "prev_sot_token_id": previous}
    tasks = {"task_to_id": {"transcribe": transcribe, "translate": translate}, "no_timestamps_token_id": no_times}
    for name, value in {**languages, **tasks}.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return folder


def vectors(path: Path) -> Path:
    """A file of word vectors of 4 columns, as GloVe's are."""
    words = ["what", "an", "a", "day", "!", ",", "do", "n't", "word", "hello", "你", "好"]
    path.write_text("".join(f"{word} {k} {k / 10} -{k} 0.5\n" for k, word in enumerate(words, 1)), encoding="utf-8")
    return path


SETTINGS: dict[str, Any] = {
    "glove": lambda folder: {"vectors": str(vectors(folder / "vectors.txt"))},
    "image": lambda folder: {"model": str(image("clip", folder / "clip")), "frame_rate": None},
    "ssl": lambda folder: {"model": str(speech("wavlm", folder / "wavlm"))},
}
"""Extractor → a call that makes its model in a folder and gives the settings that name it, for the contract test."""
