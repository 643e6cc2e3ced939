"""Messages quote names from files: whatever these hold, a message is one readable line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError, one_line, reading


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("风格 / naïve – 🎨", "风格 / naïve – 🎨"),
    ],
)
def test_names_are_escaped_where_they_would_not_show(name: str, shown: str):
    assert str(I2LError(f"{name}: expected a LoRA")) == f"{shown}: expected a LoRA"


def test_long_messages_keep_their_beginning_and_the_cure():
    text = str(I2LError("x.safetensors: " + "k" * 140_000 + "; download it again"))
    assert text.startswith("x.safetensors: kkk")
    assert text.endswith("kkk; download it again")
    assert len(text) < 2010


@given(st.text(st.characters(codec=None), max_size=300))
def test_every_text_becomes_one_line_that_can_be_written(text: str):
    line = one_line(text)
    line.encode()
    assert len(line.splitlines()) <= 1
    assert all(char.isprintable() or char.isspace() for char in line)


def test_what_libraries_raise_becomes_one_sentence_with_a_cure():
    with pytest.raises(I2LError, match=r"^a\.tar: it is damaged \(two lines\); copy it again$"):
        with reading("a.tar", "it is damaged", "copy it again"):
            raise RuntimeError("two\nlines")
    with pytest.raises(I2LError, match=r"^b: known$"), reading("a", "it is damaged", "copy it again"):
        raise I2LError("b: known")


@pytest.mark.parametrize("name", ["OutOfMemoryError", "InterruptProcessingException"])
def test_a_full_gpu_and_a_cancelled_prompt_pass_unchanged(name: str):
    error = type(name, (RuntimeError,), {})
    with pytest.raises(error), reading("a.tar", "it is damaged", "copy it again"):
        raise error
