"""Data sets of trainings: their formats, what is refused, and how references and targets are paired and dealt."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tiny_training import SIDE, STYLES, picture, rows, write_folder, write_shards, write_world

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.train.config import DataTable, PairingTable
from i2l.i2l_core.train.data.batches import BatchSplit, read, to_device
from i2l.i2l_core.train.data.cache import LATENTS, TEXTS, EncodingCache
from i2l.i2l_core.train.data.data_set import (
    DataSet,
    Picture,
    Styles,
    cover,
    data_fingerprint,
    open_rgb,
    split_styles,
)
from i2l.i2l_core.train.data.encoded import EncodedData
from i2l.i2l_core.train.data.folder import Folder, open_folder
from i2l.i2l_core.train.data.pairing import Pair, TrainTarget, draw
from i2l.i2l_core.train.data.shards import open_shards
from i2l.i2l_core.train.demo_base import DemoBase
from i2l.i2l_core.train.demo_data import open_generated


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    return open_folder(write_folder(tmp_path_factory.mktemp("data") / "set"))


def by_row(data):
    return {(p.style, p.prompt): i for i, p in enumerate(data.pictures)}


def test_folder_and_shards_hold_the_same_pictures(folder, tmp_path):
    shards = open_shards(write_shards(tmp_path / "shards"))
    assert by_row(shards).keys() == by_row(folder).keys()
    for key, index in by_row(shards).items():
        one, other = shards.open(index), folder.open(by_row(folder)[key])
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert shards.latent(index) is None
    assert len({shards.version(i) for i in range(len(shards.pictures))}) == len(shards.pictures)


def test_latents_and_texts_that_the_data_brings_are_read(tmp_path):
    path = write_folder(tmp_path / "set")
    latent, text = torch.randn(16, 8, 8), torch.randn(1, 5, 7)
    save_file({"latent": latent[None]}, tmp_path / "set" / "a.safetensors")
    save_file({"cond": text}, tmp_path / "set" / "b.safetensors")
    changed = rows()
    changed[3] |= {"latent": "a.safetensors", "text": "b.safetensors"}
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    data = open_folder(path)
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as tar:
        for name, source in (("x.png", "images/0-3.png"), ("x.latent.safetensors", "a.safetensors"),
                             ("x.text.safetensors", "b.safetensors")):  # fmt: skip
            tar.add(tmp_path / "set" / source, name)
        about = b'{"style": "s", "prompt": "p", "content": "c"}'
        member = tarfile.TarInfo("x.json")
        member.size = len(about)
        tar.addfile(member, io.BytesIO(about))
    for found, index in ((data, 3), (open_shards(tmp_path), 0)):
        given_latent, given_texts = found.latent(index), found.texts(index)
        assert given_latent is not None
        assert given_texts is not None
        assert torch.equal(given_latent, latent)
        assert torch.equal(given_texts["cond"], text)
        assert np.array_equal(np.asarray(found.open(index)), np.asarray(picture(0, 3)))
    assert open_shards(tmp_path).pictures[0].content == "c"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"style": "a", "image": "b.png"}', r"rows\.jsonl line 2 lacks prompt"),
        ('{"style": "a", "image": "b", "prompt": "", "size": 3}', r"line 2 has unknown entries: size"),
        ('{"style": 3, "image": "b", "prompt": ""}', r"line 2: style must be a text, got 3"),
        ('{"style": "", "image": "b", "prompt": ""}', r"line 2: style must be a text, got ''"),
        ("[]", r"line 2 must be a JSON object, got list"),
        ("{", r"line 2 is not a JSON object"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\n" + line + "\n")
    with pytest.raises(I2LError, match=message):
        open_folder(path)


def test_data_sets_that_are_none_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for path, message in (
        ("empty.jsonl", r"empty\.jsonl has no rows"),
        ("none.jsonl", "cannot read the data set"),
    ):
        with pytest.raises(I2LError, match=message):
            open_folder(tmp_path / path)
    with pytest.raises(I2LError, match=r"there is no \.tar shard in"):
        open_shards(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(I2LError, match=r"a\.tar: it is not an uncompressed \.tar, or is damaged"):
        open_shards(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "empty.jsonl", "000001.json")
    with pytest.raises(
        I2LError, match=r"a\.tar sample 000001: expected one picture .* and one \.json, got json"
    ):
        open_shards(tmp_path)


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    write_shards(tmp_path / "shards", 1)
    data = open_shards(tmp_path / "shards")
    (shard,) = data.shards
    Path(shard).write_bytes(Path(shard).read_bytes()[:20_000])
    with pytest.raises(I2LError, match=r"sample 0000\d\d: 000\.tar ends too early; copy it again"):
        data.open(len(data.pictures) - 1)


def test_styles_of_one_content_are_refused_or_dropped_and_counted(tmp_path):
    path = write_folder(tmp_path / "set")
    more = [
        {"style": "alone", "image": "images/0-0.png", "prompt": "one star on the left"},
        {"style": "twins", "image": "images/0-0.png", "prompt": "one star on the left"},
        {"style": "twins", "image": "images/0-1.png", "prompt": "one star on the left"},
        {"style": "told", "image": "images/0-0.png", "prompt": "one star", "content": "a"},
        {"style": "told", "image": "images/0-1.png", "prompt": "one star", "content": "b"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(), *more]))
    data = open_folder(path)
    with pytest.raises(
        I2LError, match=r"2 of 11 styles have fewer than two different contents.*: alone, twins\. Add"
    ):
        split_styles(data, 0.0, "refuse")
    train, unseen, dropped = split_styles(data, 0.0, "drop")
    assert (len(train.names), unseen, dropped) == (STYLES + 1, None, 2)
    assert "told" in train.names


def test_unseen_styles_are_apart_and_stay_when_the_set_grows(folder):
    train, unseen, _ = split_styles(folder, 0.25, "refuse")
    assert unseen is not None
    assert not set(train.names) & set(unseen.names)
    assert len(train.names) + len(unseen.names) == STYLES
    more = Folder(
        folder.root,
        [*folder.pictures, *(Picture(f"more-{i // 2}", str(i), "", "") for i in range(40))],
        folder.files,
    )
    grown, apart, _ = split_styles(more, 0.25, "refuse")
    assert apart is not None
    assert set(unseen.names) <= set(apart.names)
    assert set(train.names) <= set(grown.names)


def test_the_fingerprint_of_data_sees_every_row(folder):
    pictures = list(folder.pictures)
    seen = {data_fingerprint(pictures), data_fingerprint(pictures[::-1]), data_fingerprint(pictures[1:])}
    p = pictures[0]
    seen.add(data_fingerprint([Picture(p.style, p.content, p.prompt + "!", p.name), *pictures[1:]]))
    assert len(seen) == 4


def numbered(sizes: Sequence[int], contents: int) -> DataSet:
    """A data set without pictures: so many rows of each style, every so many of the same content."""
    rows = [
        Picture(f"s{s}", f"c{n % contents}", f"prompt {s} {n}", "")
        for s, size in enumerate(sizes)
        for n in range(size)
    ]
    return Folder(Path(), rows, [])


@given(
    sizes=st.lists(st.integers(2, 7), min_size=1, max_size=5),
    contents=st.integers(2, 7),
    targets=st.integers(1, 4),
    most=st.integers(1, 6),
    gray=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_pairs_share_the_style_and_never_the_content(sizes, contents, targets, most, gray, seed):
    data = numbered(sizes, contents)
    styles, _, _ = split_styles(data, 0.0, "refuse")
    table = PairingTable(targets=targets, most_references=most, gray=gray, single=0.3, empty_prompts=0.3)
    pairs = draw(styles, table, 6, seed, 5)
    assert pairs == draw(styles, table, 6, seed, 5)
    levels = sorted(target.u for pair in pairs for target in pair.targets)
    total = 6 * targets
    assert all(i / total <= u < (i + 1) / total for i, u in enumerate(levels))  # stratified
    assert len({target.seed for pair in pairs for target in pair.targets}) == total
    for pair in pairs:
        assert 1 <= len(pair.references) <= most
        assert len(pair.targets) == targets
        assert len(set(pair.references)) == len(pair.references) or pair.gray
        for target in pair.targets:
            shown = data.pictures[target.picture]
            assert target.prompt in ("", shown.prompt)
            for i in pair.references if not pair.gray else ():
                reference = data.pictures[i]
                assert reference.style == shown.style
                assert reference.content != shown.content


def test_the_ablation_shows_the_same_content_on_both_sides():
    data = numbered([6, 8], 4)
    styles, _, _ = split_styles(data, 0.0, "refuse")
    table = PairingTable(targets=3, most_references=3, gray=0.0, same_content=0.5)
    same = 0
    for pair in (pair for step in range(50) for pair in draw(styles, table, 8, 1, step)):
        sides = pair.references, [target.picture for target in pair.targets]
        references, targets = ({data.pictures[i].content for i in side} for side in sides)
        same += targets <= references
        assert targets <= references or not targets & references
    assert same / 400 == pytest.approx(0.5, abs=0.06)


def test_shares_of_single_gray_and_empty_are_as_asked():
    data = numbered([8] * 20, 8)
    styles, _, _ = split_styles(data, 0.0, "refuse")
    table = PairingTable(targets=2, most_references=4, single=0.2, gray=0.1, empty_prompts=0.3)
    pairs = [pair for step in range(100) for pair in draw(styles, table, 20, 1, step)]
    counts = Counter(len(pair.references) for pair in pairs)
    for n in range(1, 5):
        assert counts[n] / len(pairs) == pytest.approx(0.2 * (n == 1) + 0.8 / 4, abs=0.03)
    assert sum(pair.gray for pair in pairs) / len(pairs) == pytest.approx(0.1, abs=0.02)
    empty = [target.prompt == "" for pair in pairs for target in pair.targets]
    assert sum(empty) / len(empty) == pytest.approx(0.3, abs=0.03)
    styles_of_gray = [
        len({data.pictures[t.picture].style for t in pair.targets}) for pair in pairs if pair.gray
    ]
    assert max(styles_of_gray) == 2


@given(micro=st.integers(1, 4), devices=st.integers(1, 4), rounds=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_batch_is_dealt_once_whatever_the_devices(micro, devices, rounds):
    count = micro * devices * rounds
    dealt = [
        i
        for device in range(devices)
        for turn in range(BatchSplit(count, micro, device, devices).rounds)
        for i in range(count)[BatchSplit(count, micro, device, devices).part(turn)]
    ]
    assert sorted(dealt) == list(range(count))


def test_a_batch_that_cannot_be_dealt_is_refused():
    message = r"batch 6 cannot be split over 2 devices in micro-batches of 2; choose a multiple of 4"
    with pytest.raises(I2LError, match=message):
        BatchSplit(6, 2, 0, 2)


def test_the_noisy_batch_is_the_flow_of_its_pictures(folder, tmp_path):
    world = DemoBase(write_world(tmp_path), torch.device("cpu"), False)
    encoded = EncodedData(folder, SIDE, SIDE)
    targets = (TrainTarget(1, folder.pictures[1].prompt, 0.25, 11), TrainTarget(2, "", 0.75, 12))
    batch = to_device(read([Pair((0, 3), False, targets)], encoded), world, world, torch.device("cpu"))
    clean = batch.x - batch.sigma.view(-1, 1, 1, 1) * batch.target
    for i, index in enumerate((1, 2)):
        pixels = torch.from_numpy(np.array(picture(0, index)))[None].float() / 255
        torch.testing.assert_close(clean[i], world.encode(pixels)[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(batch.sigma, world.sigmas(torch.tensor([0.25, 0.75])))
    noise = batch.target[0] + clean[0]
    expected = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(11))
    torch.testing.assert_close(noise, expected, atol=2e-6, rtol=0)
    assert torch.equal(batch.texts[1]["context"], world.texts([""])[0]["context"])
    assert torch.equal(batch.references[0][1], torch.from_numpy(np.array(picture(0, 3))).float() / 255)


def test_the_tiny_encoder_as_one_product_is_the_encoder(tmp_path):
    from i2l.i2l_core.demo import files

    world = DemoBase(write_world(tmp_path), torch.device("cpu"), False)
    encoder, _ = files.load_vae(tmp_path)
    pictures = torch.rand(3, SIDE, SIDE, 3)
    with torch.no_grad():
        expected = encoder(pictures.permute(0, 3, 1, 2))
    torch.testing.assert_close(world.encode(pictures), expected, atol=1e-4, rtol=1e-4)


def test_words_that_the_tiny_world_does_not_know_are_refused(tmp_path):
    world = DemoBase(write_world(tmp_path), torch.device("cpu"), False)
    world.check_prompt("two stars on the left, neon", "row 1")
    with pytest.raises(I2LError, match=r"row 2: the demo model does not know cat, stone; use its words"):
        world.check_prompt("one cat on the stone", "row 2")
    with pytest.raises(I2LError, match=r"row 3: the prompt has more than the 16 words"):
        world.check_prompt("star " * 17, "row 3")


def test_latents_of_other_sizes_are_refused(folder, tmp_path):
    world = DemoBase(write_world(tmp_path), torch.device("cpu"), False)
    pairs = [Pair((0,), False, (TrainTarget(1, "", 0.5, 1), TrainTarget(2, "", 0.5, 2)))]
    raw = read(pairs, EncodedData(folder, SIDE, SIDE))
    changed = type(raw)(raw.pairs, raw.references, [torch.zeros(16, 4, 4), None], raw.targets, raw.texts)
    changed = type(raw)(raw.pairs, raw.references, changed.latents, [None, raw.targets[1]], raw.texts)
    with pytest.raises(
        I2LError, match=r"latents of one batch differ in size, \[\(16, 4, 4\), \(16, 8, 8\)\]"
    ):
        to_device(changed, world, world, torch.device("cpu"))


def test_the_pool_of_the_generator_is_a_data_set(tmp_path):
    table = DataTable("tiny-world", path=str(tmp_path), styles=3, per_style=4)
    data = open_generated(table)
    assert len(data.pictures) == 12
    assert np.array_equal(np.asarray(data.open(7)), data.pool.pictures[1, 3])
    assert len({p.content for p in data.pictures[:4]}) == 4
    assert {p.style for p in data.pictures[4:8]} == {"000001"}


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("P", 0)])
def test_transparent_pictures_are_seen_on_white(tmp_path, mode, colour):
    image = Image.new(mode, (4, 4), colour)
    extra: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    image.save(tmp_path / "a.png", **extra)
    found = np.asarray(open_rgb(tmp_path / "a.png", "a"))
    assert found.shape == (4, 4, 3)
    assert (found == 255).all()


def test_pictures_are_seen_upright_and_in_eight_bits(tmp_path):
    tall = Image.new("RGB", (8, 16))
    exif = tall.getexif()
    exif[0x0112] = 6  # to be turned
    tall.save(tmp_path / "a.jpg", exif=exif)
    assert open_rgb(tmp_path / "a.jpg", "a").size == (16, 8)
    gray = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    Image.fromarray(gray).save(tmp_path / "b.png")
    found = np.asarray(open_rgb(tmp_path / "b.png", "b"))
    assert np.array_equal(found, np.repeat((gray / 257).round()[..., None], 3, 2))


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (64, 64), (20, 10)])
def test_targets_are_covered_and_cropped_at_the_middle(size):
    ramp = Image.linear_gradient("L").resize(size).convert("RGB")
    found = cover(ramp, 32, 48)
    assert found.size == (48, 32)
    assert int(np.asarray(found)[16, 24, 0]) == pytest.approx(128, abs=8)


def test_the_store_keeps_tensors_under_all_that_they_came_from(tmp_path):
    cache = EncodingCache(tmp_path / "cache")
    cache.put({"latent": torch.ones(2)}, LATENTS, "vae", "64x64", "a")
    found = cache.get(LATENTS, "vae", "64x64", "a")
    assert found is not None
    assert torch.equal(found["latent"], torch.ones(2))
    for other in (("vae2", "64x64", "a"), ("vae", "64x6", "4a"), ("vae", "64x64", "b")):
        assert cache.get(LATENTS, *other) is None
    assert cache.get(TEXTS, "vae", "64x64", "a") is None
    with pytest.raises(I2LError, match="hold NaN"):
        cache.put({"cond": torch.tensor(float("nan"))}, TEXTS, "t", "a cat")
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(I2LError, match=r"is damaged .*delete it"):
        cache.get(LATENTS, "vae", "64x64", "a")


def test_styles_need_one(folder):
    with pytest.raises(I2LError, match="no style that can be trained on"):
        Styles(folder, (), ())


@pytest.mark.parametrize("size", [1 << 62, 1 << 63, 1 << 64, (1 << 88) - 1])
def test_a_shard_with_a_member_beyond_64_bits_is_refused(tmp_path, size):
    member = tarfile.TarInfo("1.json")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(
        I2LError, match=r"a\.tar: it is not an uncompressed \.tar, or is damaged .*; pack or copy it again"
    ):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("size", str(1 << 70)), ("size", "-5"), ("GNU.sparse.map", "1,x"), ("GNU.sparse.size", "9" * 400)],
)
def test_a_shard_with_a_false_size_is_refused(tmp_path, entry, value):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        row = json.dumps({"style": "a", "prompt": "b"}).encode()
        for name, content in (("1.json", row), ("1.png", b"x" * 100)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = {entry: value} if name == "1.png" else {}
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(I2LError, match=r"^a\.tar.*"):
        open_shards(tmp_path)


def test_a_folder_of_shards_with_a_name_that_is_too_long_is_refused():
    with pytest.raises(I2LError, match=r"there is no \.tar shard in n|cannot read the folder of shards n"):
        open_shards("n" * 300)
