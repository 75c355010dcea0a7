"""Registers the pack as `bestiary` the way ComfyUI loads one: without its folder on the module search path."""

import importlib.util
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parent.parent


def _register_pack() -> None:
    spec = importlib.util.spec_from_file_location(
        "bestiary", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["bestiary"] = module
    spec.loader.exec_module(module)


# `python -m pytest` puts the working folder first on the search path, where our nodes/ would hide ComfyUI's nodes.py
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT.resolve()]
_register_pack()
# a shell that starts us in the background has Ctrl-C ignored, and every child would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, since sums of several have no fixed order, and torch's generator at seed 0."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prompt_rules() -> dict:
    """The cases of fixtures/prompt_rules.json, which the server's tests and the browser's read."""
    return json.loads((ROOT / "tests" / "fixtures" / "prompt_rules.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def ruled_dictionaries(prompt_rules: dict) -> dict:
    """Name -> the part dictionary that the cases describe; kinds are written there by the numbers people type."""
    import torch
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

    made = {}
    for name, facts in prompt_rules["dictionaries"].items():
        kinds = [
            {int(number) - facts["id_base"]: kind for number, kind in part["kinds"].items()} for part in facts["parts"]
        ]
        rows = torch.tensor([(part, kind) for part, named in enumerate(kinds) for kind in named])  # (R, 2)
        made[name] = PartDictionary(
            backbone="bestiary-demo",
            part_names=tuple(part["name"] for part in facts["parts"]),
            kind_names=tuple({kind: text for kind, text in named.items() if text is not None} for named in kinds),
            background=facts["background"],
            rows=rows,
            embeddings={"clip_l": torch.ones(len(rows), 128)},
            id_base=facts["id_base"],
        )
    return made


IF_TEXT_WIDTH = 32
IF_WORDS = ("a", "photo", "of", "sks", "dog", "the", "red", "bird", "in", "bucket", "word")


class Cascade(NamedTuple):
    """Folders of the two stages of a tiny DeepFloyd IF, random weights, as diffusers and transformers save them."""

    first: Path
    second: Path


def _if_unet(stage: int) -> "torch.nn.Module":
    from diffusers import UNet2DConditionModel

    second = {
        "sample_size": 64,
        "layers_per_block": [1, 2],
        "in_channels": 6,
        "class_embed_type": "timestep",
        "mid_block_scale_factor": 1.414,
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 32,
    }
    config = {
        "sample_size": 32,
        "layers_per_block": 1,
        "block_out_channels": [32, 64],
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "cross_attention_dim": 32,
        "encoder_hid_dim": IF_TEXT_WIDTH,
        "attention_head_dim": 8,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
    }
    return UNet2DConditionModel(**{**config, **(second if stage == 2 else {})})


def _write_t5_tokenizer(folder: Path) -> None:
    """A tokenizer of T5's kind that knows a few words and the letters, but no `<`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((f"▁{word}", -2.0) for word in IF_WORDS)]
    pieces += [(letter, -8.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789:>"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 77}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="session")
def t5_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer of T5's kind that knows a few words and the letters."""
    folder = tmp_path_factory.mktemp("t5") / "tokenizer"
    _write_t5_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """Stage I with its T5 encoder and tokenizer, stage II without them."""
    import torch
    from diffusers import DDPMScheduler
    from transformers import T5Config, T5EncoderModel

    root = tmp_path_factory.mktemp("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for stage, name in ((1, "IF-I-tiny"), (2, "IF-II-tiny")):
            _if_unet(stage).save_pretrained(root / name / "unet")
            scheduler = DDPMScheduler(
                num_train_timesteps=1000,
                beta_schedule="squaredcos_cap_v2",
                variance_type="learned_range",
                thresholding=True,
                dynamic_thresholding_ratio=0.95,
                sample_max_value=1.0,
            )
            scheduler.save_pretrained(root / name / "scheduler")
            if stage == 2:
                DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
                    root / name / "image_noising_scheduler"
                )
        config = T5Config(
            vocab_size=32_128,
            d_model=IF_TEXT_WIDTH,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        T5EncoderModel(config).save_pretrained(root / "IF-I-tiny" / "text_encoder")
    _write_t5_tokenizer(root / "IF-I-tiny" / "tokenizer")
    return Cascade(root / "IF-I-tiny", root / "IF-II-tiny")
