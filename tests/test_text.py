"""Text extractors: every family of tokenizers, layers, offsets; word vectors and what becomes of unknown words."""

from __future__ import annotations

import gzip
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mmfeat import models
from mmfeat.align import words_of_pieces
from mmfeat.clip import _text
from mmfeat.corpus import Clip
from mmfeat.extractors import MissingBackendError, find
from mmfeat.extractors.word_vectors import VectorsError, open_vectors
from mmfeat.recipe import load_recipe
from mmfeat.shards import Shard
from mmfeat.track import Word
from mmfeat.words import transcript
from tests import tiny_models

_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
SAMPLES = ["Hello world what a lovely day naïve café", "你好世界今天天气真好", "😀 привет мир"] * 3
SPECIAL = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


def roberta(folder: Path, unigram: bool = False) -> Path:
    """RoBERTa with byte-level BPE; XLM-RoBERTa with a unigram model that marks blanks. Neither knows segments."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(kinds.Unigram() if unigram else kinds.BPE())
    if unigram:
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SAMPLES, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**_SIZES, "vocab_size": 400, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
    model = t.XLMRobertaModel(t.XLMRobertaConfig(**sizes)) if unigram else t.RobertaModel(t.RobertaConfig(**sizes))
    model.save_pretrained(folder)
    return folder


def distilbert(folder: Path) -> Path:
    import torch
    import transformers as t

    tiny_models.text(folder)
    vocabulary = (folder / "config.json").read_text()
    torch.manual_seed(0)
    size = t.BertConfig.from_pretrained(folder).vocab_size
    t.DistilBertModel(
        t.DistilBertConfig(vocab_size=size, dim=32, n_layers=4, n_heads=4, hidden_dim=48)
    ).save_pretrained(folder)
    assert vocabulary != (folder / "config.json").read_text()
    return folder


def clip(folder: Path, whole: bool = False) -> Path:
    """CLIP's text model, which norms its last layer once more, alone or in a checkpoint of both halves."""
    import torch
    import transformers as t

    tiny_models.text(folder)
    size = t.BertConfig.from_pretrained(folder).vocab_size
    torch.manual_seed(0)
    text = {**_SIZES, "vocab_size": size, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    both = t.CLIPConfig(text_config=text, vision_config={**_SIZES, "image_size": 32, "patch_size": 8})
    (t.CLIPModel(both) if whole else t.CLIPTextModel(both.text_config)).save_pretrained(folder)
    return folder


MAKERS = {
    "bert": tiny_models.text,
    "chinese": lambda folder: tiny_models.text(folder, "你 好 世 界 今 天 ， 。 2 0 1 9"),
    "distilbert": distilbert,
    "roberta": roberta,
    "xlm-roberta": lambda folder: roberta(folder, unigram=True),
    "clip": clip,
    "whole clip": lambda folder: clip(folder, whole=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("text-models")
    return {family: make(folder / family) for family, make in MAKERS.items()}


def made(name: str, **settings):
    registered = find(name)
    return registered.make(registered.config(**settings))


@pytest.mark.parametrize("family", MAKERS)
class TestTransformers:
    @pytest.mark.parametrize(
        "text", ["", " ", "what a day", "你好，世界。 2019", "cafe\u0301 naïve 😀 мир", "day " * 80]
    )
    def test_pieces_stand_where_they_say(self, folders, family: str, text: str) -> None:
        pieces = made("transformers", model=str(folders[family]), max_wordpieces=20)(text)
        assert 2 <= len(pieces.ids) <= 20 and not pieces.segments.any()
        first, last = made("transformers", model=str(folders[family]))("").ids
        assert (pieces.ids[0], pieces.ids[-1]) == (first, last)  # also after truncation
        spans = pieces.spans[1:-1]
        assert (spans[:, 0] < spans[:, 1]).all() and (np.diff(spans[:, 0]) >= 0).all()
        assert not any(text[start].isspace() for start, _ in spans if text[start:].strip())
        if len(pieces.ids) < 20:
            covered = {place for start, end in spans for place in range(start, end)}
            assert covered >= {place for place, letter in enumerate(text) if letter.isalnum()}

    def test_every_word_of_the_transcript_has_a_piece(self, folders, family: str) -> None:
        text = "what a lovely day 你好 world"
        pieces = made("transformers", model=str(folders[family]))(text)
        words = [Word(token.text, 0, 1, 1, token.span) for token in transcript.tokens(text)]
        owner = words_of_pieces(pieces, words)
        assert set(owner[1:-1].ravel().tolist()) == set(range(len(words)))  # blanks belong to the word after them

    def test_layers_are_the_model_s_own(self, folders, family: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        text = "what a lovely day"
        tokenizer = AutoTokenizer.from_pretrained(folders[family])
        tokens = {key: value for key, value in tokenizer(text, return_tensors="pt").items() if "type" not in key}
        with torch.inference_mode():
            model = AutoModel.from_pretrained(folders[family]).eval()
            output = getattr(model, "text_model", model)(**tokens, output_hidden_states=True)
        hidden = (*output.hidden_states[:-1], output.last_hidden_state)
        expected = {-1: hidden[-1], 0: hidden[0], 2: hidden[2], "mean_last_4": torch.stack(hidden[-4:]).mean(0)}
        for layer, values in expected.items():
            found = made("transformers", model=str(folders[family]), layer=layer)(text).values
            np.testing.assert_allclose(found, values[0], atol=1e-5)


class TestWhatATransformersModelCannotDo:
    def refused(self, match: str, **settings) -> None:
        with pytest.raises(MissingBackendError, match=match):
            made("transformers", **settings)

    def test_layers(self, folders) -> None:
        self.refused(r"layer 5: .*bert has layers 0 \(input\) to 4", model=str(folders["bert"]), layer=5)

    def test_mean_of_four_layers_out_of_three(self, folders, tmp_path: Path) -> None:
        import transformers as t

        tiny_models.text(tmp_path)
        size = t.BertConfig.from_pretrained(tmp_path).vocab_size
        t.BertModel(t.BertConfig(**{**_SIZES, "num_hidden_layers": 3}, vocab_size=size)).save_pretrained(tmp_path)
        self.refused("mean_last_4: .* has 3 layers", model=str(tmp_path), layer="mean_last_4")

    def test_more_wordpieces_than_it_reads(self, folders) -> None:
        self.refused("max_wordpieces 65: .*bert reads 64", model=str(folders["bert"]), max_wordpieces=65)

    def test_more_wordpieces_than_it_can_read_although_its_config_says_so(self, folders, tmp_path: Path) -> None:
        """RoBERTa's first position is the third; known only where the tokenizer says nothing of it."""
        from transformers import AutoTokenizer

        roberta(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.model_max_length = 10**30
        tokenizer.save_pretrained(tmp_path)
        self.refused("cannot read `max_wordpieces: 66` at once, set fewer", model=str(tmp_path), max_wordpieces=66)
        assert len(made("transformers", model=str(tmp_path), max_wordpieces=64)("day " * 80).ids) == 64

    def test_a_model_without_limit_may_say_minus_one(self, tmp_path: Path) -> None:
        import transformers as t

        tiny_models.text(tmp_path)
        size = t.BertConfig.from_pretrained(tmp_path).vocab_size
        t.XLNetModel(t.XLNetConfig(vocab_size=size, d_model=32, n_layer=4, n_head=4, d_inner=48)).save_pretrained(
            tmp_path
        )
        assert made("transformers", model=str(tmp_path))("what a day").values.shape == (5, 32)

    def test_a_tokenizer_without_frame(self, folders, tmp_path: Path) -> None:
        from tokenizers import processors
        from transformers import AutoTokenizer

        roberta(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
        tokenizer.save_pretrained(tmp_path)
        self.refused(r"frames no text with \[CLS\] and \[SEP\]", model=str(tmp_path))

    def test_weights_that_are_not_there(self, folders, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tiny_models.text(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {key: value for key, value in weights.items() if "layer.2.output" not in key}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        self.refused("hold no weights for .*layer.2.output", model=str(tmp_path))


VECTORS = {
    "do": [1, 0], "n't": [2, 0], "it": [3, 0], "'s": [4, 0], "well": [5, 0], "known": [6, 0], "day": [7, 0],
    ",": [8, 0],
    "Paris": [9, 0], "paris": [10, 0], "你好": [11, 0], "世界": [12, 0], "世": [13, 0], "café": [14, 0], "can": [15, 0],
    "ca": [16, 0], "two words": [17, 0], "U.S": [18, 0],
}  # fmt: skip


def lines(header: str = "") -> str:
    return header + "".join(f"{word} {x} {y}\n" for word, (x, y) in VECTORS.items())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmfeat" / "vectors"


@pytest.fixture
def file(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "glove.txt").write_text(lines(), encoding="utf-8")
    return tmp_path / "glove.txt"


def rows(extractor, text: str) -> list[tuple[str, float]]:
    pieces = extractor(text)
    return [(text[start:end], value) for (start, end), value in zip(pieces.spans, pieces.values[:, 0], strict=True)]


class TestGlove:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", []),
            ("Day, DAY", [("Day", 7), (",", 8), ("DAY", 7)]),
            ("don't it’s", [("do", 1), ("n't", 2), ("it", 3), ("’s", 4)]),
            ("can't", [("ca", 16), ("n't", 2)]),
            ("well-known!", [("well", 5), ("known", 6)]),
            ("你好世界世你", [("你好", 11), ("世界", 12), ("世", 13), ("你", 0)]),
            ("day你好x", [("day", 7), ("你好", 11), ("x", 0)]),
            ("cafe\u0301 blorp 2,000 😀", [("cafe\u0301", 14), ("blorp", 0), ("2,000", 0)]),
            ("day,day", [("day", 7), ("day", 7)]),
        ],
    )
    def test_words_and_their_rows(self, file: Path, text: str, expected: list) -> None:
        extractor = made("glove", vectors=str(file))
        assert rows(extractor, text) == expected
        assert extractor.names == ("dim_0", "dim_1") and not extractor(text).ids.any()

    def test_case(self, file: Path) -> None:
        assert rows(made("glove", vectors=str(file), lowercase=False), "Paris PARIS U.S") == [
            ("Paris", 9), ("PARIS", 10), ("U.S", 18)
        ]  # fmt: skip
        assert rows(made("glove", vectors=str(file)), "Paris") == [("Paris", 10)]

    def test_unknown_words_may_be_the_mean(self, file: Path) -> None:
        mean = float(np.mean([x for x, _ in VECTORS.values()]))
        assert rows(made("glove", vectors=str(file), unknown="mean"), "blorp") == [("blorp", pytest.approx(mean))]

    def test_long_transcripts_are_cut(self, file: Path) -> None:
        recipe = load_recipe("default").changed(text={"extractor": "glove", "vectors": str(file), "max_wordpieces": 4})

        def said(text: str) -> Shard:
            return _text(Clip("v", "1", "test", None, text, 0.0), recipe, {})

        shard = said("day " * 9)
        assert (shard.status, shard.reason) == ("cut_text", "transcript cut to 4 wordpieces")
        assert said("day " * 4).status == "ok"
        assert said("").status == said("😀").status == said("blorp").status == "no_text"

    def test_words_of_the_sound_find_their_rows(self, file: Path) -> None:
        text = "Well-known, don't you blorp? 你好"
        pieces = made("glove", vectors=str(file))(text)
        words = [Word(token.text, 0, 1, 1, token.span) for token in transcript.tokens(text)]
        owner = words_of_pieces(pieces, words)
        assert set(map(tuple, owner.tolist())) == {(-1, -1), *((k, k) for k in range(4)), (4, 5)}  # 你好 is two words
        assert [text[s:e] for (s, e), (word, _) in zip(pieces.spans, owner, strict=True) if not word] == [
            "Well", "known"
        ]  # fmt: skip

    def test_no_file_is_said_before_anything_is_done(self, tmp_path: Path) -> None:
        section = {"extractor": "glove", "vectors": str(tmp_path / "none.txt")}
        with pytest.raises(MissingBackendError, match=r"no file of word vectors at .*none.txt.*curl -LO"):
            load_recipe("default").changed(text=section).fingerprints()

    def test_the_file_s_content_is_part_of_the_fingerprint(self, file: Path) -> None:
        recipe = load_recipe("default").changed(text={"extractor": "glove", "vectors": str(file)})
        before = recipe.fingerprints()["text"]
        file.write_text(lines().replace(" 7 0", " 7 1"), encoding="utf-8")
        assert recipe.fingerprints()["text"] != before


class TestVectorFiles:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("9 2\nhi 1 2\nyou 3 4\n", "has 2 words, its first line says 9"),
            ("2 2\nhi 1 2 3\nyou 3 4 5\n", "line 2: not a word and 2 numbers"),
        ],
    )
    def test_files_that_are_not_what_their_first_line_says(self, content: str, says: str, tmp_path: Path) -> None:
        (tmp_path / "v.txt").write_text(content)
        with pytest.raises(VectorsError, match=says):
            open_vectors(tmp_path / "v.txt", "")

    def test_a_byte_order_mark_is_no_part_of_the_first_word(self, tmp_path: Path) -> None:
        (tmp_path / "v.txt").write_text("hi 1 2\nयह 3 4\nहिन्दी 5 6\n", encoding="utf-8-sig")
        extractor = find("glove").make(find("glove").config(vectors=str(tmp_path / "v.txt")))
        assert extractor("hi यह हिन्दी").values.tolist() == [[1, 2], [3, 4], [5, 6]]

    @pytest.mark.parametrize(
        "content",
        [
            "hi\t1\t2\nyou\t3\t4\n",
            "hi\t1 2\nyou\t3 4\n",
            "hi  1 2\nyou 3   4  \n",
            "2\t2\nhi \t 1 2\t\nyou 3 4\n\t\n",
            "hi 1 2\n\t3 4\nyou 3 4\n",
        ],
    )
    def test_numbers_may_be_parted_by_tabs_and_by_several_blanks(
        self, content: str, tmp_path: Path, cache: Path
    ) -> None:
        (tmp_path / "v.txt").write_text(content)
        found = open_vectors(tmp_path / "v.txt")
        assert (found.columns, found.get("hi").tolist(), found.get("you").tolist()) == (2, [1, 2], [3, 4])

    @pytest.mark.parametrize("form", ["plain", "header", "gz", "zip", "crlf"])
    def test_forms(self, tmp_path: Path, cache: Path, form: str) -> None:
        content = lines(f"{len(VECTORS)} 2\n" if form == "header" else "").encode()
        path = tmp_path / {"gz": "v.txt.gz", "zip": "v.zip"}.get(form, "v.txt")
        if form == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("v.txt", content)
        else:
            content = content.replace(b"\n", b"\r\n") if form == "crlf" else content
            path.write_bytes(gzip.compress(content) if form == "gz" else content)
        found = open_vectors(path)
        assert (len(found), found.columns) == (len(VECTORS), 2)
        for word, vector in VECTORS.items():
            assert found.get(word).tolist() == vector
        assert "no such" not in found and found.get("") is None

    def test_read_once_until_it_changes(self, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        open_vectors(file)
        monkeypatch.setattr("mmfeat.extractors.word_vectors._make_index", None)  # a second reading would fail
        assert open_vectors(file).get("day").tolist() == [7, 0]
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
        file.write_text("day 1 2 3\n")
        assert open_vectors(file).get("day").tolist() == [1, 2, 3]
        assert not list(cache.glob(".making*"))

    def test_the_first_of_two_rows_of_a_word_counts(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "v.txt").write_text("a 1 2\nb 3 4\na 5 6\n")
        assert open_vectors(tmp_path / "v.txt").get("a").tolist() == [1, 2]

    def test_many_processes_at_once(self, file: Path, cache: Path) -> None:
        with multiprocessing.get_context("fork").Pool(4) as pool:
            found = pool.map(_columns, [file] * 8)
        assert found == [2] * 8 and len(list(cache.iterdir())) == 1

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "holds no word vectors"),
            (b"day 1 2\nnight 1\n", "line 2: not a word and 2 numbers: 'night 1'"),
            (b"day 1 2\nnight 1 x\n", "line 2"),
            (b"day 1 nan\n", "line 1"),
            (b"3 2\n\x00\x01\x02\xff\xfe", "line 2"),
            (b"lonely\n", "line 1"),
        ],
    )
    def test_what_is_no_such_file_is_named_and_leaves_nothing(self, tmp_path, cache, content: bytes, says: str) -> None:
        (tmp_path / "v.txt").write_bytes(content)
        with pytest.raises(VectorsError, match=says):
            open_vectors(tmp_path / "v.txt")
        assert not list(cache.iterdir())

    def test_archives(self, tmp_path: Path, cache: Path) -> None:
        with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
            archive.writestr("50.txt", "a 1\n")
            archive.writestr("100.txt", "a 1 2\n")
        assert open_vectors(tmp_path / "v.zip", "100.txt").columns == 2
        with pytest.raises(VectorsError, match=r"choose one file in it as `member`: 50.txt, 100.txt"):
            open_vectors(tmp_path / "v.zip")
        (tmp_path / "cut.gz").write_bytes(gzip.compress(lines().encode() * 50)[:-20])
        with pytest.raises(VectorsError, match="breaks off after line"):
            open_vectors(tmp_path / "cut.gz")
        (tmp_path / "no.zip").write_bytes(b"PK")
        with pytest.raises(VectorsError, match="no readable zip"):
            open_vectors(tmp_path / "no.zip")


def _columns(path: Path) -> int:
    return open_vectors(path).columns


def test_a_file_is_identified_by_its_content(tmp_path: Path) -> None:
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.task").write_bytes(content)
    a, b, c = (models.digest(str(tmp_path / folder / "m.task")) for folder in "abc")
    assert a == b != c
