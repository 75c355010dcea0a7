"""`bestiary compose` with spectra: what is named, mixed and said at which stage, through files and faults."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from bestiary.trainer.composing.compose import ComposeSettings, compose_files
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from bestiary.trainer.composing.staged_pictures import (
    is_staged,
    load_spectra,
    make_staged_pictures,
    mix_spectra,
    read_presets,
    split_concepts,
    unreached_stages,
)
from PIL import Image

CHOICE = SamplingChoice(3, 2.0, 64)


def _spectrum(seed: int = 0, stages: int = 10, width: int = 32) -> PromptSpectrum:
    torch.manual_seed(seed)
    return PromptSpectrum(
        "sd15",
        {"clip_l": torch.randn(stages, 1, width)},
        StageBounds.equal(stages),
        neutral={"clip_l": torch.randn(1, width)},
    )


@pytest.fixture
def birds() -> PartDictionary:
    torch.manual_seed(9)
    rows = torch.tensor([[0, 17], [0, 18]])
    return PartDictionary("sd15", ("head",), ({17: "cardinal"},), None, rows, {"clip_l": torch.randn(2, 32)})


def test_words_alone_are_what_they_are_without_stages(tiny_denoiser: Callable, birds: PartDictionary) -> None:
    denoiser = tiny_denoiser("sd15")
    orders = [PictureOrder("a <head:17> bird", 1), PictureOrder("a (red:1.2) bird", 2, "head")]
    theirs = make_pictures(denoiser, {"birds": birds}, orders, CHOICE)
    ours = make_staged_pictures(denoiser, PromptSources({"x": _spectrum()}, {"birds": birds}), orders, CHOICE)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.image, other.image)


def test_parts_on_stages_change_pictures(tiny_denoiser: Callable, birds: PartDictionary) -> None:
    denoiser, sources = tiny_denoiser("sd15"), PromptSources({}, {"birds": birds})
    texts = ("a <head:17> bird", "a <head:17@layout> bird", "a <head:17@1-10> bird")
    first, layout, everywhere = (
        make_staged_pictures(denoiser, sources, [PictureOrder(t, 0)], CHOICE)[0].image for t in texts
    )
    assert torch.equal(first, everywhere) and not torch.equal(first, layout)


def test_an_override_replaces_one_stage(tiny_denoiser: Callable) -> None:
    denoiser, sources = tiny_denoiser("sd15"), PromptSources({"x": _spectrum()})
    orders = [PictureOrder("a <x>", 0)]
    plain, same, other = (
        make_staged_pictures(denoiser, sources, orders, CHOICE, overrides=o)[0].image
        for o in (None, {0: "a <x>", 3: 3}, {9: "red bird"})
    )
    assert torch.equal(plain, same) and not torch.equal(plain, other)


def test_stages_that_no_step_reaches_are_told(tiny_denoiser: Callable, caplog: pytest.LogCaptureFixture) -> None:
    bounds = StageBounds.equal(10)
    assert unreached_stages(bounds, [667, 334, 1]) == (0, 1, 2, 4, 5, 7, 8)
    assert unreached_stages(bounds, range(981, 0, -20)) == ()
    sources = PromptSources({"x": _spectrum()})
    make_staged_pictures(tiny_denoiser("sd15"), sources, [PictureOrder("a <x>", 0)], CHOICE)
    assert "3 steps of ddim never reach stage 1-3, 5-6, 8-9 of 10: use more steps" in caplog.text
    caplog.clear()
    make_staged_pictures(tiny_denoiser("sd15"), sources, [PictureOrder("a bird", 0)], CHOICE)
    assert not caplog.text


def test_progress_counts_all_pictures(tiny_denoiser: Callable) -> None:
    seen: list[tuple[int, int]] = []
    orders = [PictureOrder("a <x>", 0), PictureOrder("a bird " * 60, 1)]
    sources = PromptSources({"x": _spectrum()})
    made = make_staged_pictures(tiny_denoiser("sd15"), sources, orders, CHOICE, on_progress=lambda *d: seen.append(d))
    assert seen[-1] == (6, 6) and [p.order for p in made] == orders


def test_what_counts_as_staged() -> None:
    assert is_staged(["a bird"], PromptSources({"x": _spectrum()}))
    assert is_staged(["a <head:1@layout>"], PromptSources()) and is_staged(["[a:b:0.5]"], PromptSources())
    assert is_staged(["a bird"], PromptSources(), {1: "x"}) and not is_staged(["a <head:1>"], PromptSources())


def test_mixing_by_name() -> None:
    spectra = {"corgi": _spectrum(1), "teddy bear": _spectrum(2)}
    mixed = mix_spectra(spectra, {"layout": "Corgi", "content": "teddy-bear"})
    assert torch.equal(mixed.matrix()[0], spectra["corgi"].matrix()[0])
    assert torch.equal(mixed.matrix()[5], spectra["teddy bear"].matrix()[5])
    with pytest.raises(BestiaryError, match="layout: no spectrum is named 'cat': choose 'corgi', 'teddy bear'"):
        mix_spectra(spectra, {"layout": "cat"})
    with pytest.raises(BestiaryError, match="layout: no spectrum is named 'cat': none is loaded, add one with --with"):
        mix_spectra({}, {"layout": "cat"})
    with pytest.raises(BestiaryError, match="no preset for the attribute 'mood'"):
        mix_spectra(spectra, {"mood": "corgi"})


def test_presets_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("pose: 1-2\n")
    assert read_presets(tmp_path / "p.txt") == {"pose": ((0.0, 0.19999999999999996),)}
    # as editors on Windows save it
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfpose: 1-2\r\n")
    assert read_presets(tmp_path / "mark.txt") == read_presets(tmp_path / "p.txt")
    (tmp_path / "bad.txt").write_text("pose 1-2\n")
    with pytest.raises(BestiaryError, match=r"bad.txt: line 1 of the presets"):
        read_presets(tmp_path / "bad.txt")
    with pytest.raises(BestiaryError, match="cannot read the presets in"):
        read_presets(tmp_path / "none.txt")


def test_files_are_told_apart(tmp_path: Path, birds: PartDictionary) -> None:
    save_spectrum(_spectrum(), tmp_path / "corgi.safetensors")
    birds.save(tmp_path / "birds.safetensors")
    paths = [tmp_path / "birds.safetensors", tmp_path / "corgi.safetensors"]
    assert split_concepts(paths) == ([paths[0]], [paths[1]])
    assert list(load_spectra([paths[1]])) == ["corgi"]
    with pytest.raises(BestiaryError, match="two spectra are named 'corgi'"):
        load_spectra([paths[1], paths[1]])


def _compose(tiny_folder: Callable, tmp_path: Path, *prompts: str, **values: object) -> list[Path]:
    for name, seed in (("corgi", 1), ("teddy", 2)):
        save_spectrum(_spectrum(seed), tmp_path / f"{name}.safetensors")
    files = [tmp_path / "corgi.safetensors", tmp_path / "teddy.safetensors"]
    settings = {
        "dictionaries": files,
        "prompts": list(prompts),
        "base": str(tiny_folder("sd15")),
        "out": tmp_path / "made",
    }
    return compose_files(
        ComposeSettings(**{**settings, "steps": 2, "size": 64, "device": "cpu", "dtype": "fp32", **values})
    )


def test_compose_writes_pictures_of_mixed_spectra(tiny_folder: Callable, tmp_path: Path) -> None:
    written = _compose(
        tiny_folder, tmp_path, "a <mix>", "a <corgi@layout|bird>", mix={"layout": "corgi", "style": "teddy"}
    )
    assert [path.name for path in written] == ["0001.png", "0002.png"]
    recipe = Image.open(written[0]).text["bestiary"]
    assert "corgi.safetensors" in recipe and "teddy.safetensors" in recipe
    # the same seed gives the same picture; up to rounding, where it is made in other company
    again = _compose(
        tiny_folder, tmp_path, "a <mix>", "a <corgi@layout|bird>", mix={"layout": "corgi", "style": "teddy"}
    )
    assert [path.name for path in again] == ["0003.png", "0004.png"]
    assert Image.open(again[0]).tobytes() == Image.open(written[0]).tobytes()


def test_compose_with_presets_and_stage_texts(tiny_folder: Callable, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("pose: 1-5\n")
    values = {"presets": tmp_path / "p.txt", "stage_texts": ["pose: red bird"]}
    written = _compose(tiny_folder, tmp_path, "a <corgi@pose>", **values)
    assert len(written) == 1


@pytest.mark.parametrize(
    ("prompt", "values", "message"),
    [
        ("a <corgy>", {}, "prompt, column 3: unknown spectrum 'corgy': choose 'corgi'"),
        ("a <corgi>", {"heat_maps": True}, "--heat-maps needs prompts that are the same at every stage"),
        ("a <corgi>", {"stage_texts": ["11: x"]}, "line 1: stage '11' does not exist"),
        ("a <corgi>", {"mix": {"layout": "cat"}}, "layout: no spectrum is named 'cat'"),
    ],
)
def test_faults_cost_nothing(
    tiny_folder: Callable, tmp_path: Path, prompt: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(BestiaryError, match=message):
        _compose(tiny_folder, tmp_path, prompt, **values)
    assert not (tmp_path / "made").exists()


def test_a_spectrum_of_another_width_is_refused(tiny_denoiser: Callable) -> None:
    sources = PromptSources({"corgi": _spectrum(width=768)})
    with pytest.raises(BestiaryError, match="spectrum corgi holds vectors of widths"):
        make_staged_pictures(tiny_denoiser("sd15"), sources, [PictureOrder("a <corgi>", 0)], CHOICE)
    with pytest.raises(BestiaryError, match="was trained for sd15, but the base model is sd2"):
        make_staged_pictures(tiny_denoiser("sd2"), sources, [PictureOrder("a <corgi>", 0)], CHOICE)


def test_negatives_by_stage_are_refused_where_no_negative_counts(
    tiny_denoiser: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, sources = tiny_denoiser("sd15"), PromptSources({"x": _spectrum()})
    orders = [PictureOrder("a bird", 0, "<x@1-5>")]
    with pytest.raises(
        BestiaryError, match="but --guidance is 1, so that it has no effect: leave it out, or choose a guidance above 1"
    ):
        make_staged_pictures(denoiser, sources, orders, SamplingChoice(3, 1.0, 64))
    monkeypatch.setattr(type(denoiser), "is_guided", property(lambda self: True))
    with pytest.raises(
        BestiaryError, match="but sd15 takes guidance as a number, so that it has no effect: leave it out$"
    ):
        make_staged_pictures(denoiser, sources, orders, CHOICE)
