"""Plain embeddings and spectra: files of other programs mean the same in both, and ours load in ComfyUI as plain embeddings."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.files.concept_file import read_tensors
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from bestiary.trainer.exchange.export_spectrum import export_spectrum
from bestiary.trainer.exchange.import_spectrum import import_textual_inversion
from safetensors.torch import save_file
from torch import nn

WIDTH = 128
"""Of the embedded model's text encoder."""
TEXT = "a photo of a {} creature , (red:1.3) , in a meadow"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/embeddings with one textual inversion in the formats of three programs."""
    import folder_paths

    endings = folder_paths.folder_names_and_paths["embeddings"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path)], endings))
    folder_paths.filename_list_cache.pop("embeddings", None)
    rows = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2)) * 0.4
    torch.save({"<cat>": rows}, tmp_path / "of_diffusers.bin")
    torch.save({"string_to_param": {"*": nn.Parameter(rows)}, "name": "cat", "step": 5}, tmp_path / "of_a1111.pt")
    save_file({"emb_params": rows}, tmp_path / "of_kohya.safetensors")
    return tmp_path


@pytest.fixture
def clip(demo_model: object, folder: Path) -> object:
    """The embedded model's CLIP, which looks into `folder` for embeddings."""
    clip = demo_model.clip.clone()
    tokenizer = clip.tokenizer.clip_l if hasattr(clip.tokenizer, "clip_l") else clip.tokenizer
    assert clip.tokenizer is demo_model.clip.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "embedding_directory", [str(folder)])
        yield clip


def core(clip: object, name: str) -> list:
    """What ComfyUI's own CLIP Text Encode gives for `embedding:name`."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(TEXT.format(f"embedding:{name}")))


def staged(clip: object, spectrum: PromptSpectrum) -> list:
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides

    sources = PromptSources({"cat": spectrum}, {})
    (conditioning,), _ = encode_typed_sides(clip, [TypedSide(TEXT.format("<cat>"))], sources, PromptOptions())
    return conditioning


@pytest.mark.parametrize("file", ["of_diffusers.bin", "of_a1111.pt", "of_kohya.safetensors"])
def test_an_imported_embedding_says_at_every_stage_what_comfyui_reads(clip, folder, file):
    spectrum = import_textual_inversion(folder / file)
    assert (spectrum.backbone, spectrum.stages, spectrum.vectors) == ("bestiary-demo", 1, 2)
    ((theirs, _),) = core(clip, Path(file).stem)
    # one entry without a range: every stage
    ((ours, options),) = staged(clip, spectrum)
    assert torch.equal(ours, theirs) and "start_percent" not in options
    ((without, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(TEXT.format("")))
    assert not torch.equal(without, theirs)


def test_an_imported_embedding_fills_every_stage_of_a_mixture(folder):
    from bestiary.concepts.spectrum.stage_algebra import refine

    spectrum = import_textual_inversion(folder / "of_kohya.safetensors")
    ten = refine(spectrum, StageBounds.equal(10))
    rows = read_tensors(folder / "of_kohya.safetensors")["emb_params"]
    assert ten.stages == 10 and all(torch.equal(ten.stage_vectors(stage), rows) for stage in range(10))


def test_our_file_and_our_export_load_in_comfyui_as_their_mean(clip, folder):
    rows = torch.randn(10, 2, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.4
    spectrum = PromptSpectrum("bestiary-demo", {"clip_l": rows}, StageBounds.equal(10))
    save_spectrum(spectrum, folder / "native.safetensors", "fp32")
    exported = export_spectrum(spectrum, folder / "export", "corgi")[0]
    (folder / "exported.safetensors").write_bytes(exported.read_bytes())
    save_file({"emb_params": rows.mean(0)}, folder / "by_hand.safetensors")
    ((native, _),), ((ours, _),), ((theirs, _),) = (core(clip, name) for name in ("native", "exported", "by_hand"))
    assert torch.equal(native, theirs) and torch.equal(ours, theirs)
    # and ours is still all ten stages
    assert load_spectrum(folder / "native.safetensors").stages == 10
    assert len({entry[0].numpy().tobytes() for entry in staged(clip, spectrum)}) == 10


def test_both_encoders_of_sdxl_find_their_own_mean(folder):
    from comfy.sd1_clip import load_embed

    rows = {"clip_l": torch.randn(10, 1, 768), "clip_g": torch.randn(10, 1, 1280)}
    save_spectrum(PromptSpectrum("sdxl", rows, StageBounds.equal(10)), folder / "xl.safetensors", "fp32")
    for encoder, tensor in rows.items():
        held = load_embed("xl", str(folder), tensor.shape[-1], encoder)
        assert torch.allclose(held, tensor.mean(0), atol=1e-6), encoder


def test_initial_words_are_whole_words_of_the_real_tokenizer(diffusers_denoiser):
    from bestiary.trainer.learning.spectrum.spectrum_objective_setup import word_start

    denoiser = diffusers_denoiser("sd15")
    table = denoiser.text.models["clip_l"].get_input_embeddings().weight
    start = word_start(denoiser, "teddy", 2)["clip_l"]
    # the reference takes the first letter: 't' is 339
    assert torch.equal(start, table[11798].detach().expand(2, -1)) and not torch.equal(start[0], table[339])
    both = word_start(denoiser, "teddy bear", 1)["clip_l"][0]
    mean = table[[11798, 4298]].detach().mean(0)
    assert torch.nn.functional.cosine_similarity(both, mean, dim=0) == pytest.approx(1, abs=1e-5)
