"""The demo world's pictures, prompts and splits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.demo.autoencoder import (
    build_decoder,
    build_encoder,
    encoder_weights,
    fit_basis,
    host_weights,
)
from i2l.i2l_core.demo.content import COUNTS, PLACES, SUBJECTS, Content, contents
from i2l.i2l_core.demo.judge import FACTORS, Verdict, style_distance
from i2l.i2l_core.demo.pool import PoolConfig, open_pool
from i2l.i2l_core.demo.prompts import PAD, TOKENS, UNKNOWN, VOCABULARY, content_prompt, style_prompt, tokenise
from i2l.i2l_core.demo.render import SIZE, render
from i2l.i2l_core.demo.style import HUE_NAMES, TECHNIQUES, Style, hue_name, sample_style


def test_split_of_contents_is_disjoint_and_every_word_is_seen_in_training():
    seen, unseen = set(contents(False)), set(contents(True))
    assert not seen & unseen
    assert len(seen | unseen) == len(SUBJECTS) * len(COUNTS) * len(PLACES)
    assert 10 <= len(unseen) <= 30
    for field, words in (("subject", SUBJECTS), ("count", COUNTS), ("place", PLACES)):
        assert {getattr(c, field) for c in seen} == set(range(len(words)))


def test_split_of_styles_keeps_every_technique_on_both_sides():
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        styles = [sample_style(rng, held_out) for _ in range(300)]
        assert all(s.held_out == held_out for s in styles)
        assert {s.name for s in styles} == set(TECHNIQUES)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_picture_depends_on_nothing_but_content_style_and_seed(seed):
    rng = np.random.default_rng(seed)
    style = sample_style(rng, bool(seed % 2))
    content = contents(False)[seed % len(contents(False))]
    first = render(content, style, np.random.default_rng(seed))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert 0 <= first.min() <= first.max() <= 1
    assert np.array_equal(first, render(content, style, np.random.default_rng(seed)))
    assert not np.array_equal(first, render(content, style, np.random.default_rng(seed + 1)))


@pytest.mark.parametrize("technique", range(len(TECHNIQUES)), ids=TECHNIQUES)
def test_figure_and_place_show_in_every_technique(technique):
    """The half of the picture that holds the figures differs more from a picture without them."""
    style = Style(technique, 0.0, 0.5, 0.8, 0.4, 0.3, 0.7)
    left = render(Content(1, 0, PLACES.index("left")), style, np.random.default_rng(3))
    right = render(Content(1, 0, PLACES.index("right")), style, np.random.default_rng(3))
    change = np.abs(left - right).mean(2)
    assert change.mean() > 0.02
    far = np.abs(change - change[:, ::-1]).mean() / change.mean()
    assert far < 1.6  # both halves change: the figure left one and came to the other


def test_impossible_factors_are_refused():
    with pytest.raises(ValueError, match=r"figure_hue: expected 0\.\.1, got 1\.5"):
        Style(0, 1.5, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="technique"):
        Style(len(TECHNIQUES), 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"place: expected 0\.\.4, got 9"):
        Content(0, 0, 9)


def test_factors_have_no_jump_where_the_hue_circle_closes():
    low, high = Style(0, 0.0001, 0.5, 0, 0, 0, 0), Style(0, 0.9999, 0.5, 0, 0, 0, 0)
    assert np.abs(low.factors() - high.factors()).max() < 0.01
    assert hue_name(0.9999) == hue_name(0.0001) == "red"
    assert {hue_name(h) for h in np.linspace(0, 1, 200)} == set(HUE_NAMES)


def test_every_prompt_fits_and_has_no_unknown_word():
    rng = np.random.default_rng(1)
    for content in (*contents(False), *contents(True)):
        ids = tokenise(f"{content_prompt(content)}, {style_prompt(sample_style(rng, False))}")
        assert len(ids) == TOKENS
        assert UNKNOWN not in ids
        assert next(VOCABULARY[i] for i in ids if i != PAD) in COUNTS


def test_plural_spelling_and_unknown_words():
    assert tokenise("two stars") == tokenise("2 star")
    assert tokenise("one house in the centre") == tokenise("One HOUSE, in the middle!")
    assert tokenise("a zebra").count(UNKNOWN) == 1
    assert tokenise("") == [PAD] * TOKENS
    assert len(tokenise("star " * 100)) == TOKENS


def test_pool_is_the_same_however_it_is_made_and_its_rows_share_style_not_content(tmp_path):
    config = PoolConfig(styles=5, per_style=4, seed=9, held_out=True)
    one, two = open_pool(tmp_path / "a", config, workers=1), open_pool(tmp_path / "b", config, workers=2)
    assert np.array_equal(one.pictures, two.pictures)
    assert one.styles == two.styles
    assert all(len(set(row)) == 4 for row in one.contents)
    assert open_pool(tmp_path / "a", config).contents == one.contents
    with pytest.raises(ValueError, match="per_style"):
        PoolConfig(styles=1, per_style=10_000, seed=0, held_out=False)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    rows = [render(contents(False)[i], sample_style(rng, False), rng) for i in range(40)]
    return torch.from_numpy(np.stack(rows))


def test_encoder_convolutions_are_exactly_the_principal_components(pictures):
    basis = fit_basis(pictures)
    encoder = build_encoder()
    encoder.load_state_dict(encoder_weights(basis))
    latents = basis.encode(pictures[:8])
    found = encoder(pictures[:8].permute(0, 3, 1, 2))
    assert found.shape == (8, 16, SIZE // 8, SIZE // 8)
    torch.testing.assert_close(found, latents, atol=3e-5, rtol=1e-5)


def test_basis_is_the_best_linear_one_and_inverts_itself(pictures):
    basis = fit_basis(pictures)
    torch.testing.assert_close(basis.basis @ basis.inverse, torch.eye(16), atol=1e-4, rtol=0)
    latents = basis.encode(pictures)
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=0.02)
    error = (basis.decode(latents) - pictures).square().mean()
    rotated = torch.linalg.qr(torch.randn(192, 192, generator=torch.Generator().manual_seed(0)))[0][:, :16]
    patches = pictures.view(40, 16, 8, 16, 8, 3).permute(0, 1, 3, 2, 4, 5).flatten(3) - basis.mean
    assert error < (patches - patches @ rotated @ rotated.T).square().mean()


def test_vae_file_has_the_hosts_names(pictures):
    weights = host_weights(fit_basis(pictures), build_decoder())
    assert weights["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert weights["taesd_encoder.14.weight"].shape == (16, 64, 3, 3)
    assert {"vae_scale", "vae_shift"} <= set(weights)


def _verdict(style: Style) -> Verdict:
    """What a perfect judge would say."""
    technique = torch.full((1, len(TECHNIQUES)), -50.0)
    technique[0, style.technique] = 50
    none = torch.zeros(1, 1)
    return Verdict(none, none, none, technique, torch.from_numpy(style.factors())[None])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_style_distance_is_a_distance_between_true_factors(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (_verdict(sample_style(rng, False)) for _ in range(3))
    assert float(style_distance(a, a)) == pytest.approx(0, abs=1e-6)
    ab, ba = float(style_distance(a, b)), float(style_distance(b, a))
    assert ab == pytest.approx(ba)
    assert 0 < ab <= 1.001
    assert ab <= float(style_distance(a, c)) + float(style_distance(c, b)) + 1e-6


@pytest.mark.parametrize("factor", FACTORS)
def test_style_distance_grows_with_the_difference_in_each_factor(factor):
    field = {"figure hue": "figure_hue", "ground hue": "ground_hue"}.get(factor, factor)
    base: dict[str, float] = {
        "figure_hue": 0.2,
        "ground_hue": 0.2,
        "vividness": 0.2,
        "scale": 0.2,
        "angle": 0.2,
        "weight": 0.2,
    }
    here = _verdict(Style(0, **base))
    steps = [
        float(style_distance(here, _verdict(Style(0, **{**base, field: 0.2 + d})))) for d in (0.1, 0.25, 0.45)
    ]
    assert 0 < steps[0] < steps[1] < steps[2]
