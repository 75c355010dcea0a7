"""Parts and spectra learned on tiny Stable Diffusion 3 and Flux folders: what is read, what learns, what files say, resuming, pictures, refusals."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import DICTIONARY_KIND, read_concept_file
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.trainer.composing.compose import ComposeSettings, compose_files
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.learning.parts import block_probe
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.learning.run.fit import TrainingStopped
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train import Trained
from bestiary.trainer.training.train_dreambooth import train_dreambooth
from bestiary.trainer.training.train_parts import PartTask, train_parts
from bestiary.trainer.training.train_spectrum import train_spectrum
from bestiary.trainer.training.training_setup import prepare
from PIL import Image

QUICK = {
    "images.size": 64, "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False,
    "run.log_every": 1, "run.save_every": 1, "run.tensorboard": False, "optimizer.steps": 2, "optimizer.accumulation": 1,
}  # fmt: skip
ENCODERS = {"sd3": ["clip_l", "clip_g", "t5xxl"], "flux": ["clip_l", "t5xxl"]}
SHIFTS = {"sd3": 3.0, "flux": 3.158193}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_discovery: Callable[..., Path]) -> Path:
    return make_discovery(tmp_path_factory.mktemp("transformers"), count=4)


@pytest.fixture(scope="module")
def settings_for(found: Path, tiny_folder: Callable[[str], Path]) -> Callable[..., TrainPartsSettings]:
    def build(backbone: str, out: Path, **flags: object) -> TrainPartsSettings:
        known = {
            **QUICK,
            "discovery.folder": found,
            "base.path": str(tiny_folder(backbone)),
            "run.out": out,
            "lora.rank": 2,
        }
        return load_recipe(None, known | {key.replace("__", "."): value for key, value in flags.items()})

    return build


@pytest.fixture(scope="module")
def trained(settings_for: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    flags = {
        "sd3": {"attention_loss__layers": ["auto"]},
        "flux": {
            "run__estimate_memory": True,
            "run__preview_every": 2,
            "run__preview_steps": 1,
            "run__preview_count": 1,
        },
    }
    return {
        name: train_parts(settings_for(name, tmp_path_factory.mktemp(name) / "run", **own))
        for name, own in flags.items()
    }


@pytest.fixture(scope="module")
def sd3(tiny_denoiser: Callable[[str], object]) -> object:
    """A model that nothing here changes."""
    return tiny_denoiser("sd3")


@pytest.mark.parametrize("name", ENCODERS)
def test_parts_are_learned_and_files_name_family_shift_and_every_encoder(trained: dict, name: str) -> None:
    dictionary = PartDictionary.load(trained[name].path)
    assert dictionary.backbone == name and list(dictionary.embeddings) == ENCODERS[name]
    header = read_concept_file(trained[name].path, DICTIONARY_KIND).metadata
    assert (header["backbone"], header["shift"]) == (name, SHIFTS[name])
    assert dictionary.provenance["prediction"] == "flow" and "without_text_encoders" not in dictionary.provenance
    still = {key for key, tensor in dictionary.lora.items() if key.endswith("lora_up.weight") and not tensor.any()}
    # SD3's last block gives no text: its queries of text change nothing
    assert still == (
        {"lora_transformer_transformer_blocks_2_attn_add_q_proj.lora_up.weight"} if name == "sd3" else set()
    )
    assert all(key.startswith("lora_transformer_") for key in dictionary.lora)
    record = json.loads((trained[name].run.path / "log.jsonl").read_text().splitlines()[-1])
    assert record["noise_loss"] > 0 and record["attention_loss"] > 0
    assert any(path.name == "parts_lora.safetensors" for path in trained[name].exports)


def test_previews_are_drawn_of_a_model_whose_memory_was_estimated(trained: dict) -> None:
    run = trained["flux"].run.path
    assert {path.name for path in (run / "samples").iterdir()} >= {"step-0000002.png", "step-0000002-attention.png"}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_methods_layers_are_read_and_tokens_and_adapters_get_gradients(
    settings_for, tmp_path, name: str, monkeypatch
) -> None:
    setup = prepare(PartTask(settings_for(name, tmp_path / "run", base__checkpointing=True)), keep_decoder=False)
    objective, network, seen = setup.objective, setup.denoiser.network, []
    predict = network.predict

    def watched(*given: object) -> object:
        output = predict(*given)
        seen.append(list(output.attention))
        return output

    monkeypatch.setattr(network, "predict", watched)
    objective(setup.batches.fixed([0, 1], 0.3)).total.backward()
    assert seen == [list(network.method_layers())]
    for update in network.adapters.trained().values():
        assert update.up.grad is not None
    table = next(parameter for parameter in objective.projector.parameters() if parameter.grad is not None)
    pieces = setup.denoiser.backbone.split_vector(
        table.grad.reshape(-1, table.shape[-1])[:, : setup.denoiser.backbone.vector_width]
    )
    assert all(float(piece.abs().sum()) > 0 for piece in pieces.values())


def test_a_stopped_training_goes_on_bit_for_bit(settings_for, trained: dict, tmp_path: Path, monkeypatch) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    settings = settings_for("sd3", tmp_path / "run", attention_loss__layers=["auto"])
    with pytest.raises(TrainingStopped, match="stopped at step 1"):
        train_parts(settings, on_progress=interrupt)
    # blocks were ranked by how the words head and body look at these pictures; a resumed run reads that again
    ranking = json.loads((tmp_path / "run" / "blocks.json").read_text())
    assert ranking["chosen"] == [ranking["ranked"][0]["layer"]] and len(ranking["ranked"]) == 3
    monkeypatch.setattr(block_probe, "rank_layers", None)
    assert resume_training(settings.run.out).path.read_bytes() == trained["sd3"].path.read_bytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_dictionary_is_composed_with_and_another_familys_is_refused(
    trained: dict, tiny_folder, name: str, tmp_path: Path
) -> None:
    asked = {
        "dictionaries": [trained[name].path], "prompts": ["a <head:red> bird"], "base": str(tiny_folder(name)), "out": tmp_path / "out",
        "size": 64, "steps": 1, "heat_maps": True, "device": "cpu", "dtype": "fp32",
    }  # fmt: skip
    paths = compose_files(ComposeSettings(**asked))
    assert [path.name for path in paths] == ["0001.png", "0001-attention.png"]
    pixels = np.asarray(Image.open(paths[0]))
    assert pixels.shape == (64, 64, 3) and pixels.std() > 0
    other = "flux" if name == "sd3" else "bestiary-demo"
    with pytest.raises(
        BestiaryError, match=f"was trained for {name}, but the base model is {other}: load a {name} model, or train"
    ):
        compose_files(ComposeSettings(**asked | {"base": str(tiny_folder(other))}))


def test_vectors_that_enter_behind_the_encoders_are_learned_and_composed_with(
    settings_for, tiny_folder, tmp_path: Path
) -> None:
    trained = train_parts(settings_for("flux", tmp_path / "run", method__insertion="output"))
    dictionary = PartDictionary.load(trained.path)
    assert read_concept_file(trained.path, DICTIONARY_KIND).metadata["insertion"] == dictionary.insertion == "output"
    assert [path.name for path in trained.exports] == ["parts_lora.safetensors", "README.txt"]
    # the vectors of the encoder that is pooled only stay where they started
    folder = tiny_folder("flux")
    asked = {
        "dictionaries": [trained.path],
        "prompts": ["a <head:red> bird"],
        "base": str(folder),
        "out": tmp_path / "out",
    }
    asked |= {"size": 64, "steps": 1, "device": "cpu", "dtype": "fp32", "text_encoder": folder / "text_encoder_2"}
    assert [path.name for path in compose_files(ComposeSettings(**asked))] == ["0001.png"]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_spectrum_is_learned_and_exported_for_every_encoder(name: str, tiny_folder, tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "a.png")
    flags = {
        "images.source": tmp_path / "a.png",
        "base.path": str(tiny_folder(name)),
        "run.out": tmp_path / "run",
        "method.stages": 2,
    }
    trained = train_spectrum(load_spectrum_recipe(None, QUICK | flags | {"optimizer.batch_size": 2}))
    spectrum = load_spectrum(trained.path)
    assert (spectrum.backbone, spectrum.stages, list(spectrum.embeddings)) == (name, 2, ENCODERS[name])
    # both stages have moved from their start in every encoder
    moved = spectrum.embeddings["t5xxl"] - spectrum.neutral["t5xxl"]
    assert all(float(stage.abs().sum()) > 0 for stage in moved)
    assert {path.name for path in trained.exports} >= {"spectrum.safetensors", "spectrum-stage-01.safetensors"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"images__size": 72}, "images.size = 72: sd3 reads pictures whose edges are multiples of 16 pixels; choose 64 or 80"),
        ({"method__min_snr": 5.0}, r"min-SNR weights \(gamma 5\) are defined for models that predict noise or velocity; this one is a flow model"),
        ({"attention_loss__layers": ["transformer_blocks.7.attn"]}, "transformer_blocks.7.attn do not exist in this model; it has transformer_blocks.0"),
        ({"attention_loss__downsampling": [4]}, r"attention_loss.downsampling: \[4\] do not occur in this model; it has \[2\]"),
    ],
)  # fmt: skip
def test_settings_that_no_flow_model_has_are_refused_before_pictures_are_encoded(
    settings_for, sd3: object, tmp_path, flags: dict, message: str, monkeypatch
) -> None:
    monkeypatch.setattr(PartTask, "load_denoiser", lambda _task: sd3)
    task = PartTask(settings_for("sd3", tmp_path / "run", images__cache=tmp_path / "cache", **flags))
    with pytest.raises(BestiaryError, match=message):
        prepare(task)
    assert not (tmp_path / "cache").exists()


def test_quantised_weights_and_dreambooth_are_refused(settings_for, tiny_folder, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "eight"
    (folder / "transformer").mkdir(parents=True)
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, folder / "transformer" / "a.safetensors")
    with pytest.raises(BestiaryError, match="holds weights of type F8_E4M3, which are for sampling"):
        prepare(PartTask(settings_for("sd3", tmp_path / "run", base__path=str(folder))))
    (tmp_path / "thing").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "thing" / "a.png")
    flags = {"images.instance": tmp_path / "thing", "base.path": str(tiny_folder("sd3")), "run.out": tmp_path / "run"}
    with pytest.raises(BestiaryError, match="base.path is a sd3 model, which `train dreambooth` does not adapt"):
        train_dreambooth(load_dreambooth_recipe(None, QUICK | flags))
