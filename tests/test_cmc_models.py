"""The models: independence of padding and neighbours, missing modalities, fusion, averaging, published names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.attention import attend, dropout
from cmc.checkpoint import from_reference, to_reference
from cmc.config import MODALITIES, Config
from cmc.data import Batch, Split
from cmc.ema import Average, span_momentum
from cmc.fusion import Multimodal, Router, fuse
from cmc.unimodal import Unimodal, bucket_sizes, buckets, encode

COLUMNS = {"text": 6, "audio": 5, "vision": 4}
STEPS = {"text": 7, "audio": 12, "vision": 9}


def clips(number: int, masked: bool = True, seed: int = 0) -> Split:
    """Random clips of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    masks, inputs = {}, {}
    for m in MODALITIES:
        lengths = torch.randint(3, STEPS[m] + 1, (number,), generator=generator)
        masks[m] = torch.arange(STEPS[m]) < lengths[:, None]
        values = torch.randn(number, STEPS[m], COLUMNS[m], generator=generator)
        inputs[m] = values * masks[m][:, :, None]
    tokens = torch.stack([masks["text"].long()] * 3, 1)
    kept: dict[str, Tensor | None] = dict(masks) if masked else dict.fromkeys(MODALITIES)
    return Split(tuple(map(str, range(number))), inputs, kept, tokens, None)


def padded(split: Split, more: int) -> Split:
    """The same clips with `more` further steps of garbage behind their masks."""
    inputs = {m: torch.cat([x, torch.full((len(x), more, x.shape[2]), 7.0)], 1) for m, x in split.inputs.items()}
    masks = {m: None if mask is None else functional.pad(mask, (0, more)) for m, mask in split.masks.items()}
    return replace(split, inputs=inputs, masks=masks, tokens=functional.pad(split.tokens, (0, more)))


def whole(split: Split) -> Batch:
    """All clips untrimmed."""
    return Batch(torch.arange(len(split)), split.inputs, split.masks, split.tokens)


def model(mode: str = "calibrated", **settings: object) -> Multimodal:
    torch.manual_seed(0)
    built = Multimodal(COLUMNS, 3, Config(mode=mode, layers=2, **settings))
    for branch in built.branches.values():
        if branch.norm is not None:
            branch.norm.running_mean.normal_()
            branch.norm.running_var.uniform_(0.5, 2)
    return built.eval()


@torch.no_grad()
def test_prediction_does_not_depend_on_padding() -> None:
    split, built = clips(6), model()
    expected = built(whole(split)).logits
    torch.testing.assert_close(built(whole(padded(split, 5))).logits, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(built(split.batch(torch.arange(6))).logits, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_prediction_does_not_depend_on_neighbours() -> None:
    split, built = clips(6), model()
    together = built(split.batch(torch.arange(6))).logits
    alone = torch.cat([built(split.batch(torch.tensor([k]))).logits for k in range(6)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


@torch.no_grad()
def test_reference_mode_depends_on_padding_as_published() -> None:
    split, built = clips(6, masked=False), model("reference")
    longer = built(whole(padded(split, 5))).logits
    assert (longer - built(whole(split)).logits).abs().max() > 1e-3


def test_batch_norm_counts_only_steps_that_exist() -> None:
    split = clips(4)
    mask, x = split.masks["audio"], split.inputs["audio"]
    built, plain = Unimodal("audio", 5, 3, Config()).train(), nn.BatchNorm1d(5)
    plain(x[mask])
    noisy = replace(split, inputs={**split.inputs, "audio": x.masked_fill(~mask[:, :, None], 1e6)})
    built(whole(noisy))
    torch.testing.assert_close(built.branch.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(built.branch.norm.running_var, plain.running_var)


@pytest.mark.parametrize("steps", [0, 1])
def test_training_on_one_or_no_step(steps: int) -> None:
    split = clips(1)
    split.masks["audio"][:] = torch.arange(STEPS["audio"]) < steps
    output = Unimodal("audio", 5, 3, Config()).train()(whole(split))
    assert torch.isfinite(output.logits).all() and bool(output.h.any()) == bool(steps)


@pytest.mark.parametrize("gone", MODALITIES)
@torch.no_grad()
def test_a_missing_modality_is_left_out(gone: str) -> None:
    split, built = clips(5), model(top_k=3)
    output = built(split.without(gone).batch(torch.arange(5)))
    k = MODALITIES.index(gone)
    assert (output.gates[:, k] == 0).all() and (output.h[gone] == 0).all()
    torch.testing.assert_close(output.gates.sum(1), torch.ones(5))
    noisy = replace(split, inputs={**split.inputs, gone: split.inputs[gone] + 100})
    torch.testing.assert_close(built(noisy.without(gone).batch(torch.arange(5))).logits, output.logits)
    assert (output.logits - built(split.batch(torch.arange(5))).logits).abs().max() > 1e-4


def test_a_clip_without_anything_trains_without_nan() -> None:
    split, built = clips(4), model().train()
    for m in MODALITIES:
        split.masks[m][0] = False
    output = built(split.batch(torch.arange(4)))
    output.logits.sum().backward()
    assert (output.logits[0] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_fusion_by_hand() -> None:
    X = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    everything, without = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    weights = torch.tensor([1.0, 0.0, 0.6]).softmax(0)
    torch.testing.assert_close(fuse(X, everything, 1.0)[0, 0], weights @ X[0])
    fused = fuse(X, without, 1.0)[0]
    torch.testing.assert_close(fused[0], torch.tensor([1.0, 0.0]).softmax(0) @ X[0, :2])
    assert (fused[2] == 0).all()


def test_router_keeps_the_k_largest_of_what_is_there() -> None:
    router = Router(2, 3)
    with torch.no_grad():
        router.linear.weight.zero_()
        router.linear.bias.copy_(torch.tensor([1.0, 3.0, 2.0]))
    fused, present = torch.zeros(2, 3, 2), torch.tensor([[True, True, True], [True, False, True]])
    gates = router(fused, present, 2)
    torch.testing.assert_close(gates[0], torch.tensor([0.0, *torch.tensor([3.0, 2.0]).softmax(0)]))
    expected = torch.tensor([1.0, 2.0]).softmax(0)
    torch.testing.assert_close(gates[1], torch.stack([expected[0], torch.tensor(0.0), expected[1]]))


def step(built: Unimodal, split: Split) -> None:
    built.train()
    built(split.batch(torch.arange(len(split)))).logits.sum().backward()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("buffers", [True, False])
def test_average_of_weights_and_buffers(buffers: bool) -> None:
    torch.manual_seed(0)
    built = Unimodal("audio", 5, 3, Config())
    average = Average(built, buffers)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    step(built, clips(6))
    average.update(0.75)
    for name, tensor in average.model.state_dict().items():
        is_buffer = "running" in name or "num_batches" in name
        if is_buffer and not buffers:
            assert torch.equal(tensor, before[name]), "the published average leaves BatchNorm's statistics alone"
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * built.state_dict()[name])
    assert not average.model.training


def test_average_does_not_freeze() -> None:
    """After 30 epochs of 10 steps nothing of the first epoch may be left; the published schedule keeps most of it."""
    left = 1.0
    for t in range(300):
        left *= span_momentum(t, 10, 1.0) if t >= 10 else 1.0
    assert left < 1e-6


def test_published_names_and_back() -> None:
    built = model()
    published = to_reference(built.state_dict())
    assert {"norm_a.weight", "proj_l.weight", "encoder_v.layers.1.linear1.bias", "router.linear.weight"} <= set(
        published
    )
    assert {"proj1s.0.weight", "out_layers.2.bias"} <= set(published)
    back = from_reference(published)
    assert back.keys() == built.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in built.state_dict().items())
    with pytest.raises(KeyError, match="fc\\.weight"):
        from_reference({"fc.weight": torch.zeros(1)})


def test_attention_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(3, 7, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([7, 1, 4])[:, None]
    q, k, v = qkv.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    torch.testing.assert_close(attend(qkv, 2, mask), expected.transpose(1, 2).flatten(2))
    assert torch.autograd.gradcheck(lambda x: attend(x, 2, mask), qkv)


def test_attention_over_long_clips_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor([7, 1, 4])[:, None]
    short = attend(qkv, 2, mask)
    monkeypatch.setattr("cmc.attention._LONGEST", 6)
    torch.testing.assert_close(attend(qkv, 2, mask), short, atol=1e-6, rtol=0)


def test_attention_of_large_scores() -> None:
    qkv = 300 * torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(4))
    qkv.requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.bool)
    output = attend(qkv, 2, mask)
    output.sum().backward()
    exact = attend(qkv.detach().double(), 2, mask)
    torch.testing.assert_close(output.double(), exact, atol=0.1, rtol=1e-3)
    assert torch.isfinite(qkv.grad).all()


@torch.no_grad()
def test_encoder_is_the_one_that_torch_has() -> None:
    split = clips(6)
    branch = model().branches["audio"]
    mask = split.masks["audio"]
    x = torch.randn(*mask.shape, 32, generator=torch.Generator().manual_seed(3))
    expected = branch.encoder(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(encode(branch.encoder, x, mask)[mask], expected[mask], atol=1e-5, rtol=0)


def test_buckets_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    split, gradients = clips(9), []
    for pairs in (1, 1 << 18):
        monkeypatch.setattr("cmc.unimodal._PAIRS", pairs)
        built = model()
        output = built(whole(split)).logits
        output.square().sum().backward()
        gradients.append([output, *(p.grad for p in built.parameters() if p.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_buckets_hold_every_row_once() -> None:
    lengths = torch.tensor([1, 1, 3, 4])
    rows = torch.arange(9.0)[:, None]
    parts = list(buckets(rows, lengths))
    assert torch.equal(torch.cat([padded[there] for padded, there in parts]), rows)
    assert torch.equal(torch.cat([there.sum(1) for _, there in parts]), lengths)


def test_buckets_trade_padding_against_calls() -> None:
    assert bucket_sizes([]) == [0]
    assert bucket_sizes([20] * 50) == [50], "what needs no padding stays together"
    assert bucket_sizes([30] * 40 + [300]) == [40, 1], "a long clip does not make all others long"
    assert bucket_sizes([30, 300]) == [1, 1] and bucket_sizes([30, 40]) == [2]
    assert bucket_sizes([500, 500, 600]) == [1, 1, 1], "attention stays in the cache"


def test_dropout_keeps_the_mean_and_masks_the_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 101, requires_grad=True)
    y = dropout(x, 0.1, True)
    y.sum().backward()
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.004)
    assert float(y.detach().mean()) == pytest.approx(1, abs=0.005)
    assert torch.equal(y, x.grad)
    assert dropout(x, 0.1, False) is x


@pytest.mark.parametrize("rows", [(0, 1, 2, 3, 4, 5), (4, 5), (2,), (5,)])
@pytest.mark.parametrize("training", [True, False])
def test_padding_that_is_computed_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[int, ...], training: bool
) -> None:
    """What a GPU does, on this CPU: outputs, gradients and BatchNorm's statistics are those of the packed steps."""
    split = clips(6)
    split.masks["audio"][4] = False
    split.masks["audio"][5] = torch.arange(STEPS["audio"]) == 3  # a single row, which has no variance
    batch, made = padded(split, 3).batch(torch.tensor(rows)), []
    for packed in (True, False):
        monkeypatch.setattr("cmc.unimodal.packs", lambda device, packed=packed: packed)
        built = model(dropout=0.0, out_dropout=0.0).train(training)
        output = built(batch)
        (output.logits.square().sum() + sum(h.sum() for h in output.h.values())).backward()
        gradients = {n: p.grad for n, p in built.named_parameters() if p.grad is not None}
        made.append((output.h, gradients, dict(built.named_buffers())))
    for expected, found in zip(*made, strict=True):
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4, msg=name)
