"""SmoothQuant of a DiT: what is moved into the weights is exactly undone, and errors stay small."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.calibration.errors import LinearError, by_layer, compared
from magi_world.calibration.smoothquant import observed, quantise_dit, smoothing
from magi_world.checkpoints.random_presets import random_preset
from magi_world.checkpoints.random_weights import random_sources
from magi_world.errors import ConfigError
from magi_world.models.dit import VideoDiT
from magi_world.models.forward import forward_clip
from magi_world.models.fp8 import Fp8Linear, quantised_names

TOKENS = 16 * 6


def make_dit(seed: int = 0) -> VideoDiT:
    """The tiny DiT with random weights and outliers among the channels of its norms."""
    dit = VideoDiT(random_preset("tiny").config.dit)
    sources = random_sources(dit, seed, torch.bfloat16)
    dit.load_state_dict({source.name: source.make().float() for source in sources})
    with torch.no_grad():
        for layer in dit.layers:
            for norm in (layer.self_attention.linear_qkv.layer_norm, layer.mlp.layer_norm):
                norm.weight[::16] *= 32
    return dit.eval()


@torch.no_grad()
def run(dit: VideoDiT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return forward_clip(
        dit,
        torch.randn(1, 16, 6, 8, 8, generator=generator),
        torch.tensor([[0.3]]),
        torch.randn(1, 1, 5, 32, generator=generator),
        torch.ones(1, 1, 5),
        [[0, TOKENS]],
        chunk_width=6,
        caption_dropout=False,
    )


def test_peaks_are_those_of_all_forwards() -> None:
    dit = make_dit()
    with observed(dit) as peaks:
        run(dit, 0)
        first = {name: peak.clone() for name, peak in peaks.items()}
        run(dit, 1)
    assert set(peaks) == set(quantised_names(4))
    assert all((peaks[name] >= first[name]).all() for name in peaks)
    assert any((peaks[name] > first[name]).any() for name in peaks)
    kept = {name: peak.clone() for name, peak in peaks.items()}
    run(dit, 2)  # nothing is observed any more
    assert all(torch.equal(peaks[name], kept[name]) for name in kept)


@given(alpha=st.floats(0, 1), outlier=st.floats(1e-6, 1e6))
def test_smoothing_moves_outliers(alpha: float, outlier: float) -> None:
    inputs, weights = torch.tensor([1.0, outlier]), torch.tensor([1.0, 1.0])
    factors = smoothing(inputs, weights, alpha)
    assert factors.isfinite().all() and (factors > 0).all()
    moved = (inputs / factors).clamp_min(1e-12)
    spread = float(moved.max() / moved.min())
    assert spread <= max(outlier, 1 / outlier) * 1.01


def test_without_rounding_the_model_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantised weights, unrounded activations: only the rounding of weights is left."""
    dit = make_dit()
    with observed(dit) as peaks:
        reference = run(dit)
    quantised = quantise_dit(dit, peaks)

    def exact(self: Fp8Linear, x: torch.Tensor) -> torch.Tensor:
        scale = self.input_scale if self.smooth_scale is None else self.smooth_scale
        weight = self.weight[0].float() * self.weight_scale * self.input_scale[:1]
        return (x.float() / scale.flatten()) @ weight.T

    monkeypatch.setattr(Fp8Linear, "forward", exact)
    folded = run(quantised)
    # put the original weights back behind the folded norms
    restored = copy.deepcopy(quantised)
    for name in quantised_names(4):
        linear, original = restored.get_submodule(name), dit.get_submodule(name)
        assert isinstance(linear, Fp8Linear)
        scale = linear.input_scale if linear.smooth_scale is None else linear.smooth_scale
        weight = original.get_parameter("weight") * _factors(dit, quantised, name)
        linear.register_buffer("weight", weight.detach()[None])
        linear.weight_scale.fill_(1.0)
        assert scale.isfinite().all()
    same = run(restored)
    assert (same - reference).norm() < 2e-3 * reference.norm()  # the rounded biases of norms
    assert (folded - reference).norm() > (same - reference).norm()


def _factors(dit: VideoDiT, quantised: VideoDiT, name: str) -> torch.Tensor:
    """What the activation of a linear is divided by, apart from the scale of all channels."""
    linear = quantised.get_submodule(name)
    assert isinstance(linear, Fp8Linear)
    if linear.smooth_scale is not None:
        return linear.smooth_scale.flatten() / linear.input_scale
    norm = name.rpartition(".")[0] + ".layer_norm"
    old, new = dit.get_submodule(norm), quantised.get_submodule(norm)
    return (old.get_parameter("weight") / new.get_parameter("weight")).detach()


def test_errors_are_those_of_fp8_and_nothing_is_clipped() -> None:
    dit = make_dit()
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    with observed(dit) as peaks:
        reference = run(dit)
    quantised = quantise_dit(dit, peaks)
    assert all(torch.equal(dit.state_dict()[name], before[name]) for name in before)
    with compared(dit, quantised) as errors:
        assert torch.equal(run(dit), reference)  # measuring changes nothing
    rows = by_layer(errors)
    assert [row["layer"] for row in rows] == [1, 2]
    for row in rows:
        assert row["clipped"] < 1e-3
        # three bits of mantissa on both sides: 2^-4 / sqrt(3) each at most
        for name in ("q", "qx", "k", "v", "linear_fc1", "linear_proj", "linear_fc2", "all"):
            assert 0.01 < row[name] < 0.06, (row["layer"], name)
    assert (run(quantised) - reference).norm() < 0.1 * reference.norm()


def test_unchanged_parameters_are_shared() -> None:
    dit = make_dit()
    with observed(dit) as peaks:
        run(dit)
    quantised = quantise_dit(dit, peaks)
    mine, theirs = dict(dit.named_parameters()), dict(quantised.named_parameters())
    changed = {name for name in theirs if theirs[name] is not mine[name]}
    assert changed == {
        f"videodit_blocks.layers.{layer}.{norm}.{part}"
        for layer in (1, 2)
        for norm in ("self_attention.linear_qkv.layer_norm", "mlp.layer_norm")
        for part in ("weight", "bias")
    }


def test_what_cannot_be_quantised_is_refused() -> None:
    dit = make_dit()
    with observed(dit) as peaks:
        run(dit)
    with pytest.raises(ConfigError, match=r"alpha 1.5 is outside \[0, 1\]"):
        quantise_dit(dit, peaks, 1.5)
    with pytest.raises(ConfigError, match="14 linears were never observed"):
        quantise_dit(dit, {})
    broken = {**peaks, quantised_names(4)[0]: torch.full((64,), torch.nan)}
    with pytest.raises(ConfigError, match="were not finite during calibration"):
        quantise_dit(dit, broken)
    with pytest.raises(ConfigError, match="FP8 already"):
        quantise_dit(quantise_dit(dit, peaks), peaks)


def test_a_channel_that_is_never_used() -> None:
    dit = make_dit()
    with torch.no_grad():
        norm = dit.layers[1].mlp.layer_norm
        norm.weight[3] = 0
        norm.bias[3] = 0
        dit.layers[1].self_attention.linear_qkv.q.weight[:, 5] = 0
    with observed(dit) as peaks:
        reference = run(dit)
    velocity = run(quantise_dit(dit, peaks))
    assert velocity.isfinite().all()
    assert (velocity - reference).norm() < 0.1 * reference.norm()


def test_no_outputs_no_error() -> None:
    assert LinearError().relative == 0.0 and LinearError().clipped_share == 0.0
