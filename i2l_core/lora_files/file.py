"""LoRA files: safetensors that ComfyUI's own loaders and other tools read, and theirs, read here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from ..checks import listed
from ..errors import I2LError, reading
from ..files.atomic import write_new
from ..files.safetensors import check_names, read_tensor
from ..lora import LoRA
from .keys import KeyFormat
from .metadata import METADATA_KEY, about, for_managers, read_about, read_scale
from .tensors import check_is_for, check_keys, from_state_dict, to_state_dict

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def load(path: str | Path, base_model: str = "") -> LoRA:
    """Read a LoRA file of any key format. `base_model`: what it is for, where names and sizes may not tell.

    Alpha is that of its tensors, else of its header (diffusers), else of the adapter_config.json beside an
    adapter_model.safetensors (PEFT).
    Raises I2LError naming the file when it is damaged, not finite, no LoRA, or for another base model than it
    says itself or its layers fit.
    """
    path = Path(path)
    with reading(path.name, "expected a LoRA file, and it cannot be read", "download or save it again"):
        return _load(path, base_model)


def _load(path: Path, base_model: str) -> LoRA:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            _check_names(path)
            header = file.metadata() or {}
            said = read_about(header, path.name)
            check_keys(file.keys(), path.name)  # the tensors of another kind of file are not read
            tensors = {key: read_tensor(file, key) for key in file.keys()}
    except UnicodeError as error:  # of the path; the library has names as UTF-8
        raise I2LError(
            f"{path.name}: the path of the file is not UTF-8 ({error}); rename the file or its folder"
        ) from error
    except (SafetensorError, OSError) as error:
        raise I2LError(
            f"{path.name} is not a whole safetensors file: {error}; download or save it again"
        ) from error
    made_for = said.pop("base_model", "")
    if base_model and made_for and made_for != base_model:
        raise I2LError(f"{path.name} is for {made_for}, not for {base_model}; choose auto or {made_for}")
    if base_model and not made_for:
        check_is_for(tensors, base_model, path.name)
    scale = read_scale(header, _peft_config(path), path.name)
    return from_state_dict(tensors, made_for or base_model, source=path.name, scale=scale, **said)


def _check_names(path: Path) -> None:
    try:
        check_names(path)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error


def _peft_config(path: Path) -> str:
    """The text of the file in which PEFT and diffusion-pipe say alpha and rank, or nothing."""
    beside = path.with_name(_PEFT_CONFIG)
    if path.name != _PEFT_FILE or not beside.is_file():
        return ""
    try:
        return beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise I2LError(
            f"{path.name}: {_PEFT_CONFIG} beside it cannot be read: {error}; copy it again"
        ) from error


def save(
    lora: LoRA, path: str | Path, metadata: Mapping[str, str] | None = None, key_format: KeyFormat = "ComfyUI"
) -> Path:
    """Write a LoRA file at `path`, or under the next free number when that exists; return where it is.

    `metadata`: more entries for the file's header; they win over ours of the same name, except for "i2l".
    Raises I2LError when the LoRA has row targets or is not finite, or when the disk refuses. Then nothing was
    changed.
    """
    path = Path(path)
    lora.check_finite()
    tensors = to_state_dict(lora, key_format)
    header = for_managers(lora, path.stem) | dict(metadata or {}) | {METADATA_KEY: about(lora)}
    wrong = sorted(
        str(key) for key, value in header.items() if not (isinstance(key, str) and isinstance(value, str))
    )
    if wrong:
        raise I2LError(f"the metadata of a LoRA file must be text, got other values for: {listed(wrong)}")
    # file names, and names in metadata, may hold lone surrogates, which UTF-8 has not
    header = {_utf8(key): _utf8(value) for key, value in header.items()}
    if lone := [key for key in tensors if key != _utf8(key)]:
        raise I2LError(f"names of layers must be UTF-8, got {listed(lone)}; rename them, then save again")
    try:
        return write_new(path, serialize(tensors, header))
    except (OSError, ValueError) as error:  # ValueError: of a path with NUL
        raise I2LError(
            f"cannot save {path}: {error}. Nothing was changed; check the folder and its space"
        ) from error


def _utf8(text: str) -> str:
    """With lone surrogates as escapes, which JSON reads back as they were."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
