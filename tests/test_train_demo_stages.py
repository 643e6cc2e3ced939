"""Training: the optimiser, exact resume, the flow's conventions, and the pairing of references and targets."""

import csv
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from i2l.i2l_core.demo.backbone import Backbone, BackboneConfig, LoRALinear
from i2l.i2l_core.demo.sampler import Sampling, sample, shifted
from i2l.i2l_core.train.demo_stages.run import StageRun
from i2l.i2l_core.train.flow import draw_sigmas, noisy, velocity
from i2l.i2l_core.train.optimiser import Muon, orthogonalise
from i2l.i2l_core.train.plan import Plan

TINY = BackboneConfig(n_layers=2)


@given(st.integers(2, 24), st.integers(2, 24), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_orthogonalise_keeps_directions_and_evens_their_sizes(rows, columns, count, seed):
    u = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    found = orthogonalise(u)
    left, sizes, right = torch.linalg.svd(u, full_matrices=False)
    inner = left.mT @ found @ right.mT  # diagonal in the same singular vectors
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=2e-3, rtol=0)
    big = sizes > 0.1 * sizes[:, :1]
    assert ((inner.diagonal(dim1=1, dim2=2) > 0.5) & (inner.diagonal(dim1=1, dim2=2) < 1.4))[big].all()


def test_muon_batches_equal_shapes_without_mixing_them():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)] + [nn.Parameter(torch.randn(5, 8))]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    joint, single = Muon(together, lr=0.1), [Muon([p], lr=0.1) for p in alone]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        joint.step()
        for optimiser in single:
            optimiser.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def _toy(folder, steps, stop=None):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    run = StageRun(
        folder,
        Plan(steps=steps, batch=16, lr=0.01, seed=4, save_every=5),
        {"net": net},
        lambda k, p: p.ndim == 2,
    )

    def loss(step):
        if stop is not None and step == stop:
            raise KeyboardInterrupt
        _, generator = run.generator(step)
        x = torch.randn(16, 6, generator=generator)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return run, net, loss


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    run, whole, loss = _toy(tmp_path / "whole", 20)
    run.train(loss)
    run, _, loss = _toy(tmp_path / "parts", 20, stop=13)
    with pytest.raises(KeyboardInterrupt):
        run.train(loss)
    run, parts, loss = _toy(tmp_path / "parts", 20)
    assert run.step == 10  # the last checkpoint before the stop
    run.train(loss)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    again, average, _ = _toy(tmp_path / "parts", 20)
    again.load_average()
    assert again.step == 20
    assert not torch.equal(next(average.parameters()), next(parts.parameters()))


def test_losses_are_logged_and_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run, _, loss = _toy(tmp_path, 12)
    run.train(loss, [(5, lambda step: {"seen": step})])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == list(range(1, 13))
    assert rows[4]["figures"] == '{"seen": 5}'
    run, _, loss = _toy(tmp_path, 30)
    with pytest.raises(FloatingPointError, match="loss nan at step 12"):
        run.train(lambda step: loss(step) * float("nan"))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run, _, loss = _toy(tmp_path, 5)
    run.train(loss)
    with pytest.raises(ValueError, match=r"another configuration: it lacks other\.weight"):
        StageRun(
            tmp_path, Plan(steps=5, batch=1, lr=1, seed=0), {"other": nn.Linear(2, 2)}, lambda k, p: False
        )


def test_plans_check_themselves():
    with pytest.raises(ValueError, match="positive steps"):
        Plan(steps=0, batch=1, lr=0.1, seed=0)
    plan = Plan(steps=100, batch=1, lr=0.1, seed=0, warmup=10, decay=0.5)
    factors = [plan.factor(s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1
    assert factors[-1] == pytest.approx(0.02)


def test_noise_levels_follow_the_hosts_shift():
    u = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(shifted(u), torch.tensor([0.0, 0.5, 0.75, 1.0]))
    sigmas = draw_sigmas(400, torch.Generator().manual_seed(0))
    assert (sigmas > 0.75).float().mean() == pytest.approx(0.5, abs=0.01)


def test_velocity_takes_noise_back_to_the_picture():
    x, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sigma = torch.tensor([0.2, 0.5, 0.9])
    at = noisy(x, noise, sigma)
    torch.testing.assert_close(at - sigma.view(-1, 1, 1, 1) * velocity(x, noise), x)


class _Straight(nn.Module):
    """A backbone that knows the one picture there is."""

    def __init__(self, picture):
        super().__init__()
        self.picture = picture

    def forward(self, x, sigma, context, lora=None):
        return (x - self.picture) / sigma.view(-1, 1, 1, 1)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_sampler_lands_on_the_picture_of_an_exact_flow(cfg):
    picture = torch.randn(2, 3, 4, 4)
    words = torch.zeros(2, 1, 1)
    backbone: Any = _Straight(picture)
    found = sample(backbone, torch.randn(2, 3, 4, 4), words, words, Sampling(7, cfg))
    torch.testing.assert_close(found, picture, atol=1e-5, rtol=1e-5)


def test_one_lora_per_group_of_rows_equals_patched_weights():
    torch.manual_seed(1)
    linear = LoRALinear(6, 5)
    x, down, up = torch.randn(8, 3, 6), torch.randn(4, 2, 6), torch.randn(4, 5, 2)
    found = linear(x, (down, up))
    for group in range(4):
        patched = nn.functional.linear(
            x[2 * group : 2 * group + 2], linear.weight + up[group] @ down[group], linear.bias
        )
        torch.testing.assert_close(found[2 * group : 2 * group + 2], patched)


def test_backbone_with_lora_equals_backbone_with_patched_weights():
    torch.manual_seed(2)
    net = Backbone(TINY).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)
    names = [n for n, m in net.named_modules() if isinstance(m, LoRALinear)]
    lora = {}
    for name in names:
        weight = cast(LoRALinear, net.get_submodule(name)).weight
        lora[name] = (torch.randn(1, 2, weight.shape[1]) * 0.1, torch.randn(1, weight.shape[0], 2) * 0.1)
    x, sigma, text = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.8]), torch.randn(2, 16, 128)
    with torch.no_grad():
        live = net(x, sigma, text, lora)
        plain = net(x, sigma, text)
        for name, (down, up) in lora.items():
            cast(LoRALinear, net.get_submodule(name)).weight += up[0] @ down[0]
        patched = net(x, sigma, text)
    torch.testing.assert_close(live, patched, atol=1e-4, rtol=1e-4)
    assert (live - plain).abs().max() > 0.01
