"""Components of a model folder, loaded by diffusers and transformers: weights, tokenizers, and what libraries say meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import ModelMixin
from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import read_header
from .text_conditioning import Tokenizer

Placed = TypeVar("Placed", bound=nn.Module)


def placed(module: Placed, device: torch.device, layout: torch.memory_format) -> Placed:
    """The module itself, on a device and in a memory layout."""
    return module.to(device).to(memory_format=layout)


def load_component(kind: type[Placed], folder: Path, dtype: torch.dtype) -> Placed:
    """One component of diffusers or transformers; half-precision variants are taken where no full one lies there."""
    # diffusers says torch_dtype, newer versions of transformers say dtype
    argument = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
    if argument == "dtype" and not _transformers_takes_dtype():
        argument = "torch_dtype"
    # said outright: left open, the libraries complain in the log about the format that is not there
    safe = any(entry.suffix == ".safetensors" for entry in folder.iterdir())
    options = {"variant": weights_variant(folder), "use_safetensors": safe, "local_files_only": True, argument: dtype}
    # both libraries have this one method, and no type in common that names it
    library: Any = kind
    return library.from_pretrained(folder, **options)


def _transformers_takes_dtype() -> bool:
    """transformers renamed `torch_dtype` to `dtype` in 4.56."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return (major, minor) >= (4, 56)


def weights_variant(folder: Path) -> str | None:
    """ "fp16" where the folder has only weights of that variant."""
    names = [entry.name for entry in folder.iterdir() if entry.suffix in (".safetensors", ".bin")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def refuse_quantised(folder: Path) -> None:
    """Make sure that a folder's weights can be trained on.

    Raises:
        BestiaryError: they are 8-bit or smaller, whose scales training does not know.
    """
    for path in sorted(folder.glob("*.safetensors")):
        kinds = {entry.dtype for entry in read_header(path).entries.values()}
        small = sorted(kind for kind in kinds if kind.startswith(("F8", "I8", "U8", "F4", "I4")))
        if small:
            raise BestiaryError(
                f"{path} holds weights of type {', '.join(small)}, which are for sampling: training needs the fp16, bf16 or fp32 weights of "
                "this model"
            )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers 5 draws a bar for every model it loads; diffusers warns of keys of AutoencoderTiny's own config."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    level = diffusers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's own tokenizer, or whatever a tokenizer.json describes."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    raise BestiaryError(
        f"{folder} holds neither vocab.json with merges.txt nor tokenizer.json: download the model again"
    )
