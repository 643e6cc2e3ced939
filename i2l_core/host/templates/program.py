"""A template that runs its own program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...checks import listed
from ...errors import I2LError
from ...kv_caches.cache import KVCache
from ...lora import LoRA
from ...lora_files.tensors import from_state_dict
from ...predictors.base import Runtime
from ...predictors.template.inputs import Input, described, program_inputs
from ...predictors.template.outputs import Outputs
from ...predictors.template.pipe import Pipe
from ...predictors.template.run import LoadedTemplate, PipelineNeeded
from .base import Made, Progress, Template
from .pipeline import pipe_of

_ROOM = 1 << 30  # bytes beside the weights: nobody knows what a program needs


@dataclass(frozen=True, eq=False)
class ProgramTemplate(Template):
    """`held`: the runtime's handle on its network; None: the network is not a module, and manages its memory itself."""

    loaded: LoadedTemplate
    runtime: Runtime
    held: Any = None

    @property
    def name(self) -> str:
        return self.loaded.template.name

    def describe(self) -> str:
        names = listed(self.loaded.input_names())
        return f"{self.loaded.template.describe()}\nits program takes {names or 'no inputs by name'}"

    def get_models(self) -> list[Any]:
        return [] if self.held is None else [self.held]

    def check(self, given: Input) -> str:
        program_inputs(self.name, given, self.loaded.input_names())
        return described(self.name, given)

    def make(self, given: Input, progress: Progress) -> Made:
        positive, negative = program_inputs(self.name, given, self.loaded.input_names())
        pipe = pipe_of(
            self.runtime.device, self.loaded.dtype, getattr(given, "vae", None), getattr(given, "clip", None)
        )
        first = self._run(positive, pipe)
        progress(1, 2)
        second = (
            first if negative is positive else Outputs() if negative is None else self._run(negative, pipe)
        )
        progress(2, 2)
        cache = self._cache(first)
        lora = self._lora(first)
        shared = second is first
        return Made(
            cache,
            cache if shared else self._cache(second),
            lora,
            lora if shared else self._lora(second),
            first.input_image,
            first.inpaint_mask,
            f"not supported, left out: {listed(first.others)}" if first.others else "",
        )

    def _run(self, inputs: dict[str, Any], pipe: Pipe) -> Outputs:
        self.runtime.check_cancelled()
        if self.held is not None:
            self.runtime.load(self.held, _ROOM, whole=True)
        try:
            return self.loaded.run(inputs, pipe)
        except PipelineNeeded as error:
            cure = f": connect a {error.socket} to the node that gives its inputs" if error.socket else ""
            raise I2LError(f"{error}{cure}") from error

    def _cache(self, outputs: Outputs) -> KVCache | None:
        return None if outputs.kv_cache is None else KVCache(outputs.kv_cache, self.name)

    def _lora(self, outputs: Outputs) -> LoRA | None:
        if outputs.lora is None:
            return None
        source = f"the lora of the Diffusion Template {self.name}"
        return from_state_dict(outputs.lora, predictor=self.name, source=source)
