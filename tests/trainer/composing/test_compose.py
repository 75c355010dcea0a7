"""Composing: the full grammar through a real sampler, numbered files that are never overwritten, recipes inside."""

import errno
import json
import stat
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.__main__ import main
from bestiary.trainer.composing.compose import (
    ComposeSettings,
    base_of,
    compose_files,
    load_dictionaries,
    write_numbered,
)
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, check_backbone, make_pictures
from PIL import Image

PROMPT = "a bird of <head:cardinal> <wing:1>, red"


def make_dictionary(width: int = 32, backbone: str = "sd15", encoder: str = "clip_l") -> PartDictionary:
    rows = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
    vectors = torch.randn(5, width, generator=torch.Generator().manual_seed(4)) * 0.2
    names = ({0: "cardinal", 1: "blue jay"}, {}, {})
    return PartDictionary(backbone, ("head", "wing", "background"), names, 2, rows, {encoder: vectors})


@pytest.fixture
def birds(tmp_path):
    path = tmp_path / "birds.safetensors"
    make_dictionary().save(path)
    return path


@pytest.fixture
def settings(birds, tiny_folder, tmp_path):
    def build(**changes):
        values = {
            "dictionaries": [birds],
            "prompts": [PROMPT],
            "base": str(tiny_folder("sd15")),
            "out": tmp_path / "out",
        }
        values |= {"steps": 2, "size": 64, "device": "cpu", "dtype": "fp32"}
        return ComposeSettings(**(values | changes))

    return build


def test_pictures_are_numbered_and_carry_their_recipe(settings):
    paths = compose_files(settings(count=2, seed=7, negative="<head:blue jay> dark"))
    assert [path.name for path in paths] == ["0001.png", "0002.png"]
    image = Image.open(paths[1])
    recipe = json.loads(image.text["bestiary"])
    assert image.size == (64, 64)
    assert (recipe["prompt"], recipe["seed"], recipe["negative"]) == (PROMPT, 8, "<head:blue jay> dark")
    assert len(recipe["dictionaries"]["birds.safetensors"]) == 64
    assert image.text["parameters"].startswith(PROMPT + "\nNegative prompt: <head:blue jay> dark\nSteps: 2")


def test_earlier_pictures_are_never_overwritten(settings, tmp_path):
    first = compose_files(settings())[0]
    content = first.read_bytes()
    assert compose_files(settings(seed=3))[0].name == "0002.png"
    assert first.read_bytes() == content


def test_each_picture_is_written_when_it_is_made(settings, tmp_path, monkeypatch):
    from bestiary.trainer.composing import compose as module
    from bestiary.trainer.composing import picture_making

    monkeypatch.setattr(picture_making, "pictures_at_once", lambda denoiser, size: 1)
    present = []
    sample = picture_making.sample_images

    def stopped(*arguments, **options):
        present.append(sorted(path.name for path in (tmp_path / "out").glob("*")))
        if len(present) == 3:
            raise KeyboardInterrupt
        return sample(*arguments, **options)

    monkeypatch.setattr(picture_making, "sample_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        module.compose_files(settings(count=4))
    assert present == [[], ["0001.png"], ["0001.png", "0002.png"]]
    # what was made is whole, and nothing else is there
    assert [Image.open(path).size for path in sorted((tmp_path / "out").iterdir())] == [(64, 64)] * 2


def test_a_kill_while_writing_leaves_no_empty_picture(tmp_path, monkeypatch):
    import bestiary.trainer.composing.compose as module

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(module.os, "link", killed)
    recipe = {"steps": 1, "sampler": "ddim", "guidance": 1}
    with pytest.raises(SystemExit):
        write_numbered(tmp_path, Image.new("RGB", (8, 8)), recipe, None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert write_numbered(tmp_path, Image.new("RGB", (8, 8)), recipe, None).name == "0001.png"


@pytest.mark.parametrize("links", [True, False])
def test_a_number_that_another_program_took_is_left_to_it(tmp_path, monkeypatch, links):
    import bestiary.trainer.composing.compose as module

    def none(*_):
        raise PermissionError(1, "no hard links here")

    if not links:
        monkeypatch.setattr(module.os, "link", none)
    files = module.NumberedFiles(tmp_path)
    (tmp_path / "0002.png").write_text("of another program")
    recipe = {"steps": 1, "sampler": "ddim", "guidance": 1}
    written = [files.write(Image.new("RGB", (8, 8)), recipe, None, place).name for place in (1, 0, 2)]
    assert written == ["0003.png", "0001.png", "0004.png"]
    assert (tmp_path / "0002.png").read_text() == "of another program"
    assert not list(tmp_path.glob(".*"))


def test_same_seed_same_picture_in_any_company(settings, birds, tiny_denoiser):
    denoiser = tiny_denoiser("sd15")
    dictionaries = load_dictionaries([birds])
    long = " ".join(["a bird"] * 60) + " <head:0>"
    orders = [PictureOrder(PROMPT, 5), PictureOrder(long, 6), PictureOrder("a bird", 7, "red")]
    choice = SamplingChoice(steps=2, size=64)
    ours = make_pictures(denoiser, dictionaries, orders, choice)
    for order, picture in zip(orders, ours, strict=True):
        alone = make_pictures(denoiser, dictionaries, [order], choice)[0]
        torch.testing.assert_close(picture.image, alone.image, atol=1e-4, rtol=0)
        assert picture.order == order


def test_kinds_change_the_picture_and_blends_lie_between(birds, tiny_denoiser):
    denoiser, dictionaries = tiny_denoiser("sd15"), load_dictionaries([birds])
    prompts = ["<head:0>", "<head:0*1+1*0>", "<head:0*0.5+1*0.5>", "<head:1>"]
    orders = [PictureOrder(prompt, 1) for prompt in prompts]
    first, same, blend, other = (
        p.image for p in make_pictures(denoiser, dictionaries, orders, SamplingChoice(2, size=64))
    )
    torch.testing.assert_close(first, same, atol=1e-4, rtol=0)
    assert not torch.allclose(first, other, atol=1e-4)
    assert not torch.allclose(first, blend, atol=1e-4) and not torch.allclose(other, blend, atol=1e-4)


def test_sheet_and_heat_maps_are_written(settings):
    paths = compose_files(settings(prompts=[PROMPT, "no parts"], sheet=True, heat_maps=True))
    assert [path.name for path in paths] == ["0001.png", "0001-attention.png", "0002.png", "sheet-0001.png"]
    assert Image.open(paths[1]).width > 2 * 192
    assert compose_files(settings(sheet=True))[-1].name == "sheet-0002.png"


def test_attention_has_one_map_per_mention(birds, tiny_denoiser):
    orders = [PictureOrder(PROMPT, 0), PictureOrder("<wing:0>", 1), PictureOrder("plain", 2)]
    pictures = make_pictures(
        tiny_denoiser("sd15"), load_dictionaries([birds]), orders, SamplingChoice(1, size=64), attention=True
    )
    assert [len(picture.attention) for picture in pictures] == [2, 1, 0]
    assert [mention.part for mention in pictures[0].mentions] == [0, 1]
    assert pictures[0].attention.sum() > 0


def test_two_dictionaries_are_told_apart_by_name(settings, birds, tmp_path):
    dogs = tmp_path / "dogs.safetensors"
    make_dictionary().save(dogs)
    written = compose_files(settings(dictionaries=[birds, dogs], prompts=["<birds.head:0> <dogs.wing:0>"]))
    assert len(written) == 1


def test_progress_counts_all_pictures(settings):
    seen = []
    compose_files(settings(count=3), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_equal_names_are_refused(birds, tmp_path):
    (tmp_path / "more").mkdir()
    make_dictionary().save(tmp_path / "more" / "birds.safetensors")
    with pytest.raises(BestiaryError, match="two dictionaries are named 'birds'"):
        load_dictionaries([birds, tmp_path / "more" / "birds.safetensors"])


def test_another_backbone_is_refused_with_the_reason(tiny_denoiser):
    with pytest.raises(BestiaryError, match="dictionary birds was trained for sd15, but the base model is sd2"):
        check_backbone("birds", make_dictionary(), tiny_denoiser("sd2"))


def test_vectors_of_another_width_are_refused(tiny_denoiser):
    with pytest.raises(BestiaryError, match=r"holds vectors of widths \{'clip_l': 48\}, but the base model takes"):
        check_backbone("birds", make_dictionary(width=48), tiny_denoiser("sd15"))


def test_base_is_where_the_dictionary_says(tmp_path):
    known = make_dictionary()
    known.provenance["base"] = str(tmp_path)
    assert base_of(known) == str(tmp_path)
    assert base_of(make_dictionary(backbone="bestiary-demo")) == "demo"


def test_base_that_is_gone_must_be_given():
    lost = make_dictionary()
    lost.provenance["base"] = "models/gone"
    with pytest.raises(
        BestiaryError, match=r"needs a sd15 model \(it was trained on models/gone\): give its folder with --base"
    ):
        base_of(lost)


def _run(capsys, *arguments) -> tuple[int, str]:
    code = main(["compose", *map(str, arguments)])
    error = capsys.readouterr().err.strip()
    return code, error


def test_command_line_writes_pictures(birds, tiny_folder, tmp_path, capsys):
    out = tmp_path / "pictures"
    options = ["--base", tiny_folder("sd15"), "--out", out, "--steps", 1, "--size", 64, "--device", "cpu"]
    assert main(["compose", str(birds), PROMPT, *map(str, options), "--progress", "off"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "0001.png")]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <heda:0>", "head"),
        ("a <head:99>", "99"),
        ("a <head:cardnal>", "cardinal"),
        ("a <head:>", "column"),
    ],
)
def test_wrong_prompts_say_what_is_valid_before_any_picture(birds, tiny_folder, tmp_path, capsys, prompt, message):
    code, error = _run(capsys, birds, prompt, "--base", tiny_folder("sd15"), "--out", tmp_path / "new")
    assert code == 2 and message in error and "\n" not in error
    assert not (tmp_path / "new").exists()


def test_dictionary_of_another_backbone_is_one_line(birds, tiny_folder, tmp_path, capsys):
    code, error = _run(capsys, birds, PROMPT, "--base", tiny_folder("sdxl"), "--out", tmp_path / "new")
    assert code == 2 and "was trained for sd15, but the base model is sdxl" in error and "(see --base)" in error


def test_missing_base_is_one_line(birds, tmp_path, capsys):
    code, error = _run(capsys, birds, PROMPT, "--base", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in error and "\n" not in error


def test_damaged_dictionary_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    code, error = _run(capsys, tmp_path / "broken.safetensors", PROMPT)
    assert code == 2 and "broken.safetensors" in error and "\n" not in error


def test_place_that_cannot_be_written_to_is_one_line(birds, tiny_folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ["--base", tiny_folder("sd15"), "--steps", 1, "--size", 64, "--device", "cpu", "--progress", "off"]
    code, error = _run(capsys, birds, PROMPT, *options, "--out", tmp_path / "file" / "folder")
    assert code == 2 and "cannot write to" in error and "choose another --out folder" in error


def test_folder_without_write_permission(birds, tiny_folder, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    try:
        (locked / "probe").touch()
        pytest.skip("this user may write anywhere")
    except PermissionError:
        pass
    options = ["--base", tiny_folder("sd15"), "--steps", 1, "--size", 64, "--device", "cpu", "--progress", "off"]
    code, error = _run(capsys, birds, PROMPT, *options, "--out", locked)
    assert code == 2 and "cannot write to" in error


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    recipe = {"steps": 1, "guidance": 1, "sampler": "ddim"}
    first = write_numbered(tmp_path, Image.new("RGB", (8, 8)), recipe, PictureOrder("a", 0))
    content = first.read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BestiaryError, match=r"0002\.png: No space left on device; .* choose another --out folder"):
        write_numbered(tmp_path, Image.new("RGB", (8, 8)), recipe, PictureOrder("b", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["0001.png"]
    assert first.read_bytes() == content
