"""Drawing a picture scale by scale, and beside it the same picture in a style.

After each scale its codes are added to a sum; the next scale is predicted from that sum. The content path is an
ordinary picture. The styled path is the same until its feature is blended with a style (blend.py); then both go on, and
while the structure is kept, the styled path attends as the content path does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import I2LError
from .bits import as_tokens, check_bits, codes, resized
from .blend import BlendSettings, blended
from .config import InfinityConfig
from .draw import Draws, drawn_bits
from .memory import CONTENT, STYLED, Extent, Memory, Scratch
from .rope import rotation
from .scales import Scales
from .transformer import Infinity, Prompt, for_rows

PerScale = float | Sequence[float]


@dataclass(frozen=True)
class Sampling:
    """`guidance` and `temperature`: one number, or one a scale. `guided_block`: guidance blends the hidden states after
    this block (from 0) instead of the logits."""

    seed: int = 0
    guidance: PerScale = 3.0
    temperature: PerScale = 0.5
    top_p: float = 0.97
    guided_block: int | None = None


@dataclass(frozen=True)
class Styling:
    """What makes the styled path differ.

    `part`: what to blend in (blend.style_part), None for nothing. `structure`: the first and the last scale, from 1, at
    which the styled path attends as the content path does, None for nowhere. `shared`: both paths draw with the same
    random numbers. `content`: draw the content path to its end even where the styled one does without.
    """

    part: Tensor | None
    settings: BlendSettings = field(default_factory=BlendSettings)
    structure: tuple[int, int] | None = None
    shared: bool = True
    content: bool = False


@dataclass(frozen=True)
class Drawing:
    """What to draw: states of texts (1 or rows, L, text width), one or one a scale; `negatives` None: the learned empty
    prompt. `kept`: bits that the content path takes over at the first scales, each (1 or rows, n, token bits); the
    styled path takes them as long as the two are one."""

    scales: Scales
    texts: Sequence[Tensor]
    negatives: Sequence[Tensor] | None = None
    rows: int = 1
    kept: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Step:
    """After scale `index` (from 0): sums of codes (rows, d, H, W) float32, of a path that is not drawn or has ended
    None. `logits`: (rows or 2 rows, n, token bits, 2), what the bits were drawn from. `bits`: per drawn row."""

    index: int
    content: Tensor | None
    styled: Tensor | None
    logits: Tensor
    bits: Tensor


def extent_of(scales: Scales, rows: int, styling: Styling | None) -> Extent:
    """What a run keeps in memory."""
    count = len(scales.maps)
    if styling is None:
        return Extent(scales, rows, (count,), True)
    step = styling.settings.step
    first, last = styling.structure or (count + 1, 0)
    last = min(last, count)
    end = count if styling.content else max(step, last if first <= last else 0)
    # Until the blend both paths are one, if they draw alike; after it keys are alike while the structure is kept
    alike = first == 1 or (styling.shared and first <= step + 1)
    return Extent(scales, rows, (min(end, count), count), alike and last >= end)


def memory_nbytes(
    config: InfinityConfig, scales: Scales, rows: int, styling: Styling | None, guided: bool, element: int = 2
) -> int:
    """Bytes of keys and values of a run, with elements of `element` bytes."""
    extent = extent_of(scales, rows, styling)
    return (1 + guided) * extent.layers_nbytes(config, element) + extent.last_nbytes(config, element)


def run_nbytes(
    config: InfinityConfig, drawing: Drawing, sampling: Sampling, styling: Styling | None, element: int = 2
) -> int:
    """Bytes that a run has in use at most, beside the weights: keys and values, the words of the prompts, and what one
    block of the last scale computes."""
    scales, rows = drawing.scales, drawing.rows
    guided = any(g != 1 for g in per_scale("guidance", sampling.guidance, len(scales.maps)))
    texts = {id(text): text for text in (*drawing.texts, *((drawing.negatives or ()) if guided else ()))}
    lengths = [len(text) * text.shape[1] for text in texts.values()]
    if guided and drawing.negatives is None:
        lengths += {text.shape[1] for text in drawing.texts}
    words = config.depth * 2 * config.width * element * sum(lengths)
    paths = sum(end == len(scales.maps) for end in extent_of(scales, rows, styling).ends)
    # Float32: the hidden states of each side, normalised and scaled; then the two layers of the feed-forward
    each = config.width * 4 * (guided + 1 + 2) + (config.width + 2 * config.hidden) * element
    block = paths * rows * scales.counts[-1] * each
    return memory_nbytes(config, scales, rows, styling, guided, element) + words + block


@torch.inference_mode()
def draw(
    model: Infinity,
    drawing: Drawing,
    sampling: Sampling,
    styling: Styling | None = None,
    dtype: torch.dtype = torch.float32,
    after_block: Callable[[int, int], None] | None = None,
) -> Iterator[Step]:
    """Yields after each scale. `dtype`: what products are computed in. `after_block(scale, block)` may raise to stop.

    Raises I2LError for settings that do not fit the model or each other, and after the last scale if a logit was not
    finite.
    """
    run = _Run(model, drawing, sampling, styling, dtype, after_block or _nothing)
    for index in range(len(drawing.scales.maps)):
        yield run.scale(index)
    run.check_finite()


@torch.inference_mode()
def feature_of_words(
    model: Infinity,
    drawing: Drawing,
    sampling: Sampling,
    step: int,
    dtype: torch.dtype = torch.float32,
    after_block: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The feature (rows, d, H, W) after `step` scales of a picture drawn from the words of a style: what stands for a
    reference picture where there is none. Raises I2LError as `draw` does."""
    if not 1 <= step <= len(drawing.scales.maps):
        raise I2LError(
            f"expected a style scale from 1 to {len(drawing.scales.maps)}, got {step}; choose an earlier scale"
        )
    run = _Run(model, drawing, sampling, None, dtype, after_block or _nothing, step)
    for index in range(step):
        run.scale(index)
    run.check_finite()
    return run.sums[CONTENT]


def _nothing(scale: int, block: int) -> None:
    pass


class _Side:
    """The prompts of one side of the guidance, one a scale, and what is remembered of it."""

    def __init__(self, prompts: Sequence[Prompt], memory: Memory) -> None:
        self.prompts = prompts
        self.memory = memory


class _Run:
    def __init__(
        self,
        model: Infinity,
        drawing: Drawing,
        sampling: Sampling,
        styling: Styling | None,
        dtype: torch.dtype,
        after_block: Callable[[int, int], None],
        end: int | None = None,
    ) -> None:
        self.model, self.drawing, self.sampling, self.styling = model, drawing, sampling, styling
        self.dtype, self.after_block = dtype, after_block
        self.config = model.config
        self.count = len(drawing.scales.maps)
        self.cells = drawing.scales.cells(self.config.patchify)
        self.device = drawing.texts[0].device if drawing.texts else torch.device("cpu")
        self.guidance = per_scale("guidance", sampling.guidance, self.count)
        self.temperature = per_scale("temperature", sampling.temperature, self.count)
        self._check()
        whole = extent_of(drawing.scales, drawing.rows, styling)
        self.extent = whole if end is None else replace(whole, ends=(end,))
        self.sides = self._sides()
        paths = 1 if styling is None else 2
        self.draws = [Draws(sampling.seed, drawing.rows)]
        if styling is not None and not styling.shared:
            self.draws.append(Draws(sampling.seed, drawing.rows, path=STYLED))
        shape = (drawing.rows, self.config.bits, *self.cells[-1])
        self.sums = [torch.zeros(shape, device=self.device) for _ in range(paths)]
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)

    def _check(self) -> None:
        drawing, config = self.drawing, self.config
        if self.count > config.levels:
            raise I2LError(
                f"the model draws at most {config.levels} scales, got {self.count}; choose a smaller size"
            )
        check_texts("a prompt", drawing.texts, self)
        if drawing.negatives is not None:
            check_texts("a negative prompt", drawing.negatives, self)
        check_bits(drawing.kept, drawing.scales, config.token_bits)
        if any(len(bits) not in (1, drawing.rows) for bits in drawing.kept):
            raise I2LError(
                f"expected a start of 1 or {drawing.rows} pictures, got {len(drawing.kept[0])}; use one picture"
            )
        if any(not t > 0 for t in self.temperature):
            raise I2LError(f"expected a temperature above 0, got {min(self.temperature)}; 0.5 is usual")
        if not 0 < self.sampling.top_p <= 1:
            raise I2LError(f"expected top_p above 0 and up to 1, got {self.sampling.top_p}; 0.97 is usual")
        block = self.sampling.guided_block
        if block is not None and not 0 <= block < config.depth:
            raise I2LError(
                f"expected a guided block from 0 to {config.depth - 1}, got {block}; choose one of them"
            )
        if (styling := self.styling) is None:
            return
        if styling.part is not None and styling.settings.step > self.count:
            raise I2LError(
                f"expected a style scale from 1 to {self.count}, got {styling.settings.step}; choose an earlier scale"
            )
        if styling.part is not None and styling.part.shape[1:] != (config.bits, *self.cells[-1]):
            raise I2LError(
                f"expected a style of {config.bits} x {self.cells[-1][0]} x {self.cells[-1][1]}, got "
                f"{' x '.join(map(str, styling.part.shape[1:]))}; make it with this model's VAE at this size"
            )
        if styling.part is not None and len(styling.part) not in (1, drawing.rows):
            raise I2LError(
                f"expected a style for 1 or {drawing.rows} pictures, got {len(styling.part)}; use one"
            )
        if styling.structure is not None and not 1 <= styling.structure[0]:
            raise I2LError(
                f"expected the structure to be kept from scale 1 on, got {styling.structure[0]}; set 1"
            )

    def _sides(self) -> list[_Side | None]:
        texts = self.drawing.texts
        scratch = Scratch()
        prompts: dict[int, Prompt] = {}

        def side(states: Sequence[Tensor]) -> _Side:
            read = [
                prompts.get(id(t)) or prompts.setdefault(id(t), self.model.prompt(t, self.dtype))
                for t in states
            ]
            memory = Memory(self.config, self.extent, scratch, self.device, self.dtype)
            return _Side(read if len(read) > 1 else read * self.count, memory)

        if all(g == 1 for g in self.guidance):
            return [side(texts)]
        if (negatives := self.drawing.negatives) is None:
            empty = {n: self.model.empty_text(n).to(self.device) for n in {t.shape[1] for t in texts}}
            negatives = [empty[t.shape[1]] for t in texts]
        return [side(texts), side(negatives)]

    def scale(self, index: int) -> Step:
        """Draw one scale of the paths that are drawn there, and blend where that is due."""
        rows, number = self.drawing.rows, index + 1
        paths, together = self._paths(index)
        drawn = paths[:1] if together else paths
        asked = self._logits(index, paths, drawn)
        logits = self._guided(index, asked)
        self.finite &= torch.isfinite(logits).all()
        bits = self._bits(index, logits, paths, drawn)
        for path, chosen in zip(paths, bits * len(paths) if together else bits, strict=True):
            code = codes(chosen, self.drawing.scales.maps[index], self.config.patchify)
            self.sums[path] = self.sums[path] + resized(code, self.cells[-1])
        styling = self.styling
        if styling is not None and styling.part is not None and number == styling.settings.step:
            self.sums[STYLED] = blended(self.sums[STYLED], styling.part, styling.settings)
        self._drop(index)
        both = styling is not None
        return Step(
            index,
            self.sums[CONTENT] if CONTENT in paths else None,
            self.sums[STYLED] if both else None,
            logits.view(len(drawn) * rows, *logits.shape[1:]),
            torch.cat(bits),
        )

    def _paths(self, index: int) -> tuple[tuple[int, ...], bool]:
        """The paths drawn at this scale, and whether they are still one."""
        if self.styling is None:
            return (CONTENT,), False
        if index >= self.extent.ends[CONTENT]:
            return (STYLED,), False
        return (CONTENT, STYLED), self.styling.shared and index < self.styling.settings.step

    def _logits(self, index: int, paths: Sequence[int], drawn: Sequence[int]) -> list[tuple[Tensor, Prompt]]:
        """The hidden states of each side after the blocks, and its prompt."""
        sides = [side for side in self.sides if side is not None]
        prompts = [side.prompts[index] for side in sides]
        states = [self._first(index, prompt, drawn) for prompt in prompts]
        turn = rotation(self.drawing.scales, index, self.config.head_width, self.device)
        guidance, guided_block = self.guidance[index], self.sampling.guided_block
        for number, block in enumerate(self.model.each_block()):
            for i, (side, prompt) in enumerate(zip(sides, prompts, strict=True)):
                states[i] = block(
                    states[i],
                    for_rows(prompt.six, len(states[i])),
                    prompt.words[number],
                    self.dtype,
                    turn=turn,
                    memory=side.memory,
                    layer=number,
                    index=index,
                    paths=paths,
                    rows=self.drawing.rows,
                    corrected=self._corrected(index, drawn),
                )
            if number == guided_block and guidance != 1:
                mixed = guidance * states[0] + (1 - guidance) * states[1]
                states = [mixed, mixed]
            self.after_block(index, number)
        return list(zip(states, prompts, strict=True))

    def _first(self, index: int, prompt: Prompt, drawn: Sequence[int]) -> Tensor:
        if index == 0:
            start = self.model.start(prompt)
            return start.repeat(len(drawn) * self.drawing.rows // len(start), 1, 1)
        latents = torch.cat([self.sums[path] for path in drawn])
        tokens = as_tokens(resized(latents, self.cells[index]), self.config.patchify)
        return self.model.embed(tokens, index, self.dtype)

    def _corrected(self, index: int, drawn: Sequence[int]) -> bool:
        if len(drawn) < 2 or self.styling is None or self.styling.structure is None:
            return False
        first, last = self.styling.structure
        return first <= index + 1 <= last

    def _guided(self, index: int, asked: list[tuple[Tensor, Prompt]]) -> Tensor:
        guidance, temperature = self.guidance[index], self.temperature[index]
        logits = self.model.logits(*asked[0]) / temperature
        if guidance == 1 or self.sampling.guided_block is not None:
            return logits
        return guidance * logits + (1 - guidance) * (self.model.logits(*asked[1]) / temperature)

    def _bits(self, index: int, logits: Tensor, paths: Sequence[int], drawn: Sequence[int]) -> list[Tensor]:
        """Bits of each drawn path. Random numbers are taken whether they are needed or not, so that a kept start does
        not change what is drawn after it."""
        rows, kept = self.drawing.rows, self.drawing.kept
        numbers = [draws.next(*logits.shape[1:3], device=self.device) for draws in self.draws]
        bits = []
        for path, of_path in zip(drawn, logits.split(rows), strict=True):
            before = self.styling is None or index < self.styling.settings.step
            if index < len(kept) and (path == CONTENT or before):
                bits.append(kept[index].to(self.device).expand(rows, -1, -1) > 0)
            else:
                own = numbers[min(path, len(numbers) - 1)]
                bits.append(drawn_bits(of_path, own, self.sampling.top_p))
        return bits

    def _drop(self, index: int) -> None:
        """Forget the other side of the guidance once no later scale asks for it."""
        if len(self.sides) > 1 and all(g == 1 for g in self.guidance[index + 1 :]):
            self.sides[1:] = []

    def check_finite(self) -> None:
        if not self.finite:
            raise I2LError(
                "the model gave logits that are not finite, so the picture would be noise; "
                "load it again in another precision, or lower the guidance"
            )


def per_scale(name: str, value: PerScale, count: int) -> list[float]:
    """One number for each scale. Raises I2LError for another count, or a number that is not finite."""
    values = [float(value)] * count if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != count:
        raise I2LError(f"expected one {name} or {count}, one for each scale, got {len(values)}; give one")
    if not all(abs(v) < 1e6 for v in values):
        raise I2LError(f"expected a {name} of finite numbers, got {values}; 3 is usual for guidance")
    return values


def check_texts(name: str, texts: Sequence[Tensor], run: _Run) -> None:
    """Raise I2LError unless they are one text, or one for each scale, of the model's width and length."""
    width, rows = run.config.text_width, run.drawing.rows
    if len(texts) not in (1, run.count):
        raise I2LError(f"expected {name}, or {run.count}, one for each scale, got {len(texts)}; give one")
    for text in texts:
        if text.ndim != 3 or text.shape[2] != width:
            raise I2LError(
                f"expected {name} of width {width}, got {tuple(text.shape)}; use the text encoder of Infinity "
                "(flan-t5-xl gives 2048, T5-XXL 4096)"
            )
        if not 1 <= text.shape[1] <= run.config.text_length:
            raise I2LError(
                f"expected {name} of 1 to {run.config.text_length} tokens, got {text.shape[1]}; shorten it"
            )
        if len(text) not in (1, rows):
            raise I2LError(
                f"expected {name} for 1 or {rows} pictures, got {len(text)}; set the batch size to it"
            )
