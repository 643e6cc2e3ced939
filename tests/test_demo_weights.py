"""The weights that ship with the pack: they load, they fit together, and the demo model does what it is for."""

import itertools

import numpy as np
import pytest
import torch

from i2l.i2l_core.demo import files
from i2l.i2l_core.demo.content import PARTS, contents
from i2l.i2l_core.demo.infinity import SCALES
from i2l.i2l_core.demo.judge import style_distance
from i2l.i2l_core.demo.prompts import content_prompt, tokenise
from i2l.i2l_core.demo.render import render
from i2l.i2l_core.demo.style import sample_style
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.paths import Drawing, Sampling, draw
from i2l.i2l_core.lora import LoRA
from i2l.i2l_core.mixing.spectrum import cosine
from i2l.i2l_core.predictors import open_predictor
from i2l.i2l_core.predictors.plain_runtime import PlainRuntime
from i2l.i2l_core.predictors.query.file import load_predictor
from i2l.i2l_core.references import Reference
from i2l.i2l_core.references.files import read_reference
from i2l.i2l_core.train.flow import draw_sigmas, noisy, velocity
from i2l.tools.host import ROOT

STYLES, PICTURES = 12, 6


@pytest.fixture(scope="module")
def unseen():
    """Pictures (STYLES, PICTURES, 3, 128, 128) of held-out styles, and their held-out contents."""
    rng = np.random.default_rng(20)
    rows, facts = [], []
    for _ in range(STYLES):
        style = sample_style(rng, held_out=True)
        chosen = [contents(True)[i] for i in rng.permutation(len(contents(True)))[:PICTURES]]
        rows.append(np.stack([render(c, style, rng) for c in chosen]))
        facts.append(chosen)
    return torch.from_numpy(np.stack(rows)).permute(0, 1, 4, 2, 3), facts  # -> BCHW


def test_all_weights_together_stay_small():
    sizes = {p.name: p.stat().st_size for p in files.WEIGHTS.glob("*.safetensors")}
    flux2 = {files.FLUX2, files.FLUX2_PREDICTOR, files.STRUCTURE, files.BRIGHTNESS}
    infinity = {files.INFINITY, files.INFINITY_VAE}
    assert set(sizes) == {files.BACKBONE, files.VAE, files.PREDICTOR, files.JUDGE} | flux2 | infinity
    assert sum(sizes[name] for name in flux2) <= 13e6
    assert sum(sizes[name] for name in infinity) <= 12e6
    assert sum(sizes.values()) - sizes[files.JUDGE] <= 56e6  # the judge is not installed


def test_missing_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(
        I2LError, match=r"the demo model lacks judge\.safetensors in .*: install the pack again"
    ):
        files.load_judge(tmp_path)


@torch.inference_mode()
def test_autoencoder_restores_unseen_styles(unseen):
    pictures = unseen[0][:, 0]
    encoder, decoder = files.load_vae()
    restored = decoder(encoder(pictures)).clamp(0, 1)
    psnr = -10 * (restored - pictures).square().mean().log10()
    assert psnr > 25


@torch.inference_mode()
def test_infinity_restores_unseen_styles_from_bits(unseen):
    pictures, judge = unseen[0].flatten(0, 1), files.load_judge()
    coder = files.load_infinity_vae()
    restored = (coder.decode(features(coder.encode(pictures * 2 - 1), SCALES, False).sums[-1]) + 1) / 2
    found, wanted = judge(restored), judge(pictures)
    assert style_distance(found, wanted).mean() <= 0.08
    same = (found.subject.argmax(1) == wanted.subject.argmax(1)).float().mean()
    assert same >= 0.94  # 0.99 of 192 pictures, measured when it was trained


@torch.inference_mode()
def test_infinity_draws_what_is_asked(unseen):
    """Subject, count and place of contents that it never saw."""
    asked = [content for row in unseen[1] for content in row[:4]]
    network, coder, judge = files.load_infinity(), files.load_infinity_vae(), files.load_judge()
    text = files.load_backbone()[1]
    states = text(torch.tensor([tokenise(content_prompt(content)) for content in asked]))
    last = None
    for step in draw(network, Drawing(SCALES, [states], rows=len(asked)), Sampling(guidance=3.0)):
        last = step.content
    assert last is not None
    verdict = judge((coder.decode(last) + 1) / 2)
    right = [
        getattr(verdict, part).argmax(1) == torch.tensor([getattr(c, part) for c in asked]) for part in PARTS
    ]
    assert torch.stack(right).float().mean() >= 0.85


@torch.inference_mode()
def test_judge_ranks_unseen_styles(unseen):
    pictures = unseen[0]
    judge = files.load_judge()
    one, two = judge(pictures[:, 0]), judge(pictures[:, 1])
    apart = judge(pictures[:, 1].roll(1, 0))
    nearer = style_distance(one, two) < style_distance(one, apart)
    assert nearer.float().mean() > 0.9


@torch.inference_mode()
def test_predicted_lora_explains_its_own_style_better_than_none_and_than_another(unseen):
    """The loss that training minimised (paper, eq. 6), on styles and contents it never saw."""
    pictures, facts = unseen
    backbone, text = files.load_backbone()
    encoder, _ = files.load_vae()
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    assert loaded.base_model == "i2l-tiny"
    see, predictor = loaded.encoder.float(), loaded.predictor.float()
    tokens = see(pictures[:, :4].flatten(0, 1) * 2 - 1).unflatten(0, (STYLES, 4)).flatten(1, 2)
    lora = {t.weight: pair for t, pair in predictor(tokens).layers().items()}
    wrong = {k: (down.roll(1, 0), up.roll(1, 0)) for k, (down, up) in lora.items()}
    latents = encoder(pictures[:, 4:].flatten(0, 1)).repeat_interleave(3, 0)
    prompts = [content_prompt(c) for row in facts for c in row[4:] for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    noise, sigma = torch.randn(latents.shape, generator=generator), draw_sigmas(len(latents), generator)
    context, x = text(torch.tensor([tokenise(p) for p in prompts])), noisy(latents, noise, sigma)

    def loss(pairs):
        return (backbone(x, sigma, context, pairs) - velocity(latents, noise)).square().mean()

    own, none, other = loss(lora), loss(None), loss(wrong)
    assert own < 0.97 * none
    assert own < 0.95 * other


@torch.inference_mode()
def test_what_a_mask_hides_does_not_reach_the_lora():
    """Half of each reference is of another style, behind the mask. The encoder looks around masks on its tokens."""
    styles = sorted(path for path in (ROOT / "workflows" / "library").iterdir() if path.is_dir())
    pictures = [[read_reference(path / f"{n}.png").pixels for n in (1, 2)] for path in styles]
    runtime = PlainRuntime(torch.device("cpu"))
    predictor = open_predictor(files.WEIGHTS / files.PREDICTOR, runtime)

    def lora(pixels: torch.Tensor, mask: torch.Tensor | None = None) -> LoRA:
        return predictor.predict([Reference(pixels, 1.0, mask)]).lora

    for (shown, _), (_, hidden) in itertools.pairwise([*pictures, pictures[0]]):
        half = shown.shape[1] // 2
        mask = torch.ones(shown.shape[:2])
        mask[:, half:] = 0
        both = torch.cat([shown[:, :half], hidden[:, half:]], dim=1)
        masked, right, other = lora(both, mask), lora(shown), lora(hidden)
        assert cosine(masked, right) > 0.98  # 0.77 to 0.98 with weights on tokens alone
        assert abs(cosine(masked, other) - cosine(right, other)) < 0.03
