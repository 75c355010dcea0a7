"""The part dictionary: asking, sampling, files, and hostile files."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import read_header, write_concept_file
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from PIL import Image
from safetensors.torch import load_file, save_file

ROWS = [(0, 0), (0, 4), (0, 16), (2, 4), (2, 255)]


def make(backbone: str = "sd15", **changes: object) -> PartDictionary:
    generator = torch.Generator().manual_seed(0)
    widths = {"clip_l": 4, "clip_g": 5} if backbone == "sdxl" else {"clip_l": 6}
    fields = {
        "backbone": backbone,
        "part_names": ("head", "tail", "background"),
        "kind_names": ({0: "blue jay", 4: "<b>robin</b>", 16: "Cardinal", 9: "never trained"}, {}, {4: "sea"}),
        "background": 2,
        "rows": torch.tensor(ROWS),
        "embeddings": {name: torch.randn(5, width, generator=generator) for name, width in widths.items()},
        **changes,
    }
    return PartDictionary(**fields)


def test_vectors_are_found_by_pair_in_the_order_of_the_encoders() -> None:
    ours = make("sdxl")
    theirs = torch.cat([ours.embeddings["clip_l"][3], ours.embeddings["clip_g"][3]])
    assert torch.equal(ours.vector(2, 4), theirs)
    assert torch.equal(ours.matrix()[3], theirs)
    assert ours.vector_width == 9
    assert ours.kinds_of(0) == (0, 4, 16)
    assert ours.kinds_of(1) == ()


@pytest.mark.parametrize(("text", "part"), [("head", 0), (" HEAD ", 0), ("0", 0), ("background", 2), ("2", 2)])
def test_parts_are_found_by_name_or_number(text: str, part: int) -> None:
    assert make().find_part(text) == part


@pytest.mark.parametrize(
    ("text", "kind"), [("cardinal", 16), ("Blue_Jay", 0), ("<b>robin</b>", 4), ("16", 16), (" 4 ", 4)]
)
def test_kinds_are_found_by_name_or_number(text: str, kind: int) -> None:
    assert make().find_kind(0, text) == kind


def test_numbers_count_from_the_id_base() -> None:
    ours = make(id_base=1)
    assert ours.find_kind(0, "17") == 16
    assert ours.kind_label(2, 255) == "256"
    with pytest.raises(
        BestiaryError, match=r"unknown kind 0 of part 'head': choose one of 1, 5, 17; nearest: 1 \(blue jay\)"
    ):
        ours.find_kind(0, "0")


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        (0, "999", r"unknown kind 999 of part 'head': choose one of 0, 4, 16; nearest: 16 \(Cardinal\), 4"),
        (0, "-1", "unknown kind -1 of part 'head'"),
        (0, "9", "unknown kind 9 of part 'head'"),
        (0, "never trained", "unknown kind 'never trained' of part 'head': choose 'blue jay'"),
        (
            0,
            "cardnal",
            "unknown kind 'cardnal' of part 'head': choose 'Cardinal', 'blue jay', .* or a number of 0, 4, 16",
        ),
        (2, "lake\n", r"unknown kind 'lake\\n' of part 'background': choose 'sea', or a number of 4, 255"),
    ],
)
def test_untrained_kinds_cannot_be_asked_for(part: int, text: str, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        make().find_kind(part, text)


def test_names_that_are_alike_are_two_parts() -> None:
    rows, vectors = torch.tensor([[0, 0], [1, 0]]), {"clip_l": torch.ones(2, 768)}
    made = PartDictionary("sd15", ("left wing", "left_wing"), ({}, {}), None, rows, vectors)
    assert [made.find_part(text) for text in ("left wing", "left_wing", " left_wing ", "Left-Wing")] == [0, 1, 1, 0]


def test_untrained_parts_cannot_be_asked_for() -> None:
    for text in ("tail", "1", "beak", "99"):
        with pytest.raises(BestiaryError, match=f"unknown part '{text}': choose .*'head'.*, or a number of 0, 2"):
            make().find_part(text)
    with pytest.raises(BestiaryError, match="part 'tail' has no trained kind; 3 and every other number"):
        make().vector(1, 3)
    with pytest.raises(BestiaryError, match="unknown kind 3 of part 'head'"):
        make().vector(0, 3)


def test_a_kind_spelt_exactly_as_typed_is_found_before_those_that_are_alike() -> None:
    ours = make(kind_names=({0: "jay", 4: "Jay"}, {}, {}))
    assert [ours.find_kind(0, text) for text in ("jay", " Jay ")] == [0, 4]


@pytest.mark.parametrize(("names", "text"), [(("jay", "Jay"), "JAY"), (("jay", "jay"), "jay")])
def test_a_name_of_two_kinds_asks_for_the_number(names: tuple[str, str], text: str) -> None:
    ours = make(kind_names=(dict(zip((0, 4), names, strict=True)), {}, {}))
    with pytest.raises(BestiaryError, match=f"'{text}' matches several kinds of part 'head': use one of 0, 4"):
        ours.find_kind(0, text)


def test_mean_spread_and_samples_of_a_part() -> None:
    ours = make()
    mean, std = ours.mean_and_std(0)
    rows = ours.embeddings["clip_l"][:3]
    assert torch.allclose(mean, rows.mean(0))
    assert torch.allclose(std, rows.std(0, correction=0))
    assert torch.equal(ours.sample(0, 5), ours.sample(0, 5))
    assert not torch.equal(ours.sample(0, 5), ours.sample(0, 6))
    many = torch.stack([ours.sample(0, seed) for seed in range(600)])
    assert torch.allclose(many.mean(0), mean, atol=0.15)
    assert torch.allclose(many.std(0), std, atol=0.15)
    alone = make(rows=torch.tensor([(0, 0), (0, 1), (0, 2), (0, 3), (2, 4)]))
    assert torch.equal(alone.sample(2, 1), alone.vector(2, 4))
    with pytest.raises(BestiaryError, match="part 'tail' has no trained kind"):
        ours.sample(1, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_everything_comes_back_from_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    tiles = {(0, 4): Image.new("RGB", (32, 32), (200, 0, 0))}
    lora = {"lora_unet_x.lora_down.weight": torch.randn(4, 6), "lora_unet_x.alpha": torch.tensor(4.0)}
    lora["lora_unet_x.lora_up.weight"] = torch.randn(6, 4)
    theirs = make(
        "sdxl", id_base=1, thumbnails=ThumbnailAtlas.from_images(tiles, 32), lora=lora, provenance={"seed": 3}
    )
    path = tmp_path / "d.safetensors"
    theirs.save(path, dtype)
    ours = PartDictionary.load(path)
    for name in ("backbone", "part_names", "kind_names", "background", "id_base", "provenance"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert torch.equal(ours.rows, theirs.rows)
    for name, tensor in {**theirs.embeddings, **theirs.lora}.items():
        assert torch.equal({**ours.embeddings, **ours.lora}[name], tensor.to(dtype).float())
    assert ours.thumbnails.tile(0, 4).size == (32, 32)
    assert ours.thumbnails.tile(0, 0) is None


def test_the_header_stays_small_with_five_thousand_named_kinds(tmp_path: Path) -> None:
    kinds = {kind: f"a rather long name of a kind, number {kind:05d}" for kind in range(5000)}
    rows = torch.stack([torch.zeros(5000, dtype=torch.long), torch.arange(5000)], dim=1)
    large = make(rows=rows, kind_names=(kinds, {}, {}), embeddings={"clip_l": torch.zeros(5000, 8)})
    path = tmp_path / "d.safetensors"
    large.save(path)
    with path.open("rb") as stream:
        assert int.from_bytes(stream.read(8), "little") < 4096
    assert read_header(path).concept["num_rows"] == 5000
    assert PartDictionary.load(path).find_kind(0, kinds[4321]) == 4321


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    large = make(embeddings={"clip_l": torch.full((5, 6), 1e6)})
    with pytest.raises(BestiaryError, match="'clip_l' contains values that are not finite in float16"):
        large.save(tmp_path / "d")
    large.save(tmp_path / "d", torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embeddings": {"clip_g": torch.zeros(5, 6)}},
            "a sd15 dictionary needs vectors for clip_l; this one has clip_g",
        ),
        ({"embeddings": {"clip_l": torch.zeros(4, 6)}}, r"clip_l has shape \(4, 6\), expected \(5, width\)"),
        ({"embeddings": {"clip_l": torch.full((5, 6), float("nan"))}}, "'clip_l' contains values that are not finite"),
        ({"lora": {"a.alpha": torch.tensor(float("inf"))}}, "'a.alpha' contains values that are not finite"),
        ({"rows": torch.zeros(5, 3, dtype=torch.long)}, r"rows have shape \(5, 3\), expected \(R, 2\)"),
        ({"rows": torch.tensor([(0, 0)] * 5)}, "duplicate pairs"),
        ({"rows": torch.tensor([(3, n) for n in range(5)])}, "the rows contain part indices above 2"),
        ({"background": 3}, "background 3"),
        ({"id_base": 2}, "id base 2"),
        ({"kind_names": ({},)}, "3 part names, 1 lists of kinds"),
        ({"backbone": "flux9"}, "unknown backbone 'flux9'"),
    ],
)
def test_contradictions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("clip_l", None, "it lacks clip_l"),
        ("rows", None, "it lacks rows"),
        ("names", None, "it lacks names"),
        ("names", torch.tensor([1, 2, 3], dtype=torch.uint8), "a table of 3 bytes is not readable text"),
        ("names", torch.tensor(list(b"[1]"), dtype=torch.uint8), r"the table of names is \[1\], expected a table"),
        (
            "names",
            torch.tensor(list(b'{"parts":["a"],"kinds":[{"x":"y"}]}'), dtype=torch.uint8),
            "a name in the names of kinds of part 0 is .x., expected a number",
        ),
        ("rows", torch.full((5, 2), -1), "negative numbers"),
        ("rows", torch.zeros(0, 2), "expected whole numbers"),
        ("clip_l", torch.full((5, 6), float("inf")), "'clip_l' contains values that are not finite"),
        ("clip_l", torch.zeros(5), r"the tensor .clip_l. is a tensor of float32 \[5\], expected floats \(5, W\)"),
        ("thumbnails.picture", torch.zeros(9, dtype=torch.uint8), "the tensor .thumbnails.index. is missing"),
    ],
)
def test_hostile_files_give_one_clear_error(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    path = tmp_path / "d.safetensors"
    make().save(path)
    tensors = {**load_file(str(path)), name: tensor}
    save_file({k: v for k, v in tensors.items() if v is not None}, str(path), read_header(path).metadata)
    with pytest.raises(BestiaryError, match=f"d.safetensors is not a valid part dictionary: .*{message}"):
        PartDictionary.load(path)


def test_files_of_other_kinds_and_backbones_are_refused(tmp_path: Path) -> None:
    write_concept_file(tmp_path / "a", {}, {"kind": "codebook"})
    with pytest.raises(BestiaryError, match="a codebook file, but a part-dictionary file is required"):
        PartDictionary.load(tmp_path / "a")
    write_concept_file(tmp_path / "b", {}, {"kind": "part-dictionary", "backbone": ["x"]})
    with pytest.raises(BestiaryError, match="not a valid part dictionary: unknown backbone"):
        PartDictionary.load(tmp_path / "b")


def test_odd_metadata_types_do_not_get_through(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    make().save(path)
    tensors, metadata = load_file(str(path)), read_header(path).metadata
    save_file(tensors, str(path), {**metadata, "bestiary.background": '"two"'})
    with pytest.raises(BestiaryError, match="background is .two., expected a whole number of 0 to 2"):
        PartDictionary.load(path)
    save_file(tensors, str(path), {**metadata, "bestiary.provenance": '"<script>"', "bestiary.id_base": "[]"})
    with pytest.raises(BestiaryError, match=r"id_base is \[\], expected a whole number of 0 to 1"):
        PartDictionary.load(path)
