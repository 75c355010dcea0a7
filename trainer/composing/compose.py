"""Compose pictures from part dictionaries and prompt spectra: writes numbered PNG files with their settings embedded."""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import check_writable, replacing
from ...concepts.files.concept_names import name_of_file
from ...concepts.files.text_file import read_text
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.pictures.picture_size import read_size, size_text
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.stage_bounds import DEFAULT_STAGES, StageBounds
from ...concepts.spectrum.stage_claims import stage_lines
from ...concepts.spectrum.staged_prompt import Override, PromptSources
from ...scenes.scene_layout import SceneLayout
from ..learning.denoiser.transformer_folder import T5Place
from ..learning.pictures.contact_sheet import contact_sheet
from ..learning.pictures.heat_maps import heat_map, size_within
from ..model.backbones import EMBEDDED_BACKBONES, load_denoiser
from ..model.sampling import Sampler, SamplingDenoiser
from .picture_making import Picture, PictureOrder, SamplingChoice, check_backbone, make_pictures
from .prompt_regions import read_regions
from .staged_pictures import (
    MIX_NAME,
    is_staged,
    load_by_name,
    load_spectra,
    make_staged_pictures,
    mix_spectra,
    read_presets,
    split_concepts,
)


class ComposeSettings(BaseModel):
    """Settings of `bestiary compose`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dictionaries: list[Path] = Field(min_length=1)
    """Part dictionaries and prompt spectra; used as `<file name.part:kind>` if there are several, and as `<file name>`."""
    mix: dict[str, str] = {}
    """Attribute -> name of a spectrum; the mixture is called `<mix>` in prompts."""
    presets: Path | None = None
    """Text file that assigns stages to attributes; None uses the included presets."""
    stage_texts: list[str] = []
    """Different prompts for some stages, such as "layout: a wide meadow"."""
    prompts: list[str] = Field(min_length=1)
    """Prompts with parts and spectra."""
    negative: str = ""
    """Negative prompt of every picture."""
    base: str | None = None
    """Base model folder or `demo`; None uses the model that the first dictionary was trained on."""
    out: Path | None = None
    """Output folder; None uses a folder named after the first dictionary."""
    count: int = Field(default=1, ge=1, le=10_000)
    """Pictures per prompt, with consecutive seeds."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the first picture of each prompt."""
    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=7.5, ge=0, le=100)
    """Classifier-free guidance scale, 0 to 100; 1 disables guidance."""
    size: int | tuple[int, int] | None = None
    """Edge length, or width and height as "256x128", in pixels, 64 to 4096, multiples of 8; None uses the edge of the model."""
    sampler: Sampler = "ddim"
    """Sampling method."""
    regions: list[str] = []
    """Prompts for parts of every picture, such as "left: a photo of a <head:3> bird"."""
    layout: Path | None = None
    """Layout of a scene, whose subjects are places for regions; also gives the size, unless there is one."""
    feather: float = Field(default=16, ge=0, le=512)
    """Width in pixels of the soft edge of regions."""
    lora_strength: float = Field(default=1.0, ge=-4, le=4)
    """Strength of the dictionaries' LoRA adapters: 1 as trained, 0 without them."""
    sheet: bool = False
    """Also write a contact sheet."""
    heat_maps: bool = False
    """Also write one sheet per picture with the attention map of each part token."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision."""
    text_encoder: Path | None = None
    """SD3 and Flux.1: folder or safetensors file of the T5 encoder; None takes the model folder's own."""
    tokenizer: Path | None = None
    """Likewise folder of T5's tokenizer."""

    @field_validator("size", mode="before")
    @classmethod
    def _read_size(cls, value: object) -> object:
        return read_size(value) if isinstance(value, str | int) else value

    @property
    def height_and_width(self) -> int | tuple[int, int] | None:
        """The size as samplers take it."""
        return (self.size[1], self.size[0]) if isinstance(self.size, tuple) else self.size


def compose(
    dictionaries: Mapping[str, PartDictionary],
    denoiser: SamplingDenoiser,
    prompts: Sequence[str],
    *,
    negative: str = "",
    count: int = 1,
    seed: int = 0,
    choice: SamplingChoice | None = None,
    attention: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Picture]:
    """`count` pictures of each prompt, seeds `seed`, `seed + 1`, ... for each; adapters must be loaded already.

    Raises:
        BestiaryError: a prompt is wrong, or a dictionary is for another backbone.
    """
    orders = [PictureOrder(prompt, seed + number, negative) for prompt in prompts for number in range(count)]
    return make_pictures(
        denoiser, dictionaries, orders, choice or SamplingChoice(), attention=attention, on_progress=on_progress
    )


def compose_files(settings: ComposeSettings, on_progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Compose pictures into a folder and return the written files; existing files are not overwritten.

    Raises:
        BestiaryError: a file, prompt or base model is wrong, or the folder cannot be written to.
    """
    # check all inputs before the model is loaded: sampling may take hours
    dictionary_files, spectrum_files = split_concepts(settings.dictionaries)
    dictionaries = load_dictionaries(dictionary_files)
    sources, overrides = _sources(settings, dictionaries, load_spectra(spectrum_files))
    staged = is_staged([*settings.prompts, settings.negative], sources, overrides)
    if staged and settings.heat_maps:
        raise BestiaryError("--heat-maps needs prompts that are the same at every stage: remove --heat-maps")
    layout = None if settings.layout is None else SceneLayout.from_json(read_text(settings.layout))
    regions = read_regions(settings.regions, layout)
    if regions and (staged or settings.heat_maps):
        what = "--heat-maps shows one prompt" if settings.heat_maps else "prompts by stage cannot have regions"
        raise BestiaryError(f"--region: {what}: leave one of them out")
    folder = settings.out or Path(f"{name_of_file(settings.dictionaries[0].name)}-pictures")
    check_writable(folder)
    base = settings.base or base_of(next(iter({**dictionaries, **sources.spectra}.values())))
    t5 = T5Place(settings.text_encoder, settings.tokenizer)
    denoiser = load_denoiser(base, device=settings.device, dtype=settings.dtype, t5=t5)
    add_adapters(denoiser, dictionaries, settings.lora_strength)
    size = settings.height_and_width or (None if layout is None else (layout.height, layout.width))
    choice = SamplingChoice(settings.steps, settings.guidance, size, settings.sampler, settings.feather)
    orders = [
        PictureOrder(prompt, settings.seed + number, settings.negative)
        for prompt in settings.prompts
        for number in range(settings.count)
    ]
    recipe, numbers = recipe_of(settings, base), NumberedFiles(folder)
    written: dict[int, list[Path]] = {}

    def keep(row: int, picture: Picture) -> None:
        # written immediately: finished pictures survive a failure or stop later on
        path = numbers.write(picture.to_image(), recipe, picture.order, row)
        written[row] = [path]
        if settings.heat_maps and picture.mentions:
            sheet = heat_map_sheet(picture, dictionaries)
            written[row].append(_write_sheet(path.with_name(f"{path.stem}-attention.png"), sheet))

    if staged:
        pictures = make_staged_pictures(
            denoiser, sources, orders, choice, overrides=overrides, on_progress=on_progress, on_picture=keep
        )
    else:
        pictures = make_pictures(
            denoiser, dictionaries, orders, choice,
            attention=settings.heat_maps, on_progress=on_progress, on_picture=keep, regions=regions,
        )  # fmt: skip
    # pictures may be sampled in another order: return them in prompt order, each followed by its heat maps
    paths = [path for row in range(len(orders)) for path in written[row]]
    if settings.sheet:
        captions = [f"{picture.order.prompt}  (seed {picture.order.seed})" for picture in pictures]
        sheet = contact_sheet([picture.to_image() for picture in pictures], captions)
        paths.append(write_numbered(folder, sheet, recipe, None, prefix="sheet-"))
    return paths


def _sources(
    settings: ComposeSettings, dictionaries: Mapping[str, PartDictionary], spectra: dict[str, PromptSpectrum]
) -> tuple[PromptSources, dict[int, Override]]:
    """The concepts that prompts may mention, and the different prompts for some stages."""
    presets = read_presets(settings.presets)
    if settings.presets:
        spectra = {name: replace(spectrum, presets=presets) for name, spectrum in spectra.items()}
    if settings.mix:
        if MIX_NAME in spectra:
            raise BestiaryError(f"a spectrum is already called {MIX_NAME!r}: rename its file to mix by attribute")
        spectra = {**spectra, MIX_NAME: mix_spectra(spectra, settings.mix, presets)}
    # stage numbers in texts refer to the stages of the first spectrum
    bounds = next((spectrum.bounds for spectrum in spectra.values()), StageBounds.equal(DEFAULT_STAGES))
    overrides = stage_lines("\n".join(settings.stage_texts), bounds, presets)
    return PromptSources(spectra, dictionaries, presets), overrides


def load_dictionaries(paths: Sequence[Path]) -> dict[str, PartDictionary]:
    """Dictionaries by their name in prompts, which is the file name without its suffixes.

    Raises:
        BestiaryError: a file is not a part dictionary, or two have the same name.
    """
    return load_by_name(paths, PartDictionary.load, "dictionaries")


def base_of(dictionary: PartDictionary | PromptSpectrum) -> str:
    """The base model that a dictionary or a spectrum was trained on: an embedded one, or a folder that still exists.

    Raises:
        BestiaryError: the folder no longer exists, so that --base is required.
    """
    if embedded := EMBEDDED_BACKBONES.get(dictionary.backbone):
        return embedded
    named = str(dictionary.provenance.get("base", ""))
    if named and Path(named).is_dir():
        return named
    was = f" (it was trained on {named})" if named else ""
    kind = "spectrum" if isinstance(dictionary, PromptSpectrum) else "dictionary"
    raise BestiaryError(f"this {kind} needs a {dictionary.backbone} model{was}: give its folder with --base FOLDER")


def add_adapters(denoiser: SamplingDenoiser, dictionaries: Mapping[str, PartDictionary], strength: float) -> None:
    """Load the LoRA adapters of all dictionaries at this strength; 0 loads none."""
    for name, dictionary in dictionaries.items():
        check_backbone(name, dictionary, denoiser)
        if dictionary.lora and strength:
            denoiser.network.adapters.load(dictionary.lora, strength)


def recipe_of(settings: ComposeSettings, base: str) -> dict[str, object]:
    """Settings that reproduce a picture, besides its prompt and seed."""
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in settings.dictionaries}
    regions = {"regions": settings.regions, "feather": settings.feather} if settings.regions else {}
    layout = {"layout": json.loads(read_text(settings.layout))} if settings.layout else {}
    return {
        "dictionaries": hashes,
        "base": Path(base).name,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": size_text(settings.size) if isinstance(settings.size, tuple) else settings.size,
        "sampler": settings.sampler,
        "lora_strength": settings.lora_strength,
        **regions,
        **layout,
    }


def write_numbered(
    folder: Path, image: Image.Image, recipe: Mapping[str, object], order: PictureOrder | None, prefix: str = ""
) -> Path:
    """Write a PNG under the next free number and return its path; its settings are stored in text chunks.

    `bestiary` contains everything as JSON; `parameters` the prompt, negative prompt and seed in the A1111 format.

    Raises:
        BestiaryError: the folder cannot be written to.
    """
    return NumberedFiles(folder, prefix).write(image, recipe, order, 0)


class NumberedFiles:
    """Numbered pictures in a folder, starting at the first free number; each file is written atomically."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        """Numbering starts after the largest number in the folder."""
        self._folder, self._prefix = Path(folder), prefix
        self._first = self._largest() + 1

    def write(self, image: Image.Image, recipe: Mapping[str, object], order: PictureOrder | None, place: int) -> Path:
        """Write one PNG as `write_numbered` does; its number follows from `place` unless another program took it.

        Raises:
            BestiaryError: the folder cannot be written to.
        """
        content = _png_with_recipe(image, recipe, order)
        number = self._first + place
        while True:
            path = self._folder / f"{self._prefix}{number:04d}.png"
            try:
                _write_new(path, content)
            except FileExistsError:
                # another process has written this number in the meantime
                number = self._largest() + 1
            else:
                return path

    def _largest(self) -> int:
        try:
            names = [entry.name for entry in self._folder.iterdir()] if self._folder.is_dir() else []
        except OSError as fault:
            raise _not_writable(self._folder, fault) from fault
        taken = [re.match(rf"{re.escape(self._prefix)}(\d+)", name) for name in names]
        return max((int(match[1]) for match in taken if match), default=0)


def _png_with_recipe(image: Image.Image, recipe: Mapping[str, object], order: PictureOrder | None) -> bytes:
    info = PngInfo()
    made = {} if order is None else {"prompt": order.prompt, "negative": order.negative, "seed": order.seed}
    info.add_itxt("bestiary", json.dumps({**made, **recipe}, ensure_ascii=False))
    if order is not None:
        # the A1111 format, which other programs read prompts and seeds from
        lines = [order.prompt, f"Negative prompt: {order.negative}"] if order.negative else [order.prompt]
        settings = f"Steps: {recipe['steps']}, Sampler: {recipe['sampler']}, CFG scale: {recipe['guidance']}, Seed: {order.seed}"
        info.add_itxt("parameters", "\n".join([*lines, f"{settings}, Size: {image.width}x{image.height}"]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _write_new(path: Path, content: bytes) -> None:
    """Write a new file atomically; raises FileExistsError if the name is taken."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        # a hard link fails if the name is taken, while a rename would overwrite it on POSIX
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            # file systems without hard links: rename, with a small window for a race on POSIX
            if path.exists():
                raise FileExistsError(path) from None
            os.rename(temporary, path)
    except FileExistsError:
        raise
    except OSError as fault:
        raise BestiaryError(
            f"could not write {path}: {fault.strerror or fault}; no file was changed. Free some disk space or choose "
            "another --out folder"
        ) from fault
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_writable(folder: Path, fault: OSError) -> BestiaryError:
    return BestiaryError(f"cannot write to {folder}: {fault.strerror or fault}; choose another --out folder")


def heat_map_sheet(picture: Picture, dictionaries: Mapping[str, PartDictionary]) -> Image.Image:
    """The picture, followed by one tile per part token with its attention map."""
    image = picture.to_image()
    maps = picture.attention
    tiles, captions = [image.resize(size_within(image.size, 192), Image.Resampling.LANCZOS)], [picture.order.prompt]
    for mention, attention in zip(picture.mentions, () if maps is None else maps, strict=True):
        dictionary = dictionaries[mention.dictionary]
        kinds = " + ".join(dictionary.kind_label(mention.part, kind) for kind, _ in mention.kinds)
        tiles.append(heat_map(image, attention))
        captions.append(f"{dictionary.part_names[mention.part]}: {kinds}")
    return contact_sheet(tiles, captions, columns=min(4, len(tiles)), tile=192)


def _write_sheet(path: Path, sheet: Image.Image) -> Path:
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return path
