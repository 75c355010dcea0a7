"""The demo's composed pictures: mixes of four drawn species, blends between two, and other scenes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...concepts.files.atomic_file import replacing, write_text
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..composing.compose import add_adapters
from ..composing.picture_making import Picture, PictureOrder, make_pictures
from ..evaluation.cases import TestCase, mix_cases
from ..evaluation.evaluate import PROMPT, mention, prompt_of
from ..learning.discovery.discovery_folder import Discovery
from ..learning.pictures.heat_maps import heat_map
from ..model.sampling import SamplingDenoiser
from .judging import CHOICE

COMPOSED = "composed"
_MIXES, _SEEDS_EACH, _ATTENTION_ROWS = 8, 3, 3
_BLEND_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCENES = ("in the snow , at day", "in a desert , at dusk", "in a forest , at night", "in a garden , at day")


@dataclass(frozen=True)
class DemoPicture:
    """Record of one composed picture for the page."""

    group: str
    """mix, blend or scene."""
    number: int
    """Pictures of one row share a number."""
    file: str
    prompt: str
    caption: str
    sources: tuple[int, ...]
    """`(M,)` source picture of each part, -1 for none."""
    attention: tuple[str, ...] = ()
    """Heat maps, in the order of the parts."""
    parts: tuple[int, ...] = ()
    """Part of every heat map."""


@dataclass(frozen=True)
class _Plan:
    group: str
    number: int
    prompt: str
    seed: int
    caption: str
    sources: tuple[int, ...]


def compose_demo(
    out: Path,
    discovery: Discovery,
    dictionary: PartDictionary,
    denoiser: SamplingDenoiser,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> None:
    """Generate the pictures and write them with `composed/pictures.json`; seeds are fixed beforehand, not selected."""
    # all cases are fixed before sampling, so that no result can influence the choice
    codes, background = discovery.maps.codes, discovery.codebook.background
    sources = min(4, codes.shape[1] - 1)
    cases = mix_cases(codes, background, sources, _MIXES + len(_SCENES), seed + 1)
    plans = [*_mixes(cases[:_MIXES], dictionary, discovery), *_blends(discovery, dictionary, seed)]
    plans += _scenes(cases[_MIXES:], dictionary, discovery)
    # the denoiser is shared with later stages: the adapters are unloaded afterwards
    add_adapters(denoiser, {"creatures": dictionary}, 1.0)
    orders = [PictureOrder(plan.prompt, plan.seed) for plan in plans]
    pictures = make_pictures(
        denoiser, {"creatures": dictionary}, orders, CHOICE, attention=True, on_progress=on_progress
    )
    denoiser.network.adapters.unload()
    records = [
        _write(out / COMPOSED, place, plan, picture)
        for place, (plan, picture) in enumerate(zip(plans, pictures, strict=True))
    ]
    write_text(out / COMPOSED / "pictures.json", json.dumps([asdict(record) for record in records], indent=1) + "\n")


def read_composed(out: Path) -> list[DemoPicture]:
    """The records written by `compose_demo`."""
    records = json.loads((out / COMPOSED / "pictures.json").read_text(encoding="utf-8"))
    return [_picture_of(record) for record in records]


def _picture_of(record: dict[str, Any]) -> DemoPicture:
    plain = {name: record[name] for name in ("group", "number", "file", "prompt", "caption")}
    attention, parts = tuple(record["attention"]), tuple(record["parts"])
    return DemoPicture(**plain, sources=tuple(record["sources"]), attention=attention, parts=parts)


def _mixes(cases: list[TestCase], dictionary: PartDictionary, discovery: Discovery) -> list[_Plan]:
    return [
        _Plan(
            "mix", number, prompt_of(case, dictionary, discovery.codebook), case.seed + 1000 * extra, "", case.sources
        )
        for number, case in enumerate(cases)
        for extra in range(_SEEDS_EACH)
    ]


def _scenes(cases: list[TestCase], dictionary: PartDictionary, discovery: Discovery) -> list[_Plan]:
    """Mixes without the learned background, in scenes described in words; only the scene changes within a row."""
    background = discovery.codebook.background
    plans = []
    for number, case in enumerate(cases[:2]):
        # the learned background token would compete with the words for the scene
        bare = TestCase(_without(case.codes, background), _without(case.sources, background), case.seed)
        prompt = prompt_of(bare, dictionary, discovery.codebook)
        plans += [
            _Plan("scene", number, f"{prompt} , {scene}", case.seed, scene.replace(" ,", ","), bare.sources)
            for scene in _SCENES
        ]
    return plans


def _blends(discovery: Discovery, dictionary: PartDictionary, seed: int) -> list[_Plan]:
    """Blends between the creatures of two pictures; only the mixing weights change."""
    background = discovery.codebook.background
    known = dictionary.row_of
    plans = []
    for number, case in enumerate(mix_cases(discovery.maps.codes, background, 2, 2, seed + 2)):
        one, other = case.pictures[:2]
        for share in _BLEND_STEPS:
            # a part that only one picture shows cannot be blended: keep the first picture's kind
            tokens = []
            for part in range(discovery.maps.codes.shape[1]):
                pair = [(part, int(discovery.maps.codes[picture, part])) for picture in (one, other)]
                if part == background or any(row not in known for row in pair):
                    pair = [pair[0], pair[0]]
                if pair[0] in known:
                    tokens.append(_blended(dictionary, part, (pair[0][1], pair[1][1]), share))
            caption = f"{round(100 * (1 - share))} % / {round(100 * share)} %"
            plans.append(_Plan("blend", number, f"{PROMPT} {' '.join(tokens)}", case.seed, caption, (one, other)))
    return plans


def _blended(dictionary: PartDictionary, part: int, kinds: tuple[int, int], share: float) -> str:
    if share in (0, 1) or kinds[0] == kinds[1]:
        return mention(dictionary, part, kinds[int(share)])
    return mention(dictionary, part, *kinds, share=share)


def _without(values: tuple[int, ...], part: int) -> tuple[int, ...]:
    return tuple(-1 if place == part else value for place, value in enumerate(values))


def _write(folder: Path, place: int, plan: _Plan, picture: Picture) -> DemoPicture:
    name = f"{plan.group}-{place:03d}"
    image = picture.to_image()
    _save(folder / f"{name}.png", image)
    # heat maps only for the first seed of the first rows: each mention costs a file
    maps: list[str] = []
    if (
        plan.group == "mix"
        and plan.number < _ATTENTION_ROWS
        and picture.attention is not None
        and place % _SEEDS_EACH == 0
    ):
        for number, attention in enumerate(picture.attention):
            maps.append(f"{name}-attention-{number}.png")
            _save(folder / maps[-1], heat_map(image, attention))
    parts = tuple(mention.part for mention in picture.mentions)
    return DemoPicture(
        plan.group, plan.number, f"{name}.png", plan.prompt, plan.caption, plan.sources, tuple(maps), parts
    )


def _save(path: Path, image: Image.Image) -> None:
    with replacing(path) as temporary:
        image.save(temporary, "PNG")
