"""Masked pretraining: what is hidden stays hidden, what is padding is no target, what is learnt beats not looking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from cmc.config import MODALITIES, Config
from cmc.data import Split
from cmc.strategies.masked import SHARE, VERSIONS, Masked, Pieces, hide, pieces_of, read
from cmc.text_encoder import cache
from cmc.unimodal import TextModel, Unimodal
from tests.strategy_clips import COLUMNS, TASK, split, spoilt, whole

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(pretrain="masked", width=8, heads=2, layers=1, batch_size=4, text="freeze")


def stage(
    train: Split, valid: Split, unlabelled: Sequence[Split] = (), encoder: TextModel | None = None, trained: bool = True
) -> Masked:
    torch.manual_seed(0)
    models = {m: Unimodal(m, COLUMNS[m], 3, CONFIG) for m in MODALITIES}
    made = Masked(models, train, valid, CONFIG, TASK, unlabelled, encoder)
    for layer in made.filler.out.values() if trained else ():
        torch.nn.init.normal_(layer.weight)  # answers start at the mean whatever is read
    for module in (*models.values(), made.filler):
        module.eval()
    return made


@pytest.fixture(scope="module")
def encoder() -> TextModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": COLUMNS["text"] * 2, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=60, intermediate_size=16, max_position_embeddings=16, **sizes))
    return TextModel(_Narrow(model), frozen=True)


class _Narrow(torch.nn.Module):
    """A model's output, cut to the columns that the clips have."""

    def __init__(self, model: BertModel):
        super().__init__()
        self.model = model

    def forward(self, **tokens: torch.Tensor) -> object:
        made = self.model(**tokens)
        made.last_hidden_state = made.last_hidden_state[:, :, : COLUMNS["text"]]
        return made


def test_about_15_per_cent_are_hidden_in_runs() -> None:
    mask = torch.arange(40) < torch.randint(10, 41, (500, 1), generator=torch.Generator().manual_seed(0))
    for span in (1, 4):
        hidden = hide(mask, span, torch.Generator().manual_seed(0))
        assert not (hidden & ~mask).any()
        assert float(hidden.sum() / mask.sum()) == pytest.approx(SHARE, abs=0.02)
    starts = hidden[:, 1:-1] & ~hidden[:, :-2]
    assert (hidden[:, 1:-1][starts] == hidden[:, 2:][starts]).float().mean() > 0.9  # a run goes on


def test_padding_and_its_content_do_not_decide_what_is_hidden() -> None:
    mask = torch.ones(6, 20, dtype=torch.bool)
    shorter = mask.clone()
    shorter[:, 12:] = False
    whole_, cut = (hide(m, 4, torch.Generator().manual_seed(3)) for m in (mask, shorter))
    assert torch.equal(whole_ & shorter, cut)


def test_special_pieces_are_never_hidden() -> None:
    clips = split(5)
    mask = clips.masks["text"]
    kept = pieces_of(clips.tokens, mask)
    assert torch.equal(mask.sum(1) - kept.sum(1), torch.full((5,), 2).minimum(mask.sum(1)))
    assert not kept[:, 0].any() and not any(kept[k, int(mask[k].sum()) - 1] for k in range(5))
    words = replace(clips, tokens=clips.tokens * torch.tensor([0, 1, 1])[:, None])  # vectors of words: none is special
    assert torch.equal(pieces_of(words.tokens, mask), mask)


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_hidden_is_not_seen(modality: str) -> None:
    clips = split(8)
    made, batch = stage(clips, clips), whole(clips)
    torch.manual_seed(1)
    hidden = made.hidden(batch)
    assert hidden[modality].any()
    values = batch.inputs[modality].clone()
    values[hidden[modality]] += 50.0
    other = replace(batch, inputs={**batch.inputs, modality: values})
    before, after = (answers(made, b, hidden) for b in (batch, other))
    assert all(torch.equal(before[m], after[m]) for m in MODALITIES)
    values = batch.inputs[modality].clone()
    values[~hidden[modality]] += 50.0
    seen = answers(made, replace(batch, inputs={**batch.inputs, modality: values}), hidden)
    assert not any(torch.allclose(before[m], seen[m]) for m in MODALITIES)  # all three are read for each


def answers(made: Masked, batch: object, hidden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    hook = made.filler.register_forward_hook(lambda module, given, answer: found.update(answer))
    made.losses(batch, hidden)
    hook.remove()
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_padding_is_no_target(modality: str) -> None:
    clips = split(8)
    made = stage(clips, clips)
    assert made.validate(1) == stage(clips, spoilt(clips, modality, padding=True)).validate(1)
    assert made.validate(1) != stage(clips, spoilt(clips, modality)).validate(1)


def test_neighbours_in_a_batch_change_nothing() -> None:
    clips = split(6)
    made = stage(clips, clips)
    hidden = made.hidden(whole(clips), torch.Generator().manual_seed(2))
    other = spoilt(spoilt(clips, "audio", slice(1, None)), "vision", slice(1, None))
    before, after = (answers(made, whole(s), hidden) for s in (clips, other))
    for m in MODALITIES:
        rows = int(hidden[m][0].sum())
        torch.testing.assert_close(before[m][:rows], after[m][:rows])


def test_wordpieces_that_training_has_not_are_no_targets() -> None:
    clips = split(6)
    ids = clips.tokens[:, 0][pieces_of(clips.tokens, clips.masks["text"])]
    pieces = Pieces(ids)
    assert len(pieces) == len(ids.unique()) and pieces(ids).min() == 0
    assert pieces(torch.tensor([1, 9999])).tolist() == [-1, -1]
    torch.testing.assert_close(pieces.log_share.exp().sum(), torch.tensor(1.0))


def test_vectors_of_words_are_targets_where_there_are_no_wordpieces() -> None:
    clips = split(8)
    words = replace(clips, tokens=clips.tokens * torch.tensor([0, 1, 1])[:, None])
    made = stage(words, words)
    assert made.filler.pieces is None and "text" in made.filler.targets
    assert stage(clips, clips).filler.pieces is not None
    losses, counts, _ = made.losses(whole(words), made.hidden(whole(words), torch.Generator().manual_seed(0)))
    assert counts["text"] > 0 and torch.isfinite(losses["text"])


def test_transcripts_without_a_word() -> None:
    """Special wordpieces alone: nothing to hide, and no text to learn from."""
    clips = split(6)
    tokens = clips.tokens.clone()
    tokens[:, :, 2:] = 0
    silent = replace(clips, tokens=tokens, masks={**clips.masks, "text": torch.zeros_like(clips.masks["text"])})
    made = stage(silent, silent)
    losses = made.validate(1)
    assert "text" not in losses and made.figures(losses)["text"] == pytest.approx(losses["audio"] + losses["vision"])


def test_the_encoder_does_not_read_hidden_pieces(encoder: TextModel) -> None:
    """Another word in a hidden place: the same vectors everywhere else. Cached as it is, the word would leak."""
    clips = split(8)
    first = read(clips, encoder, torch.Generator().manual_seed(0))
    hidden = clips.masks["text"] & (first.tokens[:, 1] == 0)
    assert hidden.any() and not (hidden & ~pieces_of(clips.tokens, clips.masks["text"])).any()
    tokens = clips.tokens.clone()
    tokens[:, 0][hidden] = 59
    again = read(replace(clips, tokens=tokens), encoder, torch.Generator().manual_seed(0))
    rest = clips.masks["text"] & ~hidden
    torch.testing.assert_close(first.inputs["text"][rest], again.inputs["text"][rest])
    plain, leaking = (cache(s, encoder).inputs["text"] for s in (clips, replace(clips, tokens=tokens)))
    assert not torch.allclose(plain[rest], leaking[rest])


def test_epochs_take_turns_in_what_the_encoder_did_not_read(encoder: TextModel) -> None:
    clips = split(8)
    made = stage(clips, clips, encoder=encoder)
    assert len(made.versions) == VERSIONS
    seen = []
    for epoch in range(1, VERSIONS + 2):
        (source,) = made.sources
        seen.append(source.tokens[:, 1])
        batch = whole(source)
        assert torch.equal(made.hidden(batch)["text"], batch.masks["text"] & (batch.tokens[:, 1] == 0))
        made.train_epoch(epoch, source.batches(4), 2)
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[VERSIONS])
    state = made.state()
    assert state["epochs"] == VERSIONS + 1
    other = stage(clips, clips, encoder=encoder)
    other.restore(state)
    assert torch.equal(other.sources[0].tokens, made.sources[0].tokens)


def test_clips_without_a_label_are_learnt_from() -> None:
    clips, more = split(8), replace(split(8, seed=1), labels=None)
    made = stage(clips, clips, [more])
    assert [len(source) for source in made.sources] == [8, 8] and made.sources[1].labels is None
    before = made.filler.kinds["audio"].clone()
    made.train_epoch(1, more.batches(4), 2)
    assert not torch.equal(before, made.filler.kinds["audio"])


def test_it_beats_an_answer_that_sees_nothing() -> None:
    train, valid = split(64), split(48, seed=1)
    made = stage(train, valid, trained=False)
    first = made.validate(0)
    for m in MODALITIES:
        assert first[m] == pytest.approx(first[f"{m}_mean"], rel=1e-5)
    order = torch.Generator().manual_seed(0)
    for epoch in range(1, 21):
        made.train_epoch(epoch, train.batches(4, order), 16)
    losses = made.validate(21)
    for m in ("audio", "vision"):  # these clips' words are random
        assert losses[m] < 0.6 * losses[f"{m}_mean"], losses


def test_a_modality_that_no_clip_has() -> None:
    clips = split(6)
    made = stage(clips, clips)
    without = clips.without("audio")
    losses, counts, _ = made.losses(whole(without), made.hidden(whole(without), torch.Generator().manual_seed(0)))
    assert counts["audio"] == 0 and float(losses["audio"].detach()) == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
