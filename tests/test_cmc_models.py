"""The models: independence of padding and neighbours, missing modalities, fusion, averaging, published names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.checkpoint import from_reference, to_reference
from cmc.config import MODALITIES, Config
from cmc.data import Batch, Split
from cmc.ema import Average, span_momentum
from cmc.fusion import Multimodal, Router, fuse
from cmc.unimodal import MaskedBatchNorm, Unimodal, encode

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
    generator = torch.Generator().manual_seed(1)
    x, mask = torch.randn(4, 9, 3, generator=generator), torch.rand(4, 9, generator=generator) > 0.4
    masked, plain = MaskedBatchNorm(3), nn.BatchNorm1d(3)
    output, expected = masked(x.masked_fill(~mask[:, :, None], 1e6), mask), plain(x[mask])
    torch.testing.assert_close(output[mask], expected)
    torch.testing.assert_close(masked.running_mean, plain.running_mean)
    torch.testing.assert_close(masked.running_var, plain.running_var)
    assert (output[~mask] == 0).all()


def test_batch_norm_of_one_or_no_step() -> None:
    norm = MaskedBatchNorm(3)
    for steps in (0, 1):
        mask = torch.arange(4)[None] < steps
        assert torch.isfinite(norm(torch.randn(1, 4, 3), mask)).all()


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


@torch.no_grad()
def test_fused_attention_is_the_encoder_that_torch_has() -> None:
    split = clips(6)
    branch = model().branches["audio"]
    mask = split.masks["audio"]
    x = torch.randn(*mask.shape, 32, generator=torch.Generator().manual_seed(3))
    expected = branch.encoder(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(encode(branch.encoder, x, mask)[mask], expected[mask], atol=1e-5, rtol=0)
    full = torch.ones_like(mask)
    torch.testing.assert_close(encode(branch.encoder, x, full), branch.encoder(x), atol=1e-5, rtol=0)
