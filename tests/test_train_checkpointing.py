"""Gradient checkpointing: the same gradients, through blocks that write into their inputs and through hooks."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from i2l.i2l_core.train.checkpointing import blocks_of, checkpoint_blocks, copy_norm_inputs


class Careless(nn.Module):
    """A block as inference likes it: the residual stream is written in place, after a norm has seen it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner = nn.Linear(width, width)

    def forward(self, x, scale=None):
        x += self.inner(self.norm(x)) * scale
        x *= 1.5
        return x


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Careless(8) for _ in range(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(4, 8)
        self.stage = Stage()

    def forward(self, x, scale):
        x = self.before(x)
        for layer in self.stage.layers:
            x = layer(x, scale=scale)
        return x.sin().sum()


def gradients(net: Net) -> list[torch.Tensor]:
    scale = torch.full((8,), 0.7, dtype=torch.double, requires_grad=True)
    x = torch.linspace(-1, 1, 12, dtype=torch.double).view(3, 4)
    parameters = [scale, *net.parameters()]
    return list(torch.autograd.grad(net.double()(x, scale), parameters))


def out_of_place(net: Net) -> Net:
    def forward(self, x, scale=None):
        return (x + self.inner(self.norm(x)) * scale) * 1.5

    for layer in net.stage.layers:
        layer.forward = forward.__get__(layer)
    return net


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_that_write_into_their_inputs_get_the_right_gradients(checkpointed):
    net = Net()
    copy_norm_inputs(net)
    if checkpointed:
        checkpoint_blocks(net)
    for found, expected in zip(gradients(net), gradients(out_of_place(Net())), strict=True):
        torch.testing.assert_close(found, expected)


def test_without_the_copies_autograd_would_refuse():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(Net())


def test_blocks_run_again_within_what_was_remembered():
    net, acting, seen = Net(), [1.0], []
    for layer in net.stage.layers:
        layer.inner.register_forward_hook(lambda module, args, out: seen.append(acting[0]) or out * acting[0])

    def remember():
        value = acting[0]

        @contextlib.contextmanager
        def restore():
            before, acting[0] = acting[0], value
            yield
            acting[0] = before

        return restore

    copy_norm_inputs(net)
    expected = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_blocks(net, remember)
        seen.clear()
        scale = torch.ones(8, dtype=torch.double, requires_grad=True)
        acting[0] = 0.5
        loss = net.double()(torch.ones(3, 4, dtype=torch.double), scale)
        acting[0] = 99.0  # by the time of the backward pass it is another
        expected.append(torch.autograd.grad(loss, scale)[0])
        assert seen == [0.5] * (6 if checkpointed else 3)
    torch.testing.assert_close(expected[1], expected[0])


def kept_bytes(checkpointed: bool) -> int:
    """What autograd keeps for the backward pass of a network; parameters do not count."""
    net, kept = Net().double(), {}
    copy_norm_inputs(net)
    if checkpointed:
        checkpoint_blocks(net)
    parameters = {p.data_ptr() for p in net.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor
        return tensor

    x = torch.ones(1000, 4, dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(x, torch.ones(8, dtype=torch.double, requires_grad=True))
    assert loss.requires_grad
    return sum(tensor.nbytes for tensor in kept.values())


def test_of_a_block_only_its_inputs_are_kept():
    states = 1000 * 8 * 8  # bytes of the residual stream
    assert kept_bytes(True) == (0.5 + 3 + 1) * states  # of the Linear before, the blocks, the sine after
    assert kept_bytes(False) > 3 * 3 * states


def test_nothing_is_run_twice_without_gradients():
    net, runs = Net(), []
    net.stage.layers[0].inner.register_forward_hook(lambda *args: runs.append(1))
    checkpoint_blocks(net)
    with torch.no_grad():
        net.double()(torch.ones(3, 4, dtype=torch.double), torch.ones(8, dtype=torch.double))
    assert len(runs) == 1
    assert [type(block) for block in blocks_of(net)] == [Careless] * 3
