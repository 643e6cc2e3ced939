"""Gradient checkpointing for transformer blocks of any network, including networks written for inference.

Blocks of the host change their inputs in place (`img += ...`). Autograd refuses this where it detects it, and
recomputing a block from a changed input would be silently wrong. So each block gets copies of its inputs, and each
norm, whose backward pass needs its input, gets a copy of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Restore = Callable[[], contextlib.AbstractContextManager[Any]]


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost ModuleLists."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def copy_norm_inputs(network: nn.Module) -> None:
    """Let every norm in a block compute from a copy of its input when gradients are recorded."""
    for block in blocks_of(network):
        for module in block.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.register_forward_pre_hook(_copy_first)


def checkpoint_blocks(
    network: nn.Module, remember: Callable[[], Restore] = lambda: contextlib.nullcontext
) -> None:
    """Keep only the inputs of each block of `network` for the backward pass.

    `remember()` is called when a block runs; what it returns makes the context for running it again, long after
    the forward pass, so that hooks do then what they did at first.
    """
    for block in blocks_of(network):
        block.forward = _checkpointed(block.forward, remember)


def _checkpointed(forward: Callable[..., Any], remember: Callable[[], Restore]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        restore = remember()

        def run(*args: Any, **kwargs: Any) -> Any:
            with restore():
                return forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})

        # nothing in a frozen base model draws random numbers
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _copy_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone(), *args[1:]) if torch.is_grad_enabled() and args[0].requires_grad else args
