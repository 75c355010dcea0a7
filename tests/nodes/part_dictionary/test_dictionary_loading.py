"""Tests of dictionaries between files and models in this process, on narrow SD1.5 and SDXL."""

import folder_paths
import pytest
import torch
from bestiary.concepts.denoiser.lora_names import DOWN, UP
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.host.socket_types import SPANS_KEY, NamedDictionary
from bestiary.nodes.part_dictionary import dictionary_loading
from bestiary.nodes.part_dictionary.dictionary_loading import (
    merge,
    name_of_file,
    prompt_name,
    read_dictionary,
    renamed,
    save_dictionary,
    teach,
)
from bestiary.nodes.part_prompt.clip_tokens import dictionaries_of

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"


@pytest.fixture(params=["sd15", "sdxl"])
def loaded(request):
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture
def heads(loaded) -> PartDictionary:
    """Two kinds of head with random vectors and a LoRA on one layer."""
    encoders = dict(loaded.clip.cond_stage_model.named_children())
    noise = torch.Generator().manual_seed(0)
    vectors = {
        name: torch.randn(2, encoder.transformer.get_input_embeddings().weight.shape[1], generator=noise) / 50
        for name, encoder in encoders.items()
    }
    lora = {LAYER + DOWN: torch.randn(2, 64, generator=noise) / 4, LAYER + UP: torch.randn(64, 2, generator=noise) / 4}
    backbone = "sdxl" if "clip_g" in encoders else "sd15"
    rows = torch.tensor([[0, 0], [0, 1]])
    return PartDictionary(backbone, ("head",), ({0: "red", 1: "blue"},), None, rows, vectors, lora)


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """models/bestiary in a temporary place."""
    paths = {**folder_paths.folder_names_and_paths, "bestiary": ([str(tmp_path / "bestiary")], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "bestiary").mkdir()
    return tmp_path / "bestiary"


def sampled(model: object, clip: object, text: str) -> torch.Tensor:
    """Latents that core's encode and sample nodes make of a text."""
    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(clip, words)[0] for words in (text, ""))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.KSampler().sample(model, 3, 2, 4.0, "euler", "normal", positive, negative, latent)[0]["samples"]


def test_taught_models_sample_and_the_originals_stay(loaded, heads):
    before = sampled(loaded.model, loaded.clip, "a bird")
    model, clip = teach(loaded.model, loaded.clip, NamedDictionary("birds", heads), 1.0)
    red, blue = (sampled(model, clip, f"a (embedding:birds/head.{kind}:1.2) bird") for kind in ("red", "blue"))
    assert red.isfinite().all()
    assert (red - blue).abs().max() > 1e-4
    assert torch.equal(red, sampled(model, clip, "a (embedding:birds/head.red:1.2) bird"))
    assert (sampled(model, clip, "a bird") - before).abs().max() > 1e-5
    assert torch.equal(sampled(loaded.model, loaded.clip, "a bird"), before)
    assert dictionaries_of(loaded.clip) == {}


def test_no_clone_is_left_for_comfyui_to_search_for(loaded, heads, caplog):
    for _ in range(3):
        model, clip = teach(loaded.model, loaded.clip, NamedDictionary("birds", heads), 1.0)
        sampled(model, clip, "a (embedding:birds/head.red:1.2) bird")
        del model, clip
    sampled(loaded.model, loaded.clip, "a bird")
    assert [record.message for record in caplog.records if "leak" in record.message] == []


def test_strength_zero_is_no_lora(loaded, heads):
    model, clip = teach(loaded.model, loaded.clip, NamedDictionary("birds", heads), 0.0)
    assert torch.equal(sampled(model, clip, "a bird"), sampled(loaded.model, loaded.clip, "a bird"))


def test_core_lora_loader_keeps_the_tokens_and_their_places(loaded, heads, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    import nodes

    save_file(heads.lora, tmp_path / "style.safetensors")
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *_: str(tmp_path / "style.safetensors"))
    model, clip = teach(loaded.model, loaded.clip, NamedDictionary("birds", heads), 0.5)
    model, clip = nodes.LoraLoader().load_lora(model, clip, "style.safetensors", 0.5, 0.5)
    assert list(dictionaries_of(clip)) == ["birds"]
    conditioning = nodes.CLIPTextEncode().encode(clip, "a embedding:birds/head.red")[0]
    assert [span.label for span in conditioning[0][1][SPANS_KEY]] == ["head:red"]
    whole, taught = teach(loaded.model, loaded.clip, NamedDictionary("birds", heads), 1.0)
    ours, theirs = (sampled(*one, "a embedding:birds/head.red") for one in ((model, clip), (whole, taught)))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_files_are_written_under_free_names_and_read_back(heads, own_files):
    assert [save_dictionary(heads, "garden/birds.safetensors") for _ in range(2)] == [
        "garden/birds.safetensors",
        "garden/birds_2.safetensors",
    ]
    # it would be listed as a codebook
    assert save_dictionary(heads, "birds.parts") == "birds.safetensors"
    named = read_dictionary("garden/birds_2.safetensors")
    assert named.name == "birds_2"
    assert named.dictionary.kind_names == heads.kind_names
    assert read_dictionary("birds.safetensors", " my birds ").name == "my birds"


@pytest.mark.parametrize("file", ["../../evil", "../evil.safetensors", "birds", "", "C:\\evil.safetensors"])
def test_no_file_is_opened_that_is_not_listed(own_files, file, monkeypatch):
    (own_files.parent / "evil.safetensors").write_bytes(b"")
    monkeypatch.setattr(PartDictionary, "load", lambda path: pytest.fail(f"opened {path}"))
    with pytest.raises(BestiaryError, match="no part dictionary .* in models/bestiary; choose none yet: put one there"):
        read_dictionary(file)


def test_broken_files_are_told_with_their_path(own_files):
    (own_files / "broken.safetensors").write_bytes(b"12345678{")
    with pytest.raises(BestiaryError, match="broken.safetensors"):
        read_dictionary("broken.safetensors")


def test_merged_dictionaries_have_both_names(heads):
    first, second = NamedDictionary("a", heads), NamedDictionary("b", heads)
    assert merge(first, second, (1.0, 1.0), "").name == "a_b"
    assert merge(first, first, (1.0, 1.0), " ").name == "a"
    both = merge(first, second, (0.5, 0.25), "both")
    assert both.name == "both"
    assert both.dictionary.kinds_of(0) == (0, 1, 2, 3)
    layer = both.dictionary.lora
    expected = 0.75 * heads.lora[LAYER + UP] @ heads.lora[LAYER + DOWN]
    assert torch.allclose(layer[LAYER + UP] @ layer[LAYER + DOWN], expected, atol=1e-6)


def test_names_for_prompts(heads):
    for name in ("birds", "my birds", "v2.1", "Vögel-2", "鳥"):
        assert prompt_name(f" {name} ") == name
    for name in ("a:b", "a/b", "(a)", "a,", ".a", "a<b", "a b!", "\n"):
        with pytest.raises(
            BestiaryError, match="cannot be used as the name of a dictionary in prompts: use letters, digits"
        ):
            prompt_name(name)
    named = NamedDictionary("birds", heads)
    assert renamed(named, "  ") is named
    assert renamed(named, "wings").dictionary is heads


def test_names_of_files():
    cases = {"birds.safetensors": "birds", "sub/My Birds (v2).safetensors": "My Birds_v2", "my birds.v2.1.safetensors": "my birds.v2.1", "2024.safetensors": "2024", "a\\b.safetensors": "b", "().safetensors": "dictionary"}  # fmt: skip
    for file, name in cases.items():
        assert name_of_file(file) == name
        assert prompt_name(name) == name


def test_codebooks_are_not_offered(own_files):
    (own_files / "birds.parts.safetensors").write_bytes(b"")
    (own_files / "birds.safetensors").write_bytes(b"")
    assert dictionary_loading.dictionary_names() == ["birds.safetensors"]
