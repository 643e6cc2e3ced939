"""Live application: LoRAs that act on activations, by batch row, by token and by step; weights stay untouched.

    y[r, t] = W x[r, t] + sum_j s_j(row r, token t, sigma) * B_j (A_j x[r, t])

`attach` keeps all live LoRAs of a MODEL in one place, so any number of nodes costs one hook per Linear. The hooks
stand only while a sampler runs, and act only inside forwards of the MODEL that they were attached to. The weights
are never written, so quantised, offloaded and otherwise patched weights are served alike, and there is nothing to
restore.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import comfy.model_management
import comfy.sampler_helpers
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...base_models import ARCHITECTURES
from ...errors import I2LError
from ..patch import fitting, weights_of
from .branches import Branch, ChunkOfUuid, read_conds
from .image_tokens import check_maskable
from .loras import LiveLoRA, LiveSet, check_mask_fits
from .network import is_compiled, layers_of, network_of
from .run import CondBatch, SamplingRun

_KEY = "i2l_live"
# of BaseModel.apply_model, after x
_ARGUMENTS = ("t", "c_concat", "c_crossattn", "control", "transformer_options")
_WRAPPER = "model_function_wrapper"  # the one slot for a function around ComfyUI's call of a model


def attach(model: ModelPatcher, *loras: LiveLoRA) -> ModelPatcher:
    """A clone of `model` on which these LoRAs act live, beside those that were attached before.

    Raises I2LError, before anything is cloned, when one of them does not fit the model.
    """
    if any(live.mask is not None for live in loras):
        check_maskable(model.model.diffusion_model)
    loras = tuple(_fitted(live, model) for live in loras)
    clone = model.clone()
    widths = {name.removesuffix(".weight"): shape[0] for name, shape in weights_of(model).items() if shape}
    engine = LiveEngine(LiveSet.of((*attached(model), *loras), widths))
    for kind, wrapper in engine.wrappers():
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    for moment, callback in engine.callbacks():
        clone.remove_callbacks_with_key(moment, _KEY)
        clone.add_callback_with_key(moment, _KEY, callback)
    clone.set_attachments(_KEY, engine)
    engine.adopt(clone)
    return clone


def attached(model: ModelPatcher) -> tuple[LiveLoRA, ...]:
    """The live LoRAs of a MODEL, in the order in which they were attached."""
    engine = _engine_of(model)
    return engine.live.loras if engine else ()


def _engine_of(model: ModelPatcher) -> LiveEngine | None:
    return model.get_attachment(_KEY)


def _fitted(live: LiveLoRA, model: ModelPatcher) -> LiveLoRA:
    if live.fit is not None:
        return live
    fit = fitting(live.lora, model)
    return replace(live, lora=fit.lora, fit=fit)


class LiveEngine:
    """All live LoRAs of one MODEL and of its clones. What belongs to one sampling is in its `SamplingRun`."""

    def __init__(self, live: LiveSet) -> None:
        self.live = live
        self.run: SamplingRun | None = None
        self._models: weakref.WeakSet[BaseModel] = weakref.WeakSet()  # of the patchers that carry this engine
        self._guest: contextlib.ExitStack | None = None
        self._told_of_compile = False

    def wrappers(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        return (
            (WrappersMP.OUTER_SAMPLE, self._sample),
            (WrappersMP.PREPARE_SAMPLING, self._prepare),
            (WrappersMP.CALC_COND_BATCH, self._conds),
            (WrappersMP.APPLY_MODEL, self._forward),
        )

    def callbacks(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        return (
            (CallbacksMP.ON_CLONE, lambda _, clone: self.adopt(clone)),
            (CallbacksMP.ON_PRE_RUN, self._pre_run),
            (CallbacksMP.ON_CLEANUP, self._cleanup),
        )

    def adopt(self, patcher: ModelPatcher) -> None:
        """Act in the forwards of this patcher's model, which is another one on another device."""
        self._models.add(patcher.model)
        _refuse_reading_weights(patcher)

    def _sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        patcher: ModelPatcher = guider.model_patcher
        for live in self.live.loras:
            check_mask_fits(live.mask, noise.shape)
        if is_compiled(patcher) and not self._told_of_compile:
            self._told_of_compile = True
            logging.warning(
                "i2L: this model runs uncompiled while live LoRAs act on it; merged ones do compile"
            )
        _innermost(guider.model_options)
        live, engines = self._with_negative_clone(guider)
        with contextlib.ExitStack() as scope:
            run = scope.enter_context(self._begin(live, read_conds(guider.conds), patcher, noise.shape))
            for engine in engines:
                engine.run, outer = run, engine.run
                scope.callback(setattr, engine, "run", outer)
            return executor(noise, *args, **kwargs)

    def _with_negative_clone(self, guider: Any) -> tuple[LiveSet, list[LiveEngine]]:
        """The live LoRAs of a sampling, and the engines beside this one that take part.

        Core's Dual Model guider runs its negative side on a model of its own. Where that is a clone of this one, one
        network serves both, and only the branch tells whose forward it is.
        """
        other = getattr(guider, "uncond_model_patcher", None)
        if not isinstance(other, ModelPatcher) or other.model not in self._models:
            return self.live, []
        engine = _engine_of(other)
        if engine is self:
            return self.live, []
        sides = ((self.live, Branch.POSITIVE), (engine.live if engine else LiveSet((), ()), Branch.NEGATIVE))
        kept = [
            (replace(live, branch=branch), layers)
            for part, branch in sides
            for live, layers in zip(part.loras, part.layers, strict=True)
            if live.branch in (None, branch)
        ]
        together = LiveSet(tuple(live for live, _ in kept), tuple(layers for _, layers in kept))
        return together, [engine] if engine else []

    @contextlib.contextmanager
    def _begin(
        self,
        live: LiveSet,
        chunk_of: ChunkOfUuid,
        patcher: ModelPatcher,
        latent: Sequence[int] | None,
        guest: bool = False,
    ) -> Iterator[SamplingRun]:
        """Within it there is a run, and forwards that bypass our wrappers are found at the network itself."""
        model = patcher.model
        layers = layers_of(network_of(model), live)
        run = SamplingRun(live, chunk_of, patcher.get_model_object("model_sampling"), latent, layers)
        outer, self.run = self.run, run
        watch = _Watch(model, run, self._cleanup if guest else None)
        try:
            yield run
        finally:
            watch.remove()
            run.close()
            self.run = outer

    def _prepare(self, executor: Any, model: ModelPatcher, shape: Any, conds: Any, *args: Any, **kwargs: Any):
        prepared = executor(model, shape, conds, *args, **kwargs)
        # ComfyUI made room without knowing of the LoRAs; make more, but not at the cost of what this run uses
        used = [model, *prepared[2]]
        keep = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model in used]
        needed, _ = comfy.sampler_helpers.estimate_memory(model, shape, conds)
        comfy.model_management.free_memory(needed + self.live.nbytes, model.load_device, keep_loaded=keep)
        return prepared

    def _pre_run(self, patcher: ModelPatcher) -> None:
        """Begin a guest's run: core's Dual Model guider runs its negative model without that model's wrappers."""
        if self.run is not None:
            return
        self._cleanup(patcher)
        self._guest = contextlib.ExitStack()
        self._guest.enter_context(self._begin(self.live, {}, patcher, None, guest=True))

    def _cleanup(self, patcher: ModelPatcher | None = None) -> None:
        if self._guest is not None:
            guest, self._guest = self._guest, None
            guest.close()

    def _conds(
        self,
        executor: Any,
        model: BaseModel,
        conds: list[Any],
        x: Tensor,
        timestep: Tensor,
        options: dict[str, Any],
    ):
        run = self.run
        if run is None or model not in self._models:
            return executor(model, conds, x, timestep, options)
        retained = getattr(options.get("context_handler"), "latent_retain_index_list", ())
        with run.cond_batch(conds, x, retained) as batch:
            if run.differs_by_row:
                options = {**options, _WRAPPER: _recorded(options.get(_WRAPPER), batch)}
            if not self._must_split(conds):
                return executor(model, conds, x, timestep, options)
            alone = ([cond if i == k else None for i, cond in enumerate(conds)] for k in range(len(conds)))
            return [executor(model, part, x, timestep, options)[k] for k, part in enumerate(alone)]

    def _must_split(self, conds: list[Any]) -> bool:
        """HiDream-O1 sees reference pictures once for all rows; a LoRA on its vision layers needs rows apart."""
        shared = tuple(start for one in ARCHITECTURES for start in one.shared_rows)
        if not any(target.weight.startswith(shared) for target in self.live.targets):
            return False
        return any("reference_latents" in entry for cond in conds if cond for entry in cond)

    def _forward(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        model: BaseModel = executor.class_obj
        if model not in self._models:  # another model with our options: each acts on its own
            return executor(x, *args, **kwargs)
        arguments = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        run = self.run or SamplingRun(self.live, {}, model.model_sampling, None)
        try:
            options = arguments.get("transformer_options", {})
            return run.forward(model, options, x, arguments, lambda: executor(x, *args, **kwargs))
        finally:
            if run is not self.run:  # called by a sampler without a guider
                run.close()


class _Watch:
    """Finds forwards of a network that reach it without our wrappers: a guest's, and those of nodes that call it."""

    def __init__(self, model: BaseModel, run: SamplingRun, end_guest: Callable[[], None] | None) -> None:
        self._model, self._run, self._end_guest = weakref.ref(model), run, end_guest
        self._scopes: list[contextlib.ExitStack] = []
        network = network_of(model)
        self._handles = [network.register_forward_pre_hook(self._enter, with_kwargs=True)]
        self._handles.append(network.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model, scope = self._model(), contextlib.ExitStack()
        self._scopes.append(scope)
        options = kwargs.get("transformer_options", {})
        if model is None or self._run.is_inside(network) or not self._is_ours(model):
            return
        hooks = scope.enter_context(
            self._run.acting(model, options, args[0] if args else kwargs["x"], kwargs)
        )
        scope.callback(hooks.refuse_passed_by)

    def _leave(self, network: Any, args: Any, out: Any) -> None:
        if self._scopes:
            self._scopes.pop().close()

    def _is_ours(self, model: BaseModel) -> bool:
        """Whether the sampling under way is that of a patcher of this run, not of a clone without our LoRAs."""
        patcher = model.current_patcher
        engine = _engine_of(patcher) if patcher is not None else None
        if engine is not None and engine.run is self._run:
            return True
        if self._end_guest is not None:
            self._end_guest()  # also where a node has forgotten the guest: it troubles one sampling at most
            raise I2LError(
                "a live LoRA on the negative model of a guider for two models (Dual Model) needs a model of its own, "
                "not a clone of the positive one: use Asymmetric CFG with one model, or load the model a second time"
            )
        return False


def _innermost(model_options: dict[str, Any]) -> None:
    """Put our wrapper of a sampling's forwards behind those of other nodes, so that it sees what they made of them."""
    wrappers = (
        model_options.get("transformer_options", {}).get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    )
    if _KEY in wrappers:
        wrappers[_KEY] = wrappers.pop(_KEY)


def _recorded(wrapper: Callable[..., Any] | None, batch: CondBatch) -> Callable[..., Any]:
    """A node's function around the model, or none, which sees what it always does; what goes into it is kept."""

    def call(apply_model: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        batch.reference.tensors = {
            name: value
            for name, value in arguments["c"].items()
            if isinstance(value, Tensor) and value.ndim in (2, 3)  # text, not pictures
        }
        try:
            if wrapper is not None:
                return wrapper(apply_model, arguments)
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            batch.reference.tensors = None

    return call


def _refuse_reading_weights(patcher: ModelPatcher) -> None:
    """Have a patcher refuse to give its weights away to be saved or merged, since live LoRAs are not in them.

    ComfyUI offers no callback there, so the two methods are replaced on this patcher alone; clones are `adopt`ed.
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise I2LError(
            "live LoRAs are not in the weights of this MODEL, so they cannot be saved or merged with it: use Apply "
            "Predicted LoRA in mode merged for that (Asymmetric CFG and Style Region act only while a sampler runs)"
        )

    kind, this = type(patcher), weakref.ref(patcher)  # not the patcher, which would keep itself alive

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        own = this()
        if filter_prefix is not None or own is None:
            refuse()
        return kind.get_key_patches(own)  # without a prefix: for hooks, while sampling

    patcher.state_dict_for_saving = refuse  # type: ignore[method-assign]
    patcher.get_key_patches = get_key_patches  # type: ignore[method-assign]
