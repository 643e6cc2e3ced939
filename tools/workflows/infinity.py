"""Workflows on the demo's Infinity: they run anywhere, without a download."""

from __future__ import annotations

from dataclasses import replace

from .graph import AMBER, BLUE, GREEN, PLAIN, POSITIVE, PURPLE, Look, Node, Socket, Workflow
from .parts import CARD, PICTURE, decoded, seed, top_of

SCALES = 7  # of the demo's Infinity
SHOWN = 280  # pixels of a picture below its decoder, in one row


def infinity_style(flow: Workflow) -> None:
    flow.group("1  A picture of the style", BLUE, PICTURE)
    reference = flow.picture("blueprint_1.png", Look("The style"))["image"]
    flow.group("2  Infinity, and its style", GREEN, 300)
    node = _demo(flow)
    style = flow.add("InfinityStyle", vae=node["vae"], image=reference)["style"]
    flow.group("3  What to draw", AMBER, 310)
    said = _prompt(flow, node["clip"], "two stars in the middle")
    flow.group("4  With the style, and without it", PURPLE, 320, 320)
    drawn = _sampled(flow, node["model"], said, 10, node["vae"], style=style)
    for row, (title, name) in enumerate((("In the style", "latent"), ("Without the style", "content"))):
        _shown(flow, drawn[name], node["vae"], Look(title, 1, top_of(row)))


def infinity_words(flow: Workflow) -> None:
    flow.group("1  Infinity, and words for the style", GREEN, 340)
    node = _demo(flow)
    words = flow.add(
        "CLIPTextEncode",
        Look("The style", height=120, colors=POSITIVE),
        clip=node["clip"],
        text="neon, pink on blue",
    )["conditioning"]
    style = flow.add("InfinityStyleFromWords", conditioning=words)["style"]
    same = seed(flow, 4)
    flow.group("2  What to draw", AMBER, 310)
    asked = [
        _prompt(flow, node["clip"], f"{words}, neon, pink on blue", f"Picture {i}")
        for i, words in enumerate(
            ("one house on the left", "two fish at the top", "one tree on the right"), 1
        )
    ]
    flow.group("3  One style in all of them", PURPLE, 290, 280, 280)
    for column, said in enumerate(asked):
        _drawn(flow, node, said, same, f"Picture {column + 1}", column, style=style)


def infinity_alpha(flow: Workflow) -> None:
    flow.group("1  A picture of the style", BLUE, PICTURE)
    reference = flow.picture("glass_4.png", Look("The style"))["image"]
    flow.group("2  Infinity, and what to draw", AMBER, 310)
    node = _demo(flow)
    said = _prompt(flow, node["clip"], "one mushroom in the middle")
    same = seed(flow, 3)
    flow.group("3  How much of the style", GREEN, 300)
    styles = [
        flow.add("InfinityStyle", Look(f"alpha {a:g}"), vae=node["vae"], image=reference, alpha=a)
        for a in (0.0, 1.0, 5.0)
    ]
    flow.group("4  The same prompt and seed", PURPLE, 290, 280, 280)
    titles = ("alpha 0: all of it", "alpha 1: as in the paper", "alpha 5: the main colours")
    for column, (title, style) in enumerate(zip(titles, styles, strict=True)):
        _drawn(flow, node, said, same, title, column, style=style["style"])


def infinity_two_prompts(flow: Workflow) -> None:
    flow.group("1  Infinity", GREEN, 300)
    node = _demo(flow)
    same = seed(flow, 14)
    flow.group("2  Layout from one prompt, details from another", AMBER, 340, 280)
    both = []
    for title, words, start, end in (
        ("Layout", "three moons on the left, watercolour, teal on yellow", 0.0, 0.45),
        ("Details", "three stars on the left, neon, pink on blue", 0.45, 1.0),
    ):
        said = _prompt(flow, node["clip"], words, title)
        look = Look(f"{title}: which scales", 1)
        ranged = flow.add("ConditioningSetTimestepRange", look, conditioning=said, start=start, end=end)
        both.append((said, ranged["conditioning"]))
    look = Look("Both", 1)
    joined = flow.add("ConditioningCombine", look, conditioning_1=both[0][1], conditioning_2=both[1][1])
    flow.group("3  One alone, the other alone, both", PURPLE, 290, 280, 280)
    each = (("Layout alone", both[0][0]), ("Details alone", both[1][0]), ("Both", joined["conditioning"]))
    for column, (title, said) in enumerate(each):
        _drawn(flow, node, said, same, title, column)


def infinity_restyle(flow: Workflow) -> None:
    flow.group("1  Your picture, and the style", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Your picture"))["image"]
    reference = flow.picture("neon_1.png", Look("The style"))["image"]
    flow.group("2  Infinity, its style, and where it starts", GREEN, 300)
    node = _demo(flow)
    style = flow.add("InfinityStyle", vae=node["vae"], image=reference)["style"]
    latent = flow.add("VAEEncode", pixels=scene, vae=node["vae"])["latent"]
    start = flow.add("InfinityStartFromPicture", Look(room=40), latent=latent, scales_kept=SCALES)["start"]
    flow.group("3  What it shows", AMBER, 310)
    said = _prompt(flow, node["clip"], "two houses in the middle")
    flow.group("4  Your picture in the style", PURPLE, 320, 320)
    drawn = _sampled(flow, node["model"], said, 6, node["vae"], style=style, start=start)
    for row, (title, name) in enumerate((("In the style", "latent"), ("As Infinity sees it", "content"))):
        _shown(flow, drawn[name], node["vae"], Look(title, 1, top_of(row)))


def _demo(flow: Workflow) -> Node:
    return flow.add("LoadInfinityDemo", Look(height=86))


def _prompt(
    flow: Workflow, clip: Socket, words: str, title: str = "Draw this", y: float | None = None
) -> Socket:
    look = Look(title, y=y, height=120, colors=POSITIVE)
    return flow.add("CLIPTextEncode", look, clip=clip, text=words)["conditioning"]


def _sampled(
    flow: Workflow,
    model: Socket,
    positive: Socket,
    seed: Socket | int,
    vae: Socket,
    look: Look = PLAIN,
    **more: Socket,
) -> Node:
    return flow.add(
        "InfinitySampler",
        replace(look, room=CARD),
        model=model,
        positive=positive,
        seed=seed,
        preview_vae=vae,
        **more,
    )


def _drawn(
    flow: Workflow, node: Node, said: Socket, same: Socket, title: str, column: int, **more: Socket
) -> None:
    """A picture and what shows it, below each other."""
    look = Look(title, column)
    drawn = _sampled(flow, node["model"], said, same, node["vae"], look, **more)
    _shown(flow, drawn["latent"], node["vae"], look)


def _shown(flow: Workflow, latent: Socket, vae: Socket, look: Look) -> None:
    picture = decoded(flow, latent, vae, look)
    flow.add(
        "SaveImage", replace(look, y=None, height=SHOWN), images=picture, filename_prefix=f"i2l/{flow.name}"
    )


INFINITY = {
    "infinity_style": infinity_style,
    "infinity_words": infinity_words,
    "infinity_alpha": infinity_alpha,
    "infinity_two_prompts": infinity_two_prompts,
    "infinity_restyle": infinity_restyle,
}
