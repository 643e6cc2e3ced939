"""A CLIP in small, with random weights, as transformers saves it: 32 x 32 pixels, 16 tokens, one token a letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIDE, POSITIONS, WIDTH = 32, 16, 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [*LETTERS, *(f"{x}</w>" for x in LETTERS), BEGIN, END]


def tiny_clip(act: str = "gelu", seed: int = 0) -> Any:
    """Every output depends on every input."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    ends = {"bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1}
    text = {"max_position_embeddings": POSITIONS, "vocab_size": len(VOCABULARY), "hidden_act": act, **ends}
    vision = {"image_size": SIDE, "patch_size": 8, "hidden_act": act}
    model = CLIPModel(
        CLIPConfig(
            projection_dim=WIDTH,
            text_config=sizes | text | {"pad_token_id": ends["eos_token_id"]},
            vision_config=sizes | vision,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def tiny_processor(folder: Path) -> Any:
    """`folder`: for the vocabulary, which the tokenizer reads from files."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(VOCABULARY)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = POSITIONS
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPProcessor(image_processor=CLIPImageProcessor(**size), tokenizer=tokenizer)


def save_clip(folder: Path, act: str = "gelu", seed: int = 0) -> Any:
    """The model that the folder holds."""
    model = tiny_clip(act, seed)
    tiny_processor(folder).save_pretrained(folder)
    model.save_pretrained(folder)
    return model
