"""Fuse LoRAs on the real host: it gives the core's fusions, and they act on a MODEL as their parts do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, lora_for

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing import fuse, slerp
from i2l.i2l_core.mixing.slerp import Slerp

MODEL = "flux2"


@pytest.fixture(scope="module")
def patcher(host):
    return build(MODEL)


@pytest.fixture
def loras(patcher) -> list[LoRA]:
    """q, k and v of each on their own rows."""
    return [lora_for(patcher, seed, rank) for seed, rank in ((1, 2), (2, 3))]


@pytest.fixture
def sockets(loras) -> list[Any]:
    """The second comes as core nodes give it: names and tensors, on whole weights."""
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    return [PredictedLoRA(loras[0]), dict(PredictedLoRA(loras[1]))]


def run(sockets, method: str, weights=None, **settings):
    from i2l.nodes.fuse import FuseLoRAs

    inputs: dict[str, Any] = {"loras": str(len(sockets))}
    for number, socket in enumerate(sockets, 1):
        inputs |= {f"lora_{number}": socket, f"weight_{number}": weights[number - 1] if weights else 1.0}
    with torch.inference_mode():
        return FuseLoRAs.execute(inputs, {"method": method, **settings})


def text(out) -> str:
    return out.ui.as_dict()["text"][0]


def patched(model) -> dict[str, torch.Tensor]:
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_patch_weights=True)
        return {key: value.clone() for key, value in model.model.state_dict().items()}


def apply(model, value, strength: float = 1.0):
    from i2l.nodes.apply import ApplyPredictedLoRA

    return ApplyPredictedLoRA.execute(model, value, strength)[0]


def assert_same(a: LoRA, b: LoRA) -> None:
    assert a.layers.keys() == b.layers.keys()
    for target, part in a.layers.items():
        torch.testing.assert_close(part.delta(), b.layers[target].delta(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_the_fusion_acts_as_its_parts_one_after_the_other(patcher, sockets, method: str):
    settings = {"svd": {"rank": 0, "energy": 1.0}}.get(method, {})
    (fused,) = run(sockets, method, [0.5, -1.5], **settings)[0]
    together = patched(apply(patcher, fused))
    apart = patched(apply(apply(patcher, sockets[0], 0.5), sockets[1], -1.5))
    before = patched(patcher)
    for key in apart:
        torch.testing.assert_close(together[key], apart[key], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(together[key], before[key]) for key in before)


def test_every_method_gives_what_the_core_gives(sockets):
    from i2l.i2l_core.host.lora_model import lora_of

    both, weights = [lora_of(socket) for socket in sockets], [0.5, 2.0]
    arc = Slerp.between(both, weights)
    for method, settings, expected in (
        ("svd", {"rank": 2, "energy": 1.0}, fuse.svd(both, weights, 2)[0]),
        ("svd", {"rank": 0, "energy": 0.6}, fuse.svd(both, weights, energy=0.6)[0]),
        ("spectral", {"alpha": 0.7}, fuse.spectral(both, weights, 0.7)[0]),
        ("interpolate", {"t": 0.3, "rank": 0}, slerp.interpolate(both, arc, 0.3)[0]),
        ("interpolate", {"t": 0.3, "rank": 2}, slerp.interpolate(both, arc, 0.3, 2)[0]),
    ):
        (found,) = run(sockets, method, weights, **settings)[0]
        assert_same(found.lora, expected)


def test_morph_is_a_list_from_end_to_end(patcher, loras, sockets):
    from i2l.nodes.fuse import FuseLoRAs

    (output,) = FuseLoRAs.define_schema().outputs
    assert output.is_output_list
    out = run(sockets, "morph", frames=5, rank=0)
    assert len(out[0]) == 5
    assert_same(out[0][0].lora, loras[0])
    for key, tensor in sockets[1].items():
        assert torch.equal(out[0][4][key], tensor)
    (middle,) = run(sockets, "interpolate", t=0.5, rank=0)[0]
    assert_same(out[0][2].lora, middle.lora)
    assert text(out).startswith("rank 2 + 9 -> 2 to 15, 5 LoRAs from the first to the second")


def test_one_lora_is_made_smaller(sockets):
    out = run(sockets[:1], "svd", rank=1, energy=1.0)
    assert {part.rank for part in out[0][0].lora.layers.values()} == {1}
    kept = float(text(out).split(", ")[1].split(" %")[0])
    assert 0 < kept < 100


def test_sockets_that_are_empty_are_left_out(sockets):
    (fused,) = run([None, sockets[0], None], "concat", [5.0, 2.0, 7.0])[0]
    assert_same(fused.lora, sockets[0].lora.scaled(2.0))


def test_the_text_says_what_was_kept(loras, sockets):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    assert text(run(sockets, "concat")) == "rank 2 + 9 -> 5 to 15, the exact sum"
    assert "% of the energy kept, error " in text(run(sockets, "svd", rank=2, energy=1.0))
    assert text(run(sockets, "spectral", alpha=0.0)).endswith("100 % of the energy of the styles kept")
    assert " of the first and " in text(run(sockets, "interpolate", t=0.5, rank=0))
    few = PredictedLoRA(LoRA({Target("img_in"): LowRank(torch.ones(1, 128), torch.ones(256, 1))}))
    weights = len({target.weight for target in loras[0].layers})
    assert text(run([sockets[0], few], "concat")).endswith(f"; 1 of {weights} weights are in all of them")


def test_inputs_stay_as_they_were(sockets):
    before = [{key: tensor.clone() for key, tensor in socket.items()} for socket in sockets]
    for method, settings in (
        ("concat", {}),
        ("svd", {"rank": 1, "energy": 0.5}),
        ("morph", {"frames": 2, "rank": 1}),
    ):
        run(sockets, method, [0.5, 2.0], **settings)
    for socket, copies in zip(sockets, before, strict=True):
        assert all(torch.equal(socket[key], copy) for key, copy in copies.items())


def test_progress_is_shown_and_a_cancel_stops_between_two(sockets, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management
    import comfy.utils

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    run(sockets, "morph", frames=3, rank=0)
    assert seen[-1] == (3, 3)
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(sockets, "morph", frames=3, rank=0)
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_bad_input_is_refused_in_one_line(loras, sockets):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    broken = {key: tensor.clone() for key, tensor in sockets[1].items()}
    next(iter(broken.values()))[0, 0] = float("nan")
    z_image, klein = (
        PredictedLoRA(LoRA(loras[0].layers, base_model=name)) for name in ("z-image", "flux2-klein-4b")
    )
    for given, weights, method, settings, message in (
        ([None, None], [1, 1], "concat", {}, "at least one LoRA, got none"),
        (sockets, [0, 0], "concat", {}, "all weights are 0"),
        (sockets, [0, 0], "interpolate", {"t": 0.5, "rank": 0}, "all weights are 0"),
        (
            [*sockets, sockets[0]],
            [1, 1, 1],
            "morph",
            {"frames": 2, "rank": 0},
            "interpolation needs two LoRAs, got 3",
        ),
        ([sockets[0], broken], [1, 1], "concat", {}, "holds NaN"),
        (
            [z_image, klein],
            [1, 1],
            "svd",
            {"rank": 1, "energy": 1.0},
            "LoRA 1 is for Z-Image .* LoRA 2 for FLUX.2",
        ),
        (
            [sockets[0], {"diffusion_model.x.diff": torch.zeros(2)}],
            [1, 1],
            "concat",
            {},
            "full weight differences",
        ),
        ([sockets[0], 7], [1, 1], "concat", {}, "expected a LORA_MODEL"),
        (sockets, [1, 1], "average", {}, "method must be one of"),
    ):
        with pytest.raises(I2LError, match=message) as caught:
            run(given, method, weights, **settings)
        assert "\n" not in str(caught.value)
