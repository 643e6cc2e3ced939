"""bench.study: its arithmetic against plain sums, and every part from the command line in the smallest size."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT
from tiny_world import random_demo_weights
from torch import Tensor

pytestmark = pytest.mark.evidence

STYLES, PARTS = 3, ("fidelity", "leakage")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of `bench` as the command does: from the root, which only then is on the path."""
    monkeypatch.syspath_prepend(ROOT)

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"bench.{name}")

    return module


@pytest.fixture
def world(study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, object]:
    module = study("_world")
    monkeypatch.chdir(tmp_path)
    return module, module.Bench(STYLES, False, 1, 2)


def one_hot(classes: Tensor, count: int) -> Tensor:
    return 9.0 * torch.nn.functional.one_hot(classes, count).float()


class TestLeaks:
    """400 pictures, two of a style: the first content of a row is the reference's, the second the prompt's."""

    @pytest.fixture
    def rows(self) -> list[list[SimpleNamespace]]:
        g = torch.Generator().manual_seed(1)
        draws = [torch.randint(n, (400, 2), generator=g).tolist() for n in (8, 3, 5)]
        rows = [
            [SimpleNamespace(subject=s[i], count=c[i], place=p[i]) for i in (0, 1)]
            for s, c, p in zip(*draws, strict=True)
        ]
        return [[rows[i - i % 2][0], row[1]] for i, row in enumerate(rows)]

    def leaks(self, study, rows, which: int | None, prompted: bool) -> dict:
        g = torch.Generator().manual_seed(2)
        shown = {
            part: torch.randint(n, (len(rows),), generator=g)
            if which is None
            else torch.tensor([getattr(row[which], part) for row in rows])
            for part, n in (("subject", 8), ("count", 3), ("place", 5))
        }
        judged = SimpleNamespace(
            **{p: one_hot(shown[p], n) for p, n in (("subject", 8), ("count", 3), ("place", 5))}
        )
        bench = SimpleNamespace(
            pool=SimpleNamespace(contents=rows[::2]),
            targets=[row[1] for row in rows],
            n_prompts=2,
        )
        return study("study.leakage")._leaks(bench, judged, prompted)

    def test_a_copied_reference_is_found_every_time(self, study, rows) -> None:
        found = self.leaks(study, rows, which=0, prompted=True)
        for part, n in (("subject", 8), ("count", 3), ("place", 5)):
            assert found[part]["shown"] == 100
            assert found[part]["above_chance"] > 100 - 150 / n
            assert found[part]["pictures"] < 400  # where the prompt says the same nothing can be told

    def test_the_prompt_alone_shows_none_of_it(self, study, rows) -> None:
        found = self.leaks(study, rows, which=1, prompted=True)
        assert [found[part]["shown"] for part in ("subject", "count", "place")] == [0, 0, 0]

    def test_what_has_nothing_to_do_with_it_is_chance(self, study, rows) -> None:
        found = self.leaks(study, rows, which=None, prompted=False)
        for part, n in (("subject", 8), ("count", 3), ("place", 5)):
            low, high = found[part]["spread_of_chance_95"]
            assert 1.5 * low < found[part]["above_chance"] < 1.5 * high
            assert found[part]["chance"] == pytest.approx(100 / n, abs=3)
            assert found[part]["pictures"] == 400


def test_products_are_those_of_whole_changes(study) -> None:
    g = torch.Generator().manual_seed(3)
    a, b = (
        {
            name: (torch.randn(n, 2, 5, generator=g), torch.randn(n, 7, 2, generator=g))
            for name in ("one", "two")
        }
        for n in (3, 4)
    )
    whole = [torch.cat([(up @ down).flatten(1) for down, up in loras.values()], 1) for loras in (a, b)]
    torch.testing.assert_close(study("study.learned")._products(a, b), whole[0] @ whole[1].T)


def test_styles_between_go_the_shorter_way_round(study) -> None:
    learned, style = study("study.learned"), importlib.import_module("i2l_core.demo.style").Style
    a = style(4, 0.9, 0.2, 0.0, 0.5, 0.05, 1.0)
    b = style(4, 0.1, 0.4, 1.0, 0.5, 0.95, 0.0)
    assert learned._mixed(a, b, 0.0) == pytest.approx(a)
    assert learned._mixed(a, b, 1.0).as_tuple() == pytest.approx(b.as_tuple())
    half = learned._mixed(a, b, 0.5).as_tuple()
    assert min(half[1], 1 - half[1]) == pytest.approx(0, abs=1e-9)
    assert half[2:5] == pytest.approx((0.3, 0.5, 0.5))
    assert min(half[5], 1 - half[5]) == pytest.approx(0, abs=1e-9)


def test_a_masked_token_is_nothing_to_the_adapter(study) -> None:
    variants = study("study.variants")
    query = importlib.import_module("i2l_core.predictors.query.network")
    shipped = variants._shipped()
    adapter = variants.Adapter(shipped).eval()
    assert isinstance(shipped, query.QueryConfig)
    tokens = torch.randn(2, 6, shipped.token_dim)
    bias = torch.zeros(2, 6)
    bias[:, 4:] = -torch.inf
    with torch.no_grad():
        torch.testing.assert_close(adapter(tokens, bias), adapter(tokens[:, :4]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(adapter(tokens), adapter(tokens[:, :4]), atol=1e-3)


class TestBench:
    def test_blocks_do_not_change_a_picture(self, study, world, monkeypatch: pytest.MonkeyPatch) -> None:
        module, bench = world
        sampling = study("_world").Sampling(1)
        loras = module.predict(bench.references)
        whole = bench.paint("", sampling, loras, None)
        monkeypatch.setattr(module, "_BLOCK", 2)  # 3 styles: the second block is filled up from the front
        parted = bench.paint("", sampling, loras, None)
        assert whole.pictures.shape == parted.pictures.shape == (2 * STYLES, 3, 128, 128)
        torch.testing.assert_close(parted.pictures, whole.pictures, rtol=1e-4, atol=1e-4)

    def test_a_shift_has_an_interval_of_no_width(self, world) -> None:
        _, bench = world
        b = torch.rand(2 * STYLES)
        found = bench.paired(b + 0.25, b)
        assert found["mean"] == pytest.approx(0.25, abs=1e-3)
        assert found["interval_95"] == pytest.approx([0.25, 0.25], abs=1e-3)

    def test_the_interval_holds_the_mean_and_widens_with_the_spread(self, world) -> None:
        _, bench = world
        a = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
        wide, narrow = bench.paired(a, 0 * a), bench.paired(a / 2, 0 * a)
        assert wide["interval_95"] == [0.0, 1.0]  # three styles: each drawn three times out of 27
        assert narrow["interval_95"] == [0.0, 0.5]
        assert wide["mean"] == pytest.approx(0.5)


class TestTone:
    """The rivals of Style Tone Blend by their definitions, and when they act."""

    @pytest.fixture
    def latents(self) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(5)
        mix = torch.randn(2, 3, 3, generator=g)
        there = (mix @ torch.randn(2, 3, 64, generator=g)).view(2, 3, 8, 8) + 2
        return torch.randn(2, 3, 6, 6, generator=g), there

    def test_rivals_take_the_moments_of_the_reference(self, study, latents) -> None:
        tone, (here, there) = study("study.tone"), latents
        made, wanted = tone.adain(here, there).flatten(2), there.flatten(2)
        torch.testing.assert_close(made.mean(-1), wanted.mean(-1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.std(-1), wanted.std(-1), rtol=1e-3, atol=1e-3)
        made = tone.whitened(here, there).flatten(2)
        for row in range(2):
            torch.testing.assert_close(made[row].cov(), wanted[row].cov(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(made.mean(-1), wanted.mean(-1), rtol=1e-4, atol=1e-4)
        for change in (tone.adain, tone.whitened):
            torch.testing.assert_close(change(here, here), here, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(change(here, there)[:1], change(here[:1], there[:1]))

    def test_a_way_acts_in_its_window_on_its_own_styles(self, study, latents) -> None:
        tone, (here, there) = study("study.tone"), latents
        for way in (tone.Way("AdaIN", 0.5), tone.Way("tone", 0.5, tone.ToneSettings(1.0, 2, 0.0))):
            after = tone.after(way, there, 1)
            chosen = torch.tensor([1, 0])
            assert after(chosen, here, torch.tensor(0.74)) is here  # 0.75 is half of the way at shift 3
            made = after(chosen, here, torch.tensor(0.75))
            assert (made - here).abs().max() > 0.1
            torch.testing.assert_close(made[:1], after(torch.tensor([1]), here[:1], torch.tensor(1.0)))

    def test_what_comes_after_guidance_is_what_is_sampled(self, study) -> None:
        world = study("_world")
        g = torch.Generator().manual_seed(6)
        network, _ = world.files.load_backbone()
        noise, wanted = torch.randn(2, 16, 16, 16, generator=g), torch.randn(2, 16, 16, 16, generator=g)
        words = torch.randn(2, 16, network.config.cap_feat_dim, generator=g)
        arguments = network, noise, words, words.flip(0), world.Sampling(2, 3.0), None, None
        plain, seen = world.sample(*arguments), []

        def same(x0: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma))
            return x0

        torch.testing.assert_close(world.sample(*arguments, same), plain, rtol=1e-4, atol=1e-4)
        assert seen == world.Sampling(2).sigmas()[:-1].tolist()
        torch.testing.assert_close(world.sample(*arguments, lambda *_: wanted), wanted, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_the_part_measures_and_tabulates(self, study, world, monkeypatch, tmp_path: Path) -> None:
        tone = study("study.tone")
        for name, few in (("_GRIDS", (4,)), ("_ALPHAS", (1.0,)), ("_ENDS", (1.0,)), ("_LORAS", (0.0, 1.0))):
            monkeypatch.setattr(tone, name, few)
        found = tone.run(world[1], 1)["lora"]
        assert list(found) == ["0", "1"]
        for cases in found.values():
            assert len(cases) == 1 + 4 + 2 * 2
            assert cases["nothing more"]["style_distance_change"]["mean"] == 0
            distances = [case["style_distance"] for case in cases.values()]
            assert len(set(distances)) > 4
        about = {"styles": STYLES, "steps": 1, "prompts": 2, "machine": "", "seconds": 1}
        study("study.results").write(tmp_path, "tone", {"lora": found, **about})
        text = study("study.tables").write(tmp_path).read_text("utf-8")
        assert "| 1 | tone, grid 4, alpha 1, strength 1, 0-1 | " in text


class TestStructure:
    """Keep Structure as the study measures it: exact where it does nothing, and by hand where it does."""

    @pytest.fixture
    def network(self, study, tmp_path: Path):
        files = importlib.import_module("i2l_core.demo.files")
        return files.load_backbone(random_demo_weights(tmp_path))[0].eval()

    @pytest.fixture
    def inputs(self, network) -> dict:
        g = torch.Generator().manual_seed(7)
        shapes = {key.removesuffix(".weight"): w.shape for key, w in network.state_dict().items()}
        names = [n for n in shapes if n.endswith(("qkv", "attention.out", "w1")) and "refiner" not in n]
        lora = {
            n: (
                torch.randn(2, 2, shapes[n][1], generator=g),
                0.02 * torch.randn(2, shapes[n][0], 2, generator=g),
            )
            for n in names
        }
        words = torch.randn(2, 2, 16, network.config.cap_feat_dim, generator=g)
        return {"noise": torch.randn(2, 16, 16, 16, generator=g), "words": tuple(words), "lora": lora}

    @torch.no_grad()
    def test_without_a_lora_both_halves_are_the_plain_run(self, study, network, inputs) -> None:
        structure = study("study.structure")
        sigma, words = torch.tensor(0.7), inputs["words"][0]
        plain = network(inputs["noise"], sigma.expand(2), words)
        for layers in (structure.ALL, structure.FIRST, structure.LAST):
            keeping = structure.Keeping(network, layers)
            styled, content = keeping(inputs["noise"], inputs["noise"], sigma, words, {})
            torch.testing.assert_close(styled, content, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(content, plain, rtol=1e-4, atol=1e-5)
            styled, content = keeping(inputs["noise"], inputs["noise"], sigma, words, inputs["lora"])
            torch.testing.assert_close(content, plain, rtol=1e-4, atol=1e-5)
            lora = network(inputs["noise"], sigma.expand(2), words, inputs["lora"])
            assert (styled - content).abs().max() > 0.01
            assert (styled - lora).abs().max() > 0.001

    @torch.no_grad()
    def test_the_exchange_by_hand(self, study, network) -> None:
        """Image tokens' q and k of the other half, by a plain softmax; text keeps its own."""
        structure = study("study.structure")
        inner = network.layers[0].attention
        kept = structure._Kept(inner)
        kept.image_tokens = 5
        x = torch.randn(2, 8, network.config.dim, generator=torch.Generator().manual_seed(8))
        angles = torch.zeros(2, 8, network.config.dim // network.config.n_heads // 2)
        angles[0] = 1
        q, k, v = inner.projected(x, angles, {}, "")
        made = kept(x, angles, {}, "")
        mixed = [torch.cat([t[0, :, :3], t[1, :, 3:]], 1) for t in (q, k)]
        weights = (mixed[0] @ mixed[1].mT / q.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(made[0], inner.out((weights @ v[0]).transpose(0, 1).flatten(1)))
        torch.testing.assert_close(made[1], inner(x, angles, {}, "")[1])
        assert (made[0] - inner(x, angles, {}, "")[0]).abs().max() > 1e-3

    def test_layers_are_halved_by_those_with_image_tokens(self, study, network) -> None:
        structure = study("study.structure")
        found = {}
        for layers in (structure.ALL, structure.FIRST, structure.LAST):
            modules = structure.Keeping(network, layers).network.named_modules()
            found[layers] = {name for name, part in modules if isinstance(part, structure._Kept)}
        assert found[structure.FIRST] | found[structure.LAST] == found[structure.ALL]
        assert not found[structure.FIRST] & found[structure.LAST]
        assert "noise_refiner.0.attention" in found[structure.FIRST]
        assert not any(name.startswith("context") for name in found[structure.ALL])

    @torch.no_grad()
    def test_windows_and_starts(self, study, network, inputs) -> None:
        """A window of no steps and a start at 0 are the plain LoRA run; a start at the end is the run without."""
        structure, world = study("study.structure"), study("_world")
        sampling, lora, noise = world.Sampling(3), inputs["lora"], inputs["noise"]
        keeping = structure.Keeping(network, structure.ALL)

        def styled(way, keeping=None) -> Tensor:
            return structure.styled(network, keeping, noise, inputs["words"], sampling, (lora, lora), way)

        plain = world.sample(network, noise, *inputs["words"], sampling, lora, lora)
        torch.testing.assert_close(styled(structure.Way(1.0)), plain)
        nothing = structure.Way(1.0, keep=structure.Keep(0.0))
        torch.testing.assert_close(styled(nothing, keeping), plain)
        parts = [styled(structure.Way(1.0, keep=structure.Keep(end)), keeping) for end in (1 / 3, 2 / 3, 1.0)]
        for one, other in zip(parts, [plain, *parts[:-1]], strict=True):
            assert (one - other).abs().max() > 1e-3
        none = world.sample(network, noise, *inputs["words"], sampling)
        torch.testing.assert_close(styled(structure.Way(1.0, start=1.0)), none)
        late = styled(structure.Way(1.0, start=0.3))
        assert (late - plain).abs().max() > 1e-3
        assert (late - none).abs().max() > 1e-3

    def test_outlines(self, study) -> None:
        structure = study("study.structure")
        a = torch.zeros(2, 3, 64, 64)
        a[0, :, 20:40, 20:40] = 1
        a[1, 0, 10:50, 30:40] = 0.5
        same = structure.agreement(a, a)
        torch.testing.assert_close(same, torch.ones(2))
        torch.testing.assert_close(structure.agreement(a, 1 - 0.3 * a), same)
        assert (structure.agreement(a, a.roll(1, -1)) > 0.95).all()
        assert (structure.agreement(a, a.roll(12, -1)) < 0.7).all()

    @torch.no_grad()
    def test_the_part_measures_and_tabulates(self, study, world, monkeypatch, tmp_path: Path) -> None:
        structure = study("study.structure")
        kept = structure.Way(1.0, keep=structure.Keep(1.0))
        late = structure.Way(1.5, start=0.5)
        free = structure.Way(1.0, without_qk=True)
        sided = structure.Way(1.0, without_qk=True, asymmetric=True)
        monkeypatch.setattr(structure, "ways", lambda: iter((structure.Way(1.0), free, sided, late, kept)))
        found = structure.run(world[1], 2)
        assert found["cases"]["none"]["outline"] == 1
        assert found["cases"][kept.title]["rival"] == free.title
        assert found["cases"][sided.title]["style_distance_change"]["mean"] == 0
        assert found["outline_of_another_picture"] < min(c["outline"] for c in found["cases"].values())
        assert len({case["style_distance"] for case in found["cases"].values()}) == 6
        about = {"styles": STYLES, "steps": 2, "prompts": 2, "machine": "", "seconds": 1}
        study("study.results").write(tmp_path, "structure", {**found, **about})
        text = study("study.tables").write(tmp_path).read_text("utf-8")
        assert f"| {kept.title} | " in text

    def test_who_is_beaten(self, study) -> None:
        structure = study("study.structure")
        assert structure._beats((-0.2, 0.9, 0.8), (-0.2, 0.9, 0.7))
        assert not structure._beats((-0.2, 0.9, 0.8), (-0.2, 0.9, 0.8))
        assert not structure._beats((-0.2, 0.9, 0.8), (-0.3, 0.95, 0.7))


def test_the_command_measures_its_parts_and_goes_on_where_it_was_stopped(study, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench.study", *PARTS, "--styles", str(STYLES), "--steps", "1"]
        return subprocess.run(
            [*command, "--no-compile", "--json", "--missing", "--out", str(tmp_path), *arguments],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == list(PARTS)
    for name in PARTS:
        assert json.loads((tmp_path / f"{name}.json").read_text("utf-8")) == found[name]
        assert (found[name]["styles"], found[name]["steps"]) == (STYLES, 1)
    cases = found["fidelity"]["cases"]
    assert {f"predicted, {n} reference{'s' * (n > 1)}" for n in (1, 2, 4, 8)} < set(cases)
    assert cases["real pictures"]["style_distance"] < cases["none"]["style_distance"]
    assert cases["none"]["prompt_accuracy_change"] == {"mean": 0.0, "interval_95": [0.0, 0.0]}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = run()
    assert json.loads(again.stdout) == {}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    text = study("study.tables").write(tmp_path).read_text("utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Fidelity", "## Leakage"]
    assert f"| none | {cases['none']['style_distance']:.3f} " in text
    drawn = study("study.plots").draw(tmp_path, tmp_path)
    assert [path.name for path in drawn] == ["study_fidelity.png", "study_leakage.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.study", "fidelty", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "fidelty" in done.stderr
    assert "fidelity, trained" in done.stderr


@torch.inference_mode()
def test_the_control_is_that_of_the_host(host, study, tmp_path: Path) -> None:
    """One forward under control, in training and by the host's own class and patch, with random weights."""
    from comfy_extras.nodes_model_patch import ZImageControlPatch

    from i2l.i2l_core.host.demo.world import load_demo

    folder = random_demo_weights(tmp_path)
    world = load_demo(folder)
    control = study("study.control")
    files = importlib.import_module("i2l_core.demo.files")
    backbone, text = files.load_backbone(folder)
    own = control.Control(backbone.config)
    g = torch.Generator().manual_seed(4)
    for p in own.parameters():
        p.copy_(torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * p + 1)

    cover = torch.randint(0, 256, (2, 64, 64), generator=g, dtype=torch.uint8)[:1]
    picture = control.pictures_of(cover)
    assert picture.shape == (1, 3, 128, 128)
    assert float(picture.max()) <= 1
    encoder, _ = files.load_vae(folder)
    x, sigma = torch.randn(2, 16, 16, 16, generator=g), torch.tensor([0.7, 0.7])
    tokenise = importlib.import_module("i2l_core.demo.prompts").tokenise
    words = text(torch.tensor([tokenise("one star in the middle"), tokenise("")]))
    expected = own.velocity(backbone, x, sigma, words, encoder(picture).expand(2, -1, -1, -1))

    patch = ZImageControlPatch(
        control.in_host(own, backbone.config), world.vae, picture.permute(0, 2, 3, 1), 1.0
    )
    network = world.model.model.diffusion_model.float()
    options = {"patches": {"double_block": [patch]}}
    found = network(x, sigma, words, words.shape[1], transformer_options=options)
    plain = network(x, sigma, words, words.shape[1], transformer_options={})
    torch.testing.assert_close(plain, backbone(x, sigma, words), rtol=1e-3, atol=1e-4)
    assert (found - plain).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
