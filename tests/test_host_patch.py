"""Merged application on the real host: exact, and the model that came in stays as it was."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_models import CONFIGS, LATENTS, build, close, conditioning, lora_for, quantised

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target, to_whole_weights
from i2l.i2l_core.mixing.block_weights import BlockWeights, apply_block_weights


@pytest.fixture(scope="module", params=list(CONFIGS))
def patcher(host, request):
    return build(request.param)


def parameters(patcher) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in patcher.model.diffusion_model.named_parameters()}


def dense(weights: dict[str, torch.Tensor], lora: LoRA, strength: float) -> dict[str, torch.Tensor]:
    """W + s * B A by hand, in fp64."""
    changed = {key: weight.double() for key, weight in weights.items()}
    for target, layer in lora.layers.items():
        weight = changed[f"{target.weight}.weight"]
        start, length = target.rows or (0, weight.shape[0])
        weight[start : start + length] += strength * (layer.up.double() @ layer.down.double())
    return changed


def forward(patcher) -> torch.Tensor:
    """One call of the model as it is loaded now."""
    model = patcher.model
    name = model.model_config.unet_config["image_model"]
    if hasattr(model.diffusion_model, "clear_kv_cache"):
        model.diffusion_model.clear_kv_cache()
    x = torch.randn(2, *LATENTS[name], generator=torch.Generator().manual_seed(2))
    ((context, values),) = conditioning(name, seed=3)
    conds = model.extra_conds(cross_attn=context, noise=x, device=x.device, **values)
    inputs = {key: cond.process_cond(batch_size=2).cond for key, cond in conds.items()}
    with torch.no_grad():
        return model.apply_model(x, torch.tensor([0.7, 0.3]), **inputs, transformer_options={})


def loaded(patcher):
    """Load a patcher as the host does before sampling, hand it out, and take the patches off again."""
    import contextlib

    @contextlib.contextmanager
    def context():
        patcher.patch_model(device_to=torch.device("cpu"))
        try:
            yield patcher
        finally:
            patcher.unpatch_model(device_to=torch.device("cpu"))

    return context()


@pytest.mark.parametrize("strength", [1.0, 0.35, -2.0])
def test_merged_equals_dense_patching(patcher, strength):
    from i2l.i2l_core.host.patch import apply_merged

    lora = lora_for(patcher)
    before = parameters(patcher)
    plain = forward(patcher)
    expected = dense(before, lora, strength)

    patched = apply_merged(patcher, lora, strength)
    with loaded(patched):
        now = parameters(patched)
        styled = forward(patched)
    assert now.keys() == expected.keys()
    touched = {f"{target.weight}.weight" for target in lora.layers}
    for key, weight in now.items():
        if key in touched:
            close(weight, expected[key], 1e-6)
            assert not torch.equal(weight, before[key])
        else:
            assert torch.equal(weight, before[key])

    for key, weight in parameters(patcher).items():  # after unpatching
        assert torch.equal(weight, before[key])
    assert torch.equal(forward(patcher), plain)

    by_hand = patcher.model.diffusion_model.state_dict()
    try:
        for key, weight in expected.items():
            by_hand[key].copy_(weight)
        close(styled, forward(patcher), 2e-5)
    finally:
        for key, weight in before.items():
            by_hand[key].copy_(weight)
    assert (styled - plain).abs().max() > 1e-3  # the LoRA does something


QK = re.compile(r"(attention\.qkv|attn\.qkv|img_attn\.qkv|txt_attn\.qkv|linear1|[qk]_proj|to_[qk])\.weight$")


@pytest.mark.parametrize("whole", [False, True])
def test_without_q_and_k_the_loaded_model_keeps_their_rows(patcher, whole: bool):
    """Merged: rows of q and k are the model's own, bit for bit; all others are those under the whole LoRA."""
    from i2l.i2l_core.host.patch import apply_merged

    lora = lora_for(patcher)
    shapes = {key.removesuffix(".weight"): weight.shape for key, weight in parameters(patcher).items()}
    if whole:
        lora = to_whole_weights(lora, {name: shape[0] for name, shape in shapes.items()})
    part = apply_block_weights(lora, BlockWeights(q=0.0, k=0.0))
    before = parameters(patcher)
    with loaded(apply_merged(patcher, lora, 1.0)) as patched:
        styled = parameters(patched)
    with loaded(apply_merged(patcher, part, 1.0)) as patched:
        now = parameters(patched)
    seen = 0
    for key, weight in now.items():
        kept = torch.zeros(len(weight), dtype=torch.bool)
        if QK.search(key):
            fused = {"qkv": 3, "linear1": 9}.get(key.split(".")[-2], 0)
            kept[: 2 * len(weight) // fused if fused else len(weight)] = True
            seen += 1
        assert torch.equal(weight[kept], before[key][kept]), key
        assert torch.equal(weight[~kept], styled[key][~kept]), key
    assert seen >= 3


def test_the_model_that_came_in_stays_bit_identical(patcher):
    from i2l.i2l_core.host.patch import apply_merged

    before = parameters(patcher)
    uuid = patcher.patches_uuid
    patched = apply_merged(patcher, lora_for(patcher), 1.0)
    assert patched is not patcher
    assert not patcher.patches
    assert patcher.patches_uuid == uuid
    assert patched.patches
    for key, weight in parameters(patcher).items():
        assert torch.equal(weight, before[key])


def test_two_applications_add_up(patcher):
    from i2l.i2l_core.host.patch import apply_merged

    one, two = lora_for(patcher, seed=3), lora_for(patcher, seed=4, rank=5)
    expected = dense(dense(parameters(patcher), one, 0.5), two, -1.5)
    with loaded(apply_merged(apply_merged(patcher, one, 0.5), two, -1.5)) as both:
        for key, weight in parameters(both).items():
            close(weight, expected[key], 1e-6)


@pytest.mark.parametrize("name", ["lumina2", "flux2"])
def test_fused_and_sliced_layers_give_the_same(host, name):
    from i2l.i2l_core.host.patch import apply_merged, weights_of

    patcher = build(name)
    lora = lora_for(patcher)
    widths = {name.removesuffix(".weight"): shape[0] for name, shape in weights_of(patcher).items()}
    fused = to_whole_weights(lora, widths)
    assert fused.n_layers < lora.n_layers
    expected = dense(parameters(patcher), lora, 1.0)
    with loaded(apply_merged(patcher, fused, 1.0)) as patched:
        for key, weight in parameters(patched).items():
            close(weight, expected[key], 1e-6)


def test_the_stock_loader_gives_the_same_weights_from_a_saved_file(patcher, tmp_path):
    """All of it, the layers of FLUX.2 that the host drops under diffusers' names as well."""
    import comfy.sd
    import comfy.utils

    from i2l.i2l_core.host.patch import apply_merged, weights_of
    from i2l.i2l_core.lora_files.file import save

    lora = lora_for(patcher)
    widths = {name.removesuffix(".weight"): shape[0] for name, shape in weights_of(patcher).items()}
    saved = comfy.utils.load_torch_file(
        str(save(to_whole_weights(lora, widths), tmp_path / "ink.safetensors"))
    )
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, saved, 0.8, 0.0)
    assert stock is not None
    assert len(stock.patches) == len({target.weight for target in lora.layers})
    with loaded(stock):
        theirs = parameters(stock)
    with loaded(apply_merged(patcher, lora, 0.8)) as patched:
        for key, weight in parameters(patched).items():
            close(weight, theirs[key], 1e-6)


def test_strength_zero_leaves_the_weights(patcher):
    from i2l.i2l_core.host.patch import apply_merged

    patched = apply_merged(patcher, lora_for(patcher), 0.0)
    assert patched is not patcher
    assert not patched.patches


def test_the_base_model_is_recognised(host):
    from i2l.i2l_core.base_models import recognise
    from i2l.i2l_core.host.patch import apply_merged, weights_of

    tiny = build("lumina2")
    assert recognise(weights_of(tiny)).id == "i2l-tiny"
    assert apply_merged(tiny, lora_for(tiny, base_model="i2l-tiny"), 1.0).patches


@pytest.mark.parametrize("name", ["lumina2", "hidream_o1", "qwen_image"])
def test_another_base_model_is_refused_naming_both(host, name):
    from i2l.i2l_core.host.patch import apply_merged

    patcher = build(name)
    with pytest.raises(I2LError) as error:
        apply_merged(patcher, lora_for(patcher, base_model="flux2-klein-4b"), 1.0)
    assert "FLUX.2 klein 4B (flux2-klein-4b)" in str(error.value)
    assert "tiny demo model" in str(error.value) or " class" in str(error.value)
    assert "\n" not in str(error.value)
    assert not patcher.patches


def test_a_layer_pruned_model_takes_what_fits_it(host):
    """The LoRA is told to be for the listed model by its names; all of the layers that the pruned one has fit."""
    from i2l.i2l_core.host.patch import apply_merged, fitting

    whole, pruned = build("lumina2"), build("lumina2", n_layers=4)
    lora = lora_for(whole, base_model="i2l-tiny")
    inside = lora.only(target for target in lora.layers if not re.match(r"layers\.[45]\.", target.weight))
    expected = dense(parameters(pruned), inside, 1.0)
    with loaded(apply_merged(pruned, inside, 1.0)) as patched:
        for key, weight in parameters(patched).items():
            close(weight, expected[key], 1e-6)
    with pytest.raises(I2LError, match=r"layers\.4\.attention\.out \(the model has no such weight\)"):
        apply_merged(pruned, lora, 1.0)
    fit = fitting(lora, pruned, partial=True)
    assert fit.lora.layers.keys() == inside.layers.keys()
    assert len(fit.missing) == lora.n_layers - inside.n_layers


def change(lora: LoRA, **layers: LowRank) -> LoRA:
    return LoRA({**lora.layers, **{Target(name.replace("__", ".")): layer for name, layer in layers.items()}})


def test_what_does_not_fit_is_named(patcher):
    from i2l.i2l_core.host.patch import apply_merged, fitting

    lora = lora_for(patcher)
    odd = LowRank(torch.zeros(1, 2), torch.zeros(3, 1))
    wrong = change(lora, **{f"nowhere__{i}": odd for i in range(7)})
    assert str(fitting(wrong, patcher, partial=True)).startswith(
        f"{lora.n_layers} of {lora.n_layers + 7} LoRA layers"
    )
    with pytest.raises(I2LError) as error:
        apply_merged(patcher, wrong, 1.0)
    assert [f"nowhere.{i}" in str(error.value) for i in range(7)] == [True] * 5 + [False] * 2
    assert not patcher.patches

    target = next(target for target in lora.layers if target.rows is None)
    with pytest.raises(I2LError, match=r"layer 3x2, weight \d+x\d+"):
        apply_merged(patcher, LoRA({**lora.layers, target: odd}), 1.0)
    with pytest.raises(I2LError, match=r"0 of 1 LoRA layers on 0 weights\. Not placed: nowhere"):
        apply_merged(patcher, LoRA({Target("nowhere"): odd}), 1.0)


def test_rows_outside_the_weight_are_refused(host):
    """The host would fail only when it loads the weights."""
    from i2l.i2l_core.host.patch import apply_merged

    patcher = build("lumina2")
    lora = lora_for(patcher)
    target = next(target for target in lora.layers if target.rows)
    layer = lora.layers[target]
    with pytest.raises(I2LError, match="Not placed"):
        apply_merged(patcher, LoRA({Target(target.weight, (layer.d_out * 3 - 1, layer.d_out)): layer}), 1.0)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_no_number_is_refused(patcher, strength):
    from i2l.i2l_core.host.patch import apply_merged

    with pytest.raises(I2LError, match="strength must be a finite number"):
        apply_merged(patcher, lora_for(patcher), strength)


def test_nan_in_the_lora_is_refused(patcher):
    from i2l.i2l_core.host.patch import apply_merged

    lora = lora_for(patcher)
    target, layer = next(iter(lora.layers.items()))
    bad = LowRank(layer.down, layer.up * float("nan"))
    with pytest.raises(I2LError, match="NaN or infinite"):
        apply_merged(patcher, LoRA({**lora.layers, target: bad}), 1.0)
    assert not patcher.patches


def test_what_the_host_refuses_is_an_error(patcher, monkeypatch):
    from i2l.i2l_core.host.patch import apply_merged

    def drops_one(self, patches, strength):
        return list(patches)[1:]

    monkeypatch.setattr(type(patcher), "add_patches", drops_one)
    with pytest.raises(I2LError, match="ComfyUI refused 1 of"):
        apply_merged(patcher, lora_for(patcher), 1.0)


def test_the_report_counts_by_group(host):
    from i2l.i2l_core.host.patch import fitting

    tiny = build("lumina2")
    text = str(fitting(lora_for(tiny), tiny))
    assert text.startswith("69 of 69 LoRA layers on 53 weights: ")
    assert "layers 48" in text
    assert "noise_refiner 8" in text


def test_bf16_weights_take_the_lora_to_rounding(host):
    """The host adds in fp32 and rounds once, up or down at random; so one unit in the last place at most."""
    from i2l.i2l_core.host.patch import apply_merged

    tiny = build("lumina2", torch.bfloat16)
    lora = lora_for(tiny)
    before = parameters(tiny)
    expected = dense(before, lora, 1.0)
    with loaded(apply_merged(tiny, lora, 1.0)) as patched:
        for key, weight in parameters(patched).items():
            error = (weight.double() - expected[key]).abs()
            assert bool((error <= expected[key].abs() * 2**-7 + 1e-6).all())
    for key, weight in parameters(tiny).items():
        assert torch.equal(weight, before[key])


@pytest.mark.parametrize(("kind", "limit"), [("float8_e4m3fn", 0.05), ("nvfp4", 0.2)])
def test_quantised_models_take_the_lora_to_their_rounding(host, kind, limit):
    """Packed weights have other shapes than the layers they stand for; those of the layers count."""
    from i2l.i2l_core.host.patch import apply_merged, weights_of

    patcher = quantised(kind)
    plain = weights_of(build("flux2"))
    assert weights_of(patcher) == plain

    def weights(of) -> dict[str, torch.Tensor]:
        named = of.model.diffusion_model.named_parameters()
        return {k: (v.dequantize() if hasattr(v, "_qdata") else v.detach()).float().clone() for k, v in named}

    before, lora = weights(patcher), lora_for(patcher)
    expected = dense(before, lora, 30.0)
    with loaded(apply_merged(patcher, lora, 30.0)) as patched:
        after = weights(patched)
    for key in {f"{target.weight}.weight" for target in lora.layers}:
        change = expected[key] - before[key]
        error = (after[key] - expected[key]).norm() / expected[key].norm()
        assert error < limit, f"{key}: {error:.3f}"
        assert change.norm() / expected[key].norm() > 2 * error  # what is seen is the LoRA, not the rounding
    for key, weight in weights(patcher).items():
        assert torch.equal(weight, before[key])


def test_a_model_that_only_shares_names_and_sizes_is_refused_by_name(host):
    """Ming-Image is a Z-Image by names and sizes; the host tells it by a buffer."""
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    patcher = build("lumina2")
    patcher.model.diffusion_model.register_buffer("__ming_image__", torch.zeros(1))
    lora = PredictedLoRA(lora_for(build("lumina2"), base_model="i2l-tiny"))
    for mode in ("merged", "live"):
        with pytest.raises(
            I2LError, match=r"the LoRA is for the tiny demo model .* it is Ming-Image, for which"
        ):
            apply_lora_model(patcher, lora, 1.0, mode)
    assert not patcher.patches
