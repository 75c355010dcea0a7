"""Published files of stage-, layer- and time-wise inversion become prompt spectra: ProSpect, XTI (P+), NeTI, textual inversion.

Pickles are read through the allow-list of concepts/files/safe_pickle.py alone: nothing in them runs, and none of the libraries they
name is imported. Networks are baked into vectors in evaluation mode. Letters: S stages, L layers, V vectors, D width.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import BACKBONES, Backbone
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import read_header, read_tensors
from ...concepts.files.safe_pickle import Shell, load_inert
from ...concepts.spectrum.neti_mapper import LAYERS, NetiMapper
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.stage_bounds import StageBounds
from ...concepts.spectrum.stage_table import ProspectNetwork
from .embedding_file import chosen, read_embeddings
from .partcraft_files import holds_safetensors

PROSPECT_SHELLS = (
    "ldm.modules.embedding_manager.TransformerBlock", "ldm.modules.attention.CrossAttention",
    "ldm.modules.attention.FeedForward", "ldm.modules.attention.GEGLU", "torch.nn.modules.container.Sequential",
    "torch.nn.modules.container.ModuleList", "torch.nn.modules.dropout.Dropout", "torch.nn.modules.linear.Linear",
    "torch.nn.modules.linear.Identity", "torch.nn.modules.normalization.LayerNorm", "torch.nn.modules.activation.GELU",
)  # fmt: skip
"""Classes in ProSpect's `embeddings.pt` (zyxElsa/ProSpect @ 31314f1)."""
NETI_SHELLS = ("models.positional_encoding.NeTIPositionalEncoding", "models.positional_encoding.BasicEncoder")
"""Classes in NeTI's `mapper-steps-N.pt`."""
LAYER_KEY = re.compile(r"<?(.*?)-(\d{1,6})-(\d{1,6})>?")
_DEEPEST = 8
_MOST_NUMBERS = 1 << 28
_MOST_XTI_VECTORS = 1 << 16


def import_prospect(path: Path, words: str = "") -> PromptSpectrum:
    """ProSpect's `embeddings.pt`: the network baked into `(S, 1, D)`, in generation order.

    Args:
        path: the pickle.
        words: the initial words of its training, for people to read; their vector is in the file.

    Raises:
        BestiaryError: the pickle asks for anything but tensors and ProSpect's own classes, or holds no such network.
    """
    # shells of ProSpect's classes: attributes without code
    content = load_inert(path, PROSPECT_SHELLS)
    if not isinstance(content, Mapping) or not {"attention", "initial_embeddings"} <= content.keys():
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise BestiaryError(
            f"{path} is not a ProSpect file: it holds {found}, expected attention and initial_embeddings"
        )
    word = content["initial_embeddings"]
    if not isinstance(word, Tensor) or word.ndim != 2 or not len(word):
        raise BestiaryError(f"{path}: initial_embeddings is not a tensor (1, width)")
    backbone = _backbone_of_width(word.shape[-1], path)
    try:
        network = ProspectNetwork.from_published(word[:1], module_tensors(content["attention"]))
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault
    matrix = network.matrix()  # (S, 1, D), dropout off whatever the pickled module says
    return PromptSpectrum.from_matrix(
        backbone,
        matrix,
        StageBounds.equal(len(matrix)),
        neutral=word[:1],
        initial_words=words,
        provenance=_provenance("ProSpect", path),
    )


def import_xti(path: Path) -> PromptSpectrum:
    """An XTI (P+) file of cloneofsimo/promptplusplus: `<name-layer-j>` keys become `(1, L, V, D)`, layers in numeric order.

    Raises:
        BestiaryError: keys of layers are missing, or vectors have different widths.
    """
    tensors = _flat_tensors(path)
    rows: dict[tuple[int, int], Tensor] = {}
    for name, tensor in tensors.items():
        if match := LAYER_KEY.fullmatch(name):
            rows[int(match[2]), int(match[3])] = tensor.flatten().float()
    if not rows:
        raise BestiaryError(
            f"{path} is not an XTI file: none of its tensors ({', '.join(list(tensors)[:4])}) is named <name-layer-number>"
        )
    # every layer and vector must be there: a hole would be filled by nothing
    layers, vectors = (max(key[axis] for key in rows) + 1 for axis in (0, 1))
    # numbers of strangers are bounded before anything is counted with them
    places = itertools.product(range(layers), range(vectors)) if layers * vectors <= _MOST_XTI_VECTORS else ()
    lacking = [place for place in places if place not in rows]
    widths = sorted({len(row) for row in rows.values()})
    if layers * vectors != len(rows) or len(widths) > 1 or layers != LAYERS:
        seen = f"{layers} layers of {vectors} vectors, widths {widths}, missing {lacking[:3]}"
        raise BestiaryError(f"{path} does not hold all vectors of {LAYERS} layers: {seen}")
    matrix = torch.stack([torch.stack([rows[a, b] for b in range(vectors)]) for a in range(layers)])  # (L, V, D)
    # the name alone stands for an anchor word that no layer uses
    return PromptSpectrum.from_matrix(
        _backbone_of_width(widths[0], path),
        matrix.unsqueeze(0),
        StageBounds.equal(1),
        provenance=_provenance("XTI", path),
    )


def import_neti(path: Path, *, stages: int = 10, truncation: int | None = None) -> PromptSpectrum:
    """NeTI's `mapper-steps-N.pt`, evaluated in the middle of every stage at every layer: `(S, L, 1, D)`, and bypass vectors.

    Args:
        path: the mapper; `learned_embeds-steps-N.bin` beside it holds an unused word and is not needed.
        stages: equal stages to bake; 50 equals the authors' 50 timesteps.
        truncation: see NetiMapper.at.

    Raises:
        BestiaryError: the pickle asks for anything but tensors and NeTI's own classes, or holds no mapper.
    """
    content = load_inert(path, NETI_SHELLS)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise BestiaryError(f"{path} is not a NeTI mapper: it holds {found}, expected state_dict, cfg and encoder")
    try:
        mapper = NetiMapper(
            {str(name): t for name, t in content["state_dict"].items() if isinstance(t, Tensor)},
            _frequencies(content.get("encoder")),
            _target_norm(content.get("cfg")),
        )
        bounds = StageBounds.equal(stages)
        middles = [(a + b - 1) // 2 for a, b in zip(bounds.edges, bounds.edges[1:], strict=False)]
        output = mapper.grid(torch.tensor(middles), truncation)  # (S, 16, D) or (S, 16, 2 D)
    except (BestiaryError, RuntimeError) as fault:
        raise BestiaryError(f"{path}: {str(fault).splitlines()[0]}") from fault
    # outputs twice as wide as a text encoder hold vectors and bypass vectors side by side
    known = [backbone.vector_width for backbone in _single_encoder_backbones()]
    bypass = output.shape[-1] not in known
    width = output.shape[-1] // 2 if bypass else output.shape[-1]
    backbone = _backbone_of_width(width, path)
    own = output.unsqueeze(2)  # (S, L, 1, D or 2 D)
    return PromptSpectrum.from_matrix(
        backbone,
        own[..., :width],
        bounds,
        bypass={backbone.text_encoders[0].name: own[..., width:].contiguous()} if bypass else {},
        provenance=_provenance("NeTI", path) | {"truncation": truncation},
    )


def import_textual_inversion(path: Path, name: str | None = None) -> PromptSpectrum:
    """Textual inversion of any form of embedding_file.py: the same vectors `(1, V, D)` at every stage.

    Args:
        path: an embedding, or a LoRA that carries embeddings.
        name: which of several embeddings; None takes the only one.

    Raises:
        BestiaryError: no embedding of a known width is in the file, or several and none was named.
    """
    own, rows = chosen(read_embeddings(path), name, path)
    if len(rows) > 1:
        # SDXL: two encoders side by side, with as many vectors in each
        backbone = BACKBONES["sdxl"]
        parts = [rows[encoder.name].float() for encoder in backbone.text_encoders]
        widths = [part.shape[-1] for part in parts]
        if widths != [encoder.width for encoder in backbone.text_encoders] or len({len(part) for part in parts}) > 1:
            raise BestiaryError(
                f"{path}: clip_l and clip_g of shapes {[tuple(p.shape) for p in parts]} do not fit SDXL"
            )
        matrix = torch.cat(parts, dim=-1)  # (V, D)
    else:
        matrix = next(iter(rows.values())).float()
        backbone = _backbone_of_width(matrix.shape[-1], path)
    about = _provenance("textual inversion", path) | ({"name": own} if name is not None else {})
    return PromptSpectrum.from_matrix(backbone, matrix.unsqueeze(0), StageBounds.equal(1), provenance=about)


def module_tensors(module: object, prefix: str = "", depth: int = _DEEPEST) -> dict[str, Tensor]:
    """Tensors of any shape of a pickled module that was read as shells, named as its state would name them."""
    if not isinstance(module, Shell) or not depth:
        return {}
    found = {}
    # a module's tensors are where torch keeps them: parameters, buffers, submodules
    for kind in ("_parameters", "_buffers"):
        own = module.__dict__.get(kind)
        for name, tensor in (own or {}).items() if isinstance(own, Mapping) else ():
            if isinstance(tensor, Tensor):
                found[f"{prefix}{name}"] = tensor.detach()
    children = module.__dict__.get("_modules")
    for name, child in (children or {}).items() if isinstance(children, Mapping) else ():
        found |= module_tensors(child, f"{prefix}{name}.", depth - 1)
    return found


def _frequencies(encoder: object) -> Tensor | None:
    """`(n, 2)` of a Fourier encoder; None for the basic one."""
    found = encoder.__dict__ if isinstance(encoder, Shell) else {}
    w = found.get("w")
    if w is None and isinstance(found.get("_parameters"), Mapping):
        w = found["_parameters"].get("w")
    if w is not None and not isinstance(w, Tensor):
        raise BestiaryError(f"the encoder's frequencies are a {type(w).__name__}, no tensor")
    return None if w is None else w.detach()


def _target_norm(config: object) -> float | None:
    """Norm of outputs as the settings in the file say; None where they say none."""
    model = config.get("model") if isinstance(config, Mapping) else None
    norm = model.get("target_norm") if isinstance(model, Mapping) else None
    if norm is None:
        return None
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < 1e4:
        raise BestiaryError(f"model.target_norm of its settings is {norm!r}, no length of a vector")
    return float(norm)


def _flat_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of any shape of a file by name: safetensors, or a pickle of them."""
    if holds_safetensors(path):
        read_header(path)
        tensors = read_tensors(path)
    else:
        content = load_inert(path)
        tensors = (
            {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, Mapping) else {}
        )
    sound = {
        name: t.detach()
        for name, t in tensors.items()
        if t.is_floating_point() and t.ndim and t.numel() < _MOST_NUMBERS
    }
    if not sound:
        raise BestiaryError(f"{path} holds no vectors: no tensor of numbers in it")
    return sound


def _single_encoder_backbones() -> list[Backbone]:
    encoders = ((backbone, backbone.text_encoders) for backbone in BACKBONES.values())
    # a transformer with one encoder also reads its pooled vector; such files are none of its own
    return [backbone for backbone, held in encoders if len(held) == 1 and not held[0].pooled]


def _backbone_of_width(width: int, path: Path) -> Backbone:
    """The model family whose only text encoder has this width.

    Raises:
        BestiaryError: there is none; the message lists the widths there are.
    """
    known = {backbone.vector_width: backbone for backbone in _single_encoder_backbones()}
    if width not in known:
        listed = ", ".join(f"{n} ({backbone.name})" for n, backbone in known.items())
        raise BestiaryError(
            f"{path} holds vectors of width {width}, which no supported text encoder takes alone: {listed}. "
            "Vectors of 1280 belong to BERT's variant of ProSpect, or to one of SDXL's two encoders"
        )
    return known[width]


def _provenance(method: str, path: Path) -> dict[str, object]:
    return {"made_by": f"bestiary import, {method}", "source": Path(path).name}
