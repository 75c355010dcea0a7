"""Folders of Stable Diffusion 3 and Flux.1 in diffusers' layout: identified, loaded, their texts as diffusers and ComfyUI say them, one error for each fault."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.backbone import BACKBONES
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.transformer_folder import T5Place, read_transformer_folder
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.transformer_loading import FAMILIES
from safetensors.torch import load_file, save_file

TINY = 96
"""Width of the tiny T5, and of SD3's two CLIPs side by side."""


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]) -> dict[str, object]:
    return {name: load_denoiser(tiny_folder(name), device="cpu", dtype="fp32") for name in ("sd3", "flux")}


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy whose files are links, so that one of them can be replaced."""

    def copy(name: str) -> Path:
        shutil.copytree(
            tiny_folder(name), tmp_path / name, copy_function=lambda source, to: Path(to).symlink_to(source)
        )
        return tmp_path / name

    return copy


def change(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) | fields
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("name", "shift"), [("sd3", 3.0), ("flux", 3.158)])
def test_a_folder_is_identified_and_loaded_with_its_process(loaded: dict, name: str, shift: float) -> None:
    denoiser = loaded[name]
    assert denoiser.backbone.name == name and denoiser.process.shift == pytest.approx(shift, abs=1e-3)
    assert denoiser.process.draw == "logit_normal" and denoiser.process.prediction == "flow"
    assert denoiser.backbone.context_width == TINY and denoiser.backbone.attention_divisor == 16
    assert denoiser.images.shape((64, 96)) == (16, 8, 12)
    # pictures there and back, by the shift and scale of this family's autoencoder
    moments = denoiser.images.to_cache(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(denoiser.images.from_cache(moments), (moments[:, 0] - 0.0609) * 1.5305)


def test_text_of_sd3_is_that_of_diffusers(loaded: dict, tiny_folder: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    folder, words = tiny_folder("sd3"), "a photo of a red bird"
    ours = loaded["sd3"].text.encode([loaded["sd3"].text.tokenize([PromptPiece(words)])], None)
    states, pooled = [], []
    with torch.no_grad():
        for suffix in ("", "_2"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
            ids = tokenizer(words, padding="max_length", max_length=77, return_tensors="pt").input_ids
            output = CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{suffix}")(
                ids, output_hidden_states=True
            )
            states.append(output.hidden_states[-2])
            pooled.append(output[0])
        ids = AutoTokenizer.from_pretrained(folder / "tokenizer_3")(
            words, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_3")(ids)[0]
    clip = torch.nn.functional.pad(torch.cat(states, -1), (0, TINY - 32 - 64))
    torch.testing.assert_close(ours.context, torch.cat([clip, t5], dim=-2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, torch.cat(pooled, -1), atol=1e-5, rtol=1e-5)


def test_text_of_flux_is_t5_and_the_unprojected_pooled_vector(loaded: dict, tiny_folder: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

    folder, words = tiny_folder("flux"), "a photo of a red bird"
    ours = loaded["flux"].text.encode([loaded["flux"].text.tokenize([PromptPiece(words)])], None)
    with torch.no_grad():
        ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
            words, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        pooled = CLIPTextModel.from_pretrained(folder / "text_encoder")(ids).pooler_output
        ids = AutoTokenizer.from_pretrained(folder / "tokenizer_2")(
            words, padding="max_length", max_length=256, return_tensors="pt"
        ).input_ids
        t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2")(ids)[0]
    assert ours.context.shape == (1, 256, TINY)
    torch.testing.assert_close(ours.context, t5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "columns"), [("sd3", [[9, 77 + 4]]), ("flux", [[4]])])
def test_a_vector_has_two_columns_in_sd3_and_one_in_flux_and_gets_a_gradient(
    loaded: dict, name: str, columns: list
) -> None:
    text, backbone = loaded[name].text, loaded[name].backbone
    layout = text.tokenize([PromptPiece("a photo of a"), PromptPiece(None), PromptPiece("bird")])
    vectors = {spec.name: torch.zeros(1, 1, spec.width, requires_grad=True) for spec in backbone.text_encoders}
    encoded = text.encode([layout], vectors)
    assert encoded.columns.tolist() == [columns]
    (encoded.context.square().sum() + encoded.pooled.square().sum()).backward()
    assert all(float(vector.grad.abs().sum()) > 0 for vector in vectors.values())
    # behind two chunks of CLIP, T5's columns move by a chunk
    long = text.tokenize([PromptPiece("a " * 80), PromptPiece(None)])
    first, *rest = (
        text.encode([long], {name: torch.zeros(1, 1, v.shape[-1]) for name, v in vectors.items()})
        .columns[0, 0]
        .tolist()
    )
    assert (first, rest) == ((77 + 6, [2 * 77 + 80]) if name == "sd3" else (80, []))


def test_one_safetensors_file_takes_the_place_of_the_folders_t5(copied, loaded: dict, tmp_path: Path) -> None:
    folder = copied("sd3")
    weights = load_file(folder / "text_encoder_3" / "model.safetensors")
    weights.pop("encoder.embed_tokens.weight", None)
    save_file(weights, tmp_path / "t5xxl.safetensors")
    shutil.rmtree(folder / "text_encoder_3")
    denoiser = load_denoiser(folder, device="cpu", dtype="fp32", t5=T5Place(tmp_path / "t5xxl.safetensors"))
    prompt = [denoiser.text.tokenize([PromptPiece("a red bird")])]
    assert torch.equal(denoiser.text.encode(prompt, None).context, loaded["sd3"].text.encode(prompt, None).context)


@pytest.mark.parametrize(
    ("lost", "columns", "zero"),
    [
        ("text_encoder_3", [9], None),
        ("text_encoder", [9, 81], slice(0, 32)),
        ("text_encoder_2", [9, 81], slice(32, 96)),
    ],
)
def test_sd3_without_one_text_encoder_says_so_and_goes_on_as_comfyui_does(
    copied, lost: str, columns: list, zero: slice | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied("sd3")
    shutil.rmtree(folder / lost)
    change(folder / "model_index.json", **{lost: [None, None]})
    with caplog.at_level(logging.WARNING):
        denoiser = load_denoiser(folder, device="cpu", dtype="fp32")
    assert f"has no text encoder {denoiser.text.missing[0]}" in caplog.text
    text = denoiser.text
    layout = text.tokenize([PromptPiece("a photo of a"), PromptPiece(None)])
    encoded = text.encode(
        [layout], {spec.name: torch.ones(1, 1, spec.width) for spec in denoiser.backbone.text_encoders}
    )
    assert encoded.columns.tolist() == [[columns]] and encoded.pooled.shape == (1, TINY)
    if zero is None:
        # no places of T5 at all, as in ComfyUI
        assert encoded.context.shape == (1, 77, TINY)
    else:
        assert encoded.context.shape == (1, 154, TINY)
        assert not encoded.context[:, :77, zero].any() and not encoded.pooled[:, zero].any()
        assert encoded.pooled.any()
    assert not text.word_vectors("bird")[text.missing[0]].any()


def drop(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "sd3 lists a text encoder that is not there": (
        "sd3", lambda folder: drop(folder, "text_encoder_3"),
        r"the text encoder text_encoder_3 \(t5xxl\) is missing; download it, or set base.text_encoder to .*to go without it, write",
    ),
    "flux without T5": ("flux", lambda folder: drop(folder, "text_encoder_2"), r"text_encoder_2 \(t5xxl\) is missing; download it, or set"),
    "flux without CLIP": ("flux", lambda folder: drop(folder, "text_encoder"), r"text_encoder \(clip_l\) is missing; download it$"),
    "no tokenizer": ("sd3", lambda folder: drop(folder, "tokenizer_3"), "tokenizer folder tokenizer_3 of t5xxl is missing"),
    "another class": (
        "sd3", lambda folder: change(folder / "transformer" / "config.json", _class_name="PixArtTransformer2DModel"),
        "the transformer is a PixArtTransformer2DModel, which is not supported: choose a Stable Diffusion 3",
    ),
    "another width of text": (
        "flux", lambda folder: change(folder / "transformer" / "config.json", joint_attention_dim=64),
        "reads text 64 wide, this T5 encoder gives states 96 wide: choose a T5 v1.1 XXL",
    ),
    "a CLIP of another model": (
        "flux", lambda folder: change(folder / "transformer" / "config.json", pooled_projection_dim=48),
        "pooled text 48 wide, but the text encoders give 96 and 32: the folder mixes parts",
    ),
    "another autoencoder": (
        "flux", lambda folder: change(folder / "transformer" / "config.json", in_channels=384),
        "the transformer takes 384 channels but the autoencoder gives 64: inpainting",
    ),
    "a shift of zero": (
        "sd3", lambda folder: change(folder / "scheduler" / "scheduler_config.json", shift=0),
        "shift is 0, a number above 0 is needed",
    ),
    "no flow": (
        "sd3", lambda folder: change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", prediction_type="v_prediction"),
        "its scheduler is a DDIMScheduler that predicts 'v_prediction', but this transformer was trained along a flow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_folder_that_does_not_fit_is_refused_with_one_error(copied, case: str) -> None:
    name, spoil, message = FAULTS[case]
    spoil(folder := copied(name))
    with pytest.raises(BestiaryError, match=message):
        read_transformer_folder(folder)


CLIP_L, CLIP_G, T5 = {"hidden_size": 768}, {"hidden_size": 1280}, {"d_model": 4096}
PUBLISHED = {
    "sd3": (
        {
            "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
        },
        {"shift": 3.0}, {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5},
    ),
    "flux": (
        {
            "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
        {"text_encoder": CLIP_L, "text_encoder_2": T5},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "shift", "billions"), [("sd3", 3.0, 2.2), ("flux", 3.158, 11.9)])
def test_configs_of_the_published_models_are_read(name: str, shift: float, billions: float, tmp_path: Path) -> None:
    """SD 3.5 medium and Flux.1 dev as their folders describe them; no weight of theirs is needed."""
    transformer, scheduler, text = PUBLISHED[name]
    vae = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
    for component, config in {"transformer": transformer, "vae": vae, **text}.items():
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text(json.dumps(config))
        (tmp_path / component / "model.safetensors").write_bytes(b"12345678")
        (tmp_path / component.replace("text_encoder", "tokenizer")).mkdir(exist_ok=True)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (tmp_path / "model_index.json").write_text("{}")
    folder = read_transformer_folder(tmp_path)
    # widths, sizes and grids are those of the record
    assert folder.backbone == BACKBONES[name] and not folder.missing
    assert folder.process.shift == pytest.approx(shift, abs=1e-3)
    with torch.device("meta"):
        model = FAMILIES[name][1].from_config(transformer)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(billions * 1e9, rel=0.02)


def test_broken_weights_and_a_narrow_t5_file_are_refused(copied, cascade, tmp_path: Path) -> None:
    folder = copied("sd3")
    narrow = cascade.first / "text_encoder" / "model.safetensors"
    with pytest.raises(
        BestiaryError, match="reads text 96 wide, this T5 encoder gives states 32 wide: choose a T5 v1.1 XXL"
    ):
        load_denoiser(folder, device="cpu", dtype="fp32", t5=T5Place(narrow))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BestiaryError, match=r"could not be loaded: .* Download the model folder again"):
        load_denoiser(folder, device="cpu", dtype="fp32")
    shard = tmp_path / "t5xxl.safetensors"
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(BestiaryError, match="t5xxl.safetensors could not be read"):
        load_denoiser(folder, device="cpu", dtype="fp32", t5=T5Place(shard))


def test_a_t5_file_for_a_model_without_t5_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        BestiaryError, match="base.text_encoder names a T5 encoder, but .* holds no model that reads one"
    ):
        load_denoiser(tiny_folder("bestiary-demo"), device="cpu", dtype="fp32", t5=T5Place(tmp_path / "t5.safetensors"))
