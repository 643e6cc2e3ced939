"""The symbols of ComfyUI that the pack uses. They are checked once at import, and missing ones are named.

`NAMES`: module -> what is taken from it. `MEMBERS`: class -> its methods and attributes that are used on its objects.
A test holds `NAMES` to the source of the pack. Add what you use here.
"""

from __future__ import annotations

import importlib
import operator
import sys

from ..checks import listed
from ..errors import I2LError

OLDEST = (0, 24, 0)  # as in pyproject.toml: the oldest ComfyUI that the tests pass on

NAMES: dict[str, tuple[str, ...]] = {
    "comfy.hooks": (
        "EnumHookScope",
        "EnumHookScope.HookedOnly",
        "HookGroup",
        "TransformerOptionsHook",
        "set_hooks_for_conditioning",
    ),
    "comfy.latent_formats": ("Flux",),
    "comfy.ldm.flux.model": ("Flux",),
    "comfy.lora": (
        "load_lora",
        "model_lora_keys_unet",
    ),
    "comfy.lora_convert": ("convert_lora",),
    "comfy.model_base": (
        "BaseModel",
        "Flux",
    ),
    "comfy.model_management": (
        "OOM_EXCEPTION",
        "current_loaded_models",
        "free_memory",
        "get_free_memory",
        "get_torch_device",
        "get_total_memory",
        "in_training",
        "intermediate_device",
        "is_device_cpu",
        "load_models_gpu",
        "should_use_bf16",
        "soft_empty_cache",
        "throw_exception_if_processing_interrupted",
        "unet_dtype",
        "unet_manual_cast",
        "unet_offload_device",
        "unload_all_models",
        "unload_model_and_clones",
        "vae_device",
        "vae_offload_device",
    ),
    "comfy.model_patcher": (
        "CoreModelPatcher",
        "ModelPatcher",
    ),
    "comfy.model_sampling": ("CONST",),
    "comfy.ops": ("manual_cast",),
    "comfy.patcher_extension": (
        "CallbacksMP",
        "CallbacksMP.ON_CLEANUP",
        "CallbacksMP.ON_CLONE",
        "CallbacksMP.ON_PRE_RUN",
        "WrappersMP",
        "WrappersMP.APPLY_MODEL",
        "WrappersMP.CALC_COND_BATCH",
        "WrappersMP.DIFFUSION_MODEL",
        "WrappersMP.OUTER_SAMPLE",
        "WrappersMP.PREPARE_SAMPLING",
    ),
    "comfy.sampler_helpers": (
        "convert_cond",
        "estimate_memory",
    ),
    "comfy.samplers": (
        "CFGGuider",
        "cond_cat",
        "encode_model_conds",
    ),
    "comfy.sd": (
        "CLIP",
        "CLIPType",
        "CLIPType.__members__",
        "VAE",
        "load_clip",
        "load_diffusion_model",
    ),
    "comfy.sd1_clip": (
        "SD1ClipModel",
        "SD1Tokenizer",
        "SDClipModel",
        "escape_important",
        "token_weights",
        "unescape_important",
    ),
    "comfy.supported_models": (
        "Flux2",
        "ZImage",
    ),
    "comfy.supported_models_base": (
        "BASE",
        "ClipTarget",
    ),
    "comfy.text_encoders.qwen_image": ("QwenImageTokenizer",),
    "comfy.text_encoders.sd3_clip": ("T5XXLTokenizer",),
    "comfy.text_encoders.t5": ("T5",),
    "comfy.utils": (
        "ProgressBar",
        "load_torch_file",
        "weight_dtype",
    ),
    "comfy.weight_adapter": ("WeightAdapterBase",),
    "comfy.weight_adapter.lora": ("LoRAAdapter",),
    "comfy_api.latest": (
        "ComfyAPI",
        "ComfyExtension",
        "io",
        "io.Autogrow",
        "io.Autogrow.Input",
        "io.Autogrow.TemplatePrefix",
        "io.Boolean",
        "io.Boolean.Input",
        "io.Clip",
        "io.Clip.Input",
        "io.Clip.Output",
        "io.Combo",
        "io.Combo.Input",
        "io.ComfyNode",
        "io.Conditioning",
        "io.Conditioning.Input",
        "io.Conditioning.Output",
        "io.Custom",
        "io.DynamicCombo",
        "io.DynamicCombo.Input",
        "io.DynamicCombo.Option",
        "io.Float",
        "io.Float.Input",
        "io.Guider",
        "io.Guider.Output",
        "io.Hidden",
        "io.Hidden.dynprompt",
        "io.Image",
        "io.Image.Input",
        "io.Image.Output",
        "io.Input",
        "io.Int",
        "io.Int.Input",
        "io.Latent",
        "io.Latent.Input",
        "io.Latent.Output",
        "io.Mask",
        "io.Mask.Input",
        "io.Model",
        "io.Model.Input",
        "io.Model.Output",
        "io.MultiType",
        "io.MultiType.Input",
        "io.NodeOutput",
        "io.NodeReplace",
        "io.NumberDisplay",
        "io.NumberDisplay.slider",
        "io.Output",
        "io.Schema",
        "io.String",
        "io.String.Input",
        "io.String.Output",
        "io.Vae",
        "io.Vae.Input",
        "io.Vae.Output",
        "ui",
        "ui.PreviewImage",
        "ui.PreviewText",
    ),
    "comfy_api.torch_helpers.torch_compile": ("COMPILE_KEY",),
    "comfy_execution.graph_utils": ("ExecutionBlocker",),
    "comfy_execution.utils": ("get_executing_context",),
    "folder_paths": (
        "add_model_folder_path",
        "folder_names_and_paths",
        "get_filename_list",
        "get_folder_paths",
        "get_full_path",
        "get_input_directory",
        "models_dir",
        "recursive_search",
    ),
}


MEMBERS: dict[str, tuple[str, ...]] = {
    "comfy.model_patcher.ModelPatcher": (
        "add_callback_with_key", "add_patches", "add_wrapper_with_key", "cached_patcher_init", "clone",
        "get_attachment", "get_key_patches", "get_model_object", "get_wrappers", "is_dynamic", "load_device", "model",
        "model_patches_call_function", "model_size", "object_patches", "patches_uuid", "remove_callbacks_with_key",
        "remove_wrappers_with_key", "set_attachments",
    ),
    "comfy.samplers.CFGGuider": ("model_patcher", "set_cfg", "set_conds"),
    "comfy.model_base.BaseModel": (
        "apply_model", "current_patcher", "extra_conds", "get_dtype_inference", "process_latent_in",
        "process_latent_out", "state_dict_for_saving",
    ),
    "comfy.sd.CLIP": (
        "clone", "encode_from_tokens", "encode_from_tokens_scheduled", "layer_idx", "patcher", "tokenize",
    ),
    "comfy.sd.VAE": ("decode", "encode", "first_stage_model", "patcher"),
    "comfy.patcher_extension.WrapperExecutor": ("class_obj",),
}  # fmt: skip


def check_host() -> None:
    """Raise I2LError when this ComfyUI is too old, or lacks something of `NAMES` or `MEMBERS`."""
    version = _version()
    if version and _numbers(version) < OLDEST:
        raise I2LError(
            f"ComfyUI {version} is too old for ComfyUI-i2L, which needs {'.'.join(map(str, OLDEST))} or newer; update "
            "ComfyUI"
        )
    lacking = [name for module, names in NAMES.items() for name in _lacking(module, names)]
    lacking += [f"{kind}.{name}" for kind, names in MEMBERS.items() for name in _unknown(kind, names)]
    if lacking:
        raise I2LError(
            f"ComfyUI {version or 'of unknown version'} has no {listed(lacking)}, which ComfyUI-i2L uses; update "
            "ComfyUI-i2L, or use the newest ComfyUI that its README names"
        )


def is_here() -> bool:
    """Whether the host has been imported: commands import parts of the pack before they start it."""
    return "comfy.model_management" in sys.modules


def _version() -> str:
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:3])


def _lacking(module: str, names: tuple[str, ...]) -> list[str]:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return [module]
    return [f"{module}.{name}" for name in names if not _has(found, name)]


def _has(owner: object, name: str) -> bool:
    try:
        operator.attrgetter(name)(owner)
    except AttributeError:
        return False
    return True


def _unknown(kind: str, names: tuple[str, ...]) -> list[str]:
    """Members that neither the class has nor its constructors set."""
    module, _, name = kind.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if cls is None:
        return []  # said already
    made = {name for one in cls.__mro__ if "__init__" in vars(one) for name in _stored(vars(one)["__init__"])}
    return [name for name in names if not hasattr(cls, name) and name not in made]


def _stored(function: object) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()
