"""Stages of DeepFloyd IF in the trainer: against diffusers' own pipeline and UNet, their adapters, and how memory is used."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, PromptPiece
from bestiary.concepts.denoiser.lora_names import from_kohya, lora_layers
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.low_picture import GUIDE, LEVEL
from bestiary.trainer.model import backbones, if_denoiser, t5_text
from bestiary.trainer.model.if_denoiser import IFDenoiser, load_if
from bestiary.trainer.training.memory_estimate import StorageHighWater
from safetensors.torch import load_file, save_file

TEXTS = ("a photo of sks dog", "a photo of a dog", "")
CPU = torch.device("cpu")
Load = Callable[..., IFDenoiser]


@pytest.fixture
def load(cascade, tmp_path: Path) -> Load:
    """`load("first" | "second")` -> a stage in float32 that knows the three sentences."""

    def stage(which: str = "first", **options: object) -> IFDenoiser:
        path = Path(options.pop("path", getattr(cascade, which)))
        given = {"device": CPU, "dtype": torch.float32, **options}
        if which == "second":
            folders = {"text_encoder": cascade.first / "text_encoder", "tokenizer": cascade.first / "tokenizer"}
            given = {**folders, **given}
        return load_if(path, given.pop("texts", TEXTS), given.pop("cache", tmp_path / "texts"), **given)

    return stage


def _noised(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def _said(denoiser: IFDenoiser, *texts: str) -> object:
    return denoiser.text.encode([denoiser.text.tokenize([PromptPiece(text)]) for text in texts], None)


def _theirs(folder: Path) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()


def _extras(size: int) -> dict[str, torch.Tensor]:
    return {GUIDE: torch.rand(2, 3, size, size) * 2 - 1, LEVEL: torch.tensor([250, 7])}


@torch.no_grad()
def test_the_first_stage_predicts_the_noise_of_diffusers_without_its_variance(load: Load, cascade) -> None:
    denoiser = load()
    said = _said(denoiser, "a photo of SKS dog ", "")
    theirs = _theirs(cascade.first)(_noised(32), torch.tensor([9, 999]), encoder_hidden_states=said.context).sample
    ours = denoiser.network.predict(_noised(32), torch.tensor([0.01, 1.0]), said).prediction
    assert theirs.shape[1] == 6 and torch.allclose(ours, theirs[:, :3], atol=1e-6)
    assert (denoiser.backbone.name, denoiser.backbone.image_size, denoiser.stage) == ("if-i", 32, "I")


@torch.no_grad()
def test_the_second_stage_sees_its_low_picture_and_level(load: Load, cascade) -> None:
    denoiser, extras = load("second"), _extras(64)
    said = _said(denoiser, TEXTS[0], "").with_extras(**extras)
    inputs = torch.cat([_noised(64), extras[GUIDE]], 1)
    theirs = _theirs(cascade.second)(
        inputs, torch.tensor([9, 999]), encoder_hidden_states=said.context, class_labels=extras[LEVEL]
    ).sample
    times = torch.tensor([0.01, 1.0])
    assert torch.allclose(denoiser.network.predict(_noised(64), times, said).prediction, theirs[:, :3], atol=1e-6)
    with pytest.raises(BestiaryError, match="enlarges a picture, but was given none"):
        denoiser.network.predict(_noised(64), times, _said(denoiser, TEXTS[0], ""))


@torch.no_grad()
def test_texts_are_encoded_as_diffusers_pipeline_does(load: Load, cascade) -> None:
    from diffusers import IFPipeline
    from transformers import AutoTokenizer, T5EncoderModel

    pipeline = IFPipeline(
        tokenizer=AutoTokenizer.from_pretrained(cascade.first / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(cascade.first / "text_encoder", torch_dtype=torch.float32),
        unet=_theirs(cascade.first), scheduler=None, safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    denoiser = load(texts=["A Photo of SKS dog ", "", "word " * 90])
    for text in ("a photo of sks dog", "", "word " * 90):
        theirs, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, device=CPU, clean_caption=False)
        assert theirs.shape == (1, 77, 32)
        assert torch.equal(_said(denoiser, text).context, theirs)


def test_the_text_encoder_is_gone_before_the_unet_is_loaded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref] = []
    real_t5, real_unet, left = t5_text.load_t5, if_denoiser.read_unet, []

    def load_t5(*given: object) -> torch.nn.Module:
        model = real_t5(*given)
        alive.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    def read_unet(*given: object) -> torch.nn.Module:
        # nothing is collected here: it must be gone by itself
        left.append(sum(reference() is not None for reference in alive))
        return real_unet(*given)

    monkeypatch.setattr(t5_text, "load_t5", load_t5)
    monkeypatch.setattr(if_denoiser, "read_unet", read_unet)
    load()
    assert len(alive) > 10 and left == [0]
    # a second run finds the encodings and loads neither encoder nor tokenizer
    for name in ("load_t5", "load_tokenizer"):
        monkeypatch.setattr(t5_text, name, lambda *given: pytest.fail("loaded again"))
    assert torch.equal(_said(load(), TEXTS[0]).context, _said(load(), TEXTS[0]).context)


def test_encodings_are_made_again_where_anything_they_depend_on_changes(load: Load, cascade, tmp_path: Path) -> None:
    load()
    kept = lambda: {path.name for path in (tmp_path / "texts").iterdir()}  # noqa: E731
    (first,) = kept()
    load(texts=[text.upper() + " " for text in TEXTS])
    assert kept() == {first}
    load(dtype=torch.bfloat16)
    assert len(kept()) == 2
    load(texts=[*TEXTS, "a red bird"])
    assert len(kept()) == 3
    changed = shutil.copytree(cascade.first, tmp_path / "changed")
    (weights,) = (changed / "text_encoder").glob("*.safetensors")
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    load(path=changed)
    assert len(kept()) == 4
    # a broken file is made again
    (tmp_path / "texts" / first).write_bytes(b"broken")
    denoiser = load()
    assert _said(denoiser, TEXTS[0]).context.shape == (1, 77, 32)


class _Allocated(StorageHighWater):
    """Counts storages that hold bytes; those of the meta device hold none."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


def test_peak_memory_is_that_of_the_larger_part_not_of_both(cascade, tmp_path: Path) -> None:
    peaks = []
    sentences = t5_text.read_sentences(cascade.first / "tokenizer", TEXTS)
    for part in (
        lambda: t5_text.encode_sentences(cascade.first / "text_encoder", sentences, 32, CPU, torch.float32),
        lambda: if_denoiser.read_unet(cascade.first / "unet", torch.float32),
        lambda: load_if(cascade.first, TEXTS, tmp_path, device=CPU, dtype=torch.float32),
    ):
        with _Allocated() as counter:
            part()
        peaks.append(counter.peak)
    encoder, unet, both = peaks
    assert min(encoder, unet) > 3e6 and both <= 1.05 * max(encoder, unet) < 0.9 * (encoder + unet)


def test_twenty_four_adapters_on_six_projections_come_back_in_every_spelling(load: Load) -> None:
    denoiser = load()
    adapters = denoiser.network.adapters
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapters.add(LoraSpec(8, 16.0))
        for update in adapters.trained().values():
            update.up.data.normal_(0, 0.1)
    kohya = adapters.tensors()
    layers = lora_layers(kohya)
    ends = {re.split(r"_attentions_\d_", name)[1] for name in layers}
    assert len(layers) == 24 and ends == {"to_q", "to_k", "to_v", "to_out_0", "add_k_proj", "add_v_proj"}
    said, times = _said(denoiser, *TEXTS[:2]), torch.tensor([0.3, 0.7])
    trained = denoiser.network.predict(_noised(32), times, said).prediction
    adapters.unload()
    plain = denoiser.network.predict(_noised(32), times, said).prediction
    assert (trained - plain).abs().max() > 1e-2
    peft = from_kohya(kohya, "peft")
    mixed = {
        name.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if ".to_" in name else name: tensor
        for name, tensor in peft.items()
    }
    spellings = {
        "kohya": kohya,
        "mixed": mixed,
        **{name: from_kohya(kohya, name) for name in ("peft", "peft-plain", "diffengine", "diffusers")},
    }
    for name, tensors in spellings.items():
        assert adapters.load(tensors) == 24, name
        again = denoiser.network.predict(_noised(32), times, said).prediction
        assert (again - trained).abs().max() <= 1e-6, name
        adapters.unload()
    # keys of text alone
    text = {name: tensor for name, tensor in kohya.items() if "add_k_proj" in name}
    adapters.load(text)
    assert (denoiser.network.predict(_noised(32), times, said).prediction - plain).abs().max() > 1e-3


def test_targets_choose_layers_by_the_ends_of_their_names(load: Load) -> None:
    adapters = load().network.adapters
    names = adapters.add(LoraSpec(2, targets=("to_q", "add_embedding.pool.q_proj")))
    assert len(names) == 2 * 5
    adapters.unload()
    assert len(adapters.add(LoraSpec(2, self_attention=False))) == 2 * 16
    adapters.unload()
    with pytest.raises(BestiaryError, match="lora.targets names 'to_p'.*add_k_proj"):
        adapters.add(LoraSpec(2, targets=("to_p",)))


def test_checkpointing_changes_no_gradient(load: Load) -> None:
    grads = []
    for enabled in (False, True):
        denoiser = load()
        torch.manual_seed(0)
        learned = denoiser.network.adapters.add(LoraSpec(4, 4.0))
        denoiser.network.set_gradient_checkpointing(enabled)
        output = denoiser.network.predict(_noised(32), torch.tensor([0.3, 0.7]), _said(denoiser, *TEXTS[:2]))
        grads.append(torch.autograd.grad(output.prediction.square().mean(), list(learned.values()), allow_unused=True))
    pairs = [(a, b) for a, b in zip(*grads, strict=True) if a is not None]
    assert pairs and all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_attention_and_unknown_sentences_are_refused(load: Load) -> None:
    denoiser = load()
    with pytest.raises(BestiaryError, match="are not read"):
        request = AttentionRequest(torch.zeros(1, 1, 1, dtype=torch.long))
        denoiser.network.predict(_noised(32), torch.tensor([0.3, 0.7]), _said(denoiser, *TEXTS[:2]), request)
    with pytest.raises(BestiaryError, match="'a cat' was not encoded before"):
        denoiser.text.tokenize([PromptPiece("a cat")])
    with pytest.raises(BestiaryError, match="method.vectors = 0"):
        denoiser.text.tokenize([PromptPiece(None)])


def test_half_precision_files_alone_are_read(load: Load, cascade, tmp_path: Path) -> None:
    folder = shutil.copytree(cascade.first, tmp_path / "IF")
    for place in ("unet", "text_encoder"):
        (file,) = (folder / place).glob("*.safetensors")
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(_said(load(path=folder), TEXTS[0]).context, _said(load(), TEXTS[0]).context)


def _lose(folder: Path) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)


def _cut(folder: Path) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:5000])


def _eight_bits(folder: Path) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose, "not those of its config.*missing"),
        (_cut, "not a safetensors file, or is truncated|broken"),
        (_eight_bits, "F8_E4M3.*training needs the fp16, bf16 or fp32 weights"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "holds no text_encoder: set base.text_encoder"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "no T5 tokenizer.*set base.tokenizer"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(
    load: Load, cascade, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folder = shutil.copytree(cascade.first, tmp_path / "IF")
    change(folder)
    with pytest.raises(BestiaryError, match=words):
        load(path=folder)


def test_the_other_stage_is_refused_by_name(load: Load) -> None:
    with pytest.raises(
        BestiaryError, match="is stage I of DeepFloyd IF .3 input channels., but base.stage is II.*dreambooth_if_i"
    ):
        load(stage="II")
    with pytest.raises(BestiaryError, match="is stage II of DeepFloyd IF .6 input channels., but base.stage is I"):
        load("second", stage="I")


def test_commands_that_need_stable_diffusion_say_so(cascade) -> None:
    with pytest.raises(BestiaryError, match="DeepFloyd IF, which `bestiary train dreambooth` adapts"):
        backbones.load_denoiser(cascade.first)


def test_letters_without_a_piece_are_refused(load: Load) -> None:
    with pytest.raises(BestiaryError, match="no piece for letters in '<head:42>'.*head:42 in place"):
        load(texts=["a photo of <head:42>", ""])


def test_a_sentence_of_more_than_seventy_seven_pieces_is_cut_with_a_word(load: Load, caplog) -> None:
    denoiser = load(texts=["word " * 90, ""])
    layout = denoiser.text.tokenize([PromptPiece("word " * 90)])["t5xxl"]
    assert layout.ids.shape == (1, 77) and int(layout.ids[0, -1]) == 1 and int(layout.ids[0, -2]) != 1
    assert "reads 77 pieces of a prompt, this one has 91" in caplog.text and "non-commercial research" in caplog.text


def test_a_single_file_gives_the_states_of_the_folder(load: Load, cascade, tmp_path: Path) -> None:
    (weights,) = (cascade.first / "text_encoder").glob("*.safetensors")
    file = Path(shutil.copy(weights, tmp_path / "t5xxl.safetensors"))
    folder = shutil.copytree(cascade.first, tmp_path / "IF")
    shutil.rmtree(folder / "text_encoder")
    given = load(path=folder, text_encoder=file)
    assert torch.equal(_said(given, TEXTS[0]).context, _said(load(), TEXTS[0]).context)


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_scaled_eight_bit_encoders_are_read(load: Load, cascade, tmp_path: Path, ending: str) -> None:
    (weights,) = (cascade.first / "text_encoder").glob("*.safetensors")
    scaled = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(weights).items():
        if ".block." in name and tensor.ndim == 2 and "relative" not in name:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ending)] = scale.clone()
        else:
            scaled[name] = tensor
    save_file(scaled, tmp_path / "t5.safetensors")
    ours, theirs = (_said(one, TEXTS[0]).context for one in (load(text_encoder=tmp_path / "t5.safetensors"), load()))
    assert 0 < (ours - theirs).abs().mean() <= 0.05 * theirs.abs().mean()


def test_other_encoders_are_refused_with_what_they_are(load: Load, cascade, tmp_path: Path) -> None:
    (weights,) = (cascade.first / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    narrow = {**tensors, "shared.weight": torch.zeros(32_128, 16)}
    cases = {
        "is not a T5 encoder": {"text_model.weight": torch.zeros(4, 4)},
        "gives states 16 wide, this model reads 32": narrow,
        "token rows": {**tensors, "shared.weight": torch.zeros(100, 32)},
        "lacks 1 weights": {name: t for name, t in tensors.items() if name != "encoder.final_layer_norm.weight"},
        "torch.uint8": {**tensors, "encoder.final_layer_norm.weight": torch.zeros(32, dtype=torch.uint8)},
    }
    for number, (words, content) in enumerate(cases.items()):
        file = tmp_path / f"{number}.safetensors"
        save_file(content, file)
        with pytest.raises(BestiaryError, match=words):
            load(text_encoder=file)
    (tmp_path / "t5.gguf").write_bytes(b"GGUF")
    with pytest.raises(BestiaryError, match="GGUF"):
        load(text_encoder=tmp_path / "t5.gguf")
    with pytest.raises(BestiaryError, match="does not exist"):
        load(text_encoder=tmp_path / "nothing")


def test_a_spiece_model_without_protobuf_names_what_to_install(
    load: Load, cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(b"never read")
    monkeypatch.setattr(t5_text, "_can_import", lambda name: name != "google.protobuf")
    with pytest.raises(BestiaryError, match="needs google.protobuf.*pip install protobuf sentencepiece"):
        load(tokenizer=folder)


def test_a_spiece_model_is_read(load: Load, tmp_path: Path) -> None:
    """Trained here on a few lines, with T5's ids for padding, end and unknown."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    lines = tmp_path / "lines.txt"
    lines.write_text("a photo of sks dog\na photo of a dog\nthe red bird\n" * 20)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "spiece"), vocab_size=30, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    denoiser = load(tokenizer=folder, texts=["a photo of sks dog", ""])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ids = denoiser.text.tokenize([PromptPiece("a photo of sks dog")])["t5xxl"]
    assert ids.ids[0, : ids.tokens].tolist() == [*processor.encode("a photo of sks dog"), 1]


def test_a_lora_of_another_model_or_stage_is_refused(load: Load, tiny_denoiser: Callable[..., object]) -> None:
    first = load().network.adapters
    first.add(LoraSpec(2))
    of_if = first.tensors()
    plain = tiny_denoiser("sd15").network.adapters
    with pytest.raises(BestiaryError, match="the LoRA is for DeepFloyd IF, this model is Stable Diffusion"):
        plain.load(of_if)
    plain.add(LoraSpec(2))
    fresh = load().network.adapters
    with pytest.raises(BestiaryError, match="the LoRA is for Stable Diffusion, this model is DeepFloyd IF"):
        fresh.load(plain.tensors())
    # the stages of the real models have other widths
    wide = {
        name: torch.cat([tensor] * 2, -1) if name.endswith("down.weight") else tensor for name, tensor in of_if.items()
    }
    with pytest.raises(BestiaryError, match="do not fit a layer of shape.*trained for another base model"):
        fresh.load(wide)
