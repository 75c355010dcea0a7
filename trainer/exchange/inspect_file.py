"""What a file holds: ours in detail, the common files of others by their tensor names, all without running anything."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from ...concepts.denoiser.lora_forms import TRANSFORMER_PREFIX, UNET_PREFIX, check_forms
from ...concepts.denoiser.lora_names import (
    ALPHA,
    BUNDLED,
    DOWN,
    kohya_name,
    lora_layers,
    with_told_alphas,
)
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import (
    CODEBOOK_KIND,
    DICTIONARY_KIND,
    SPECTRUM_KIND,
    Header,
    TensorEntry,
    read_header,
    read_tensors,
)
from ...concepts.files.inert_pickle import Shell
from ...concepts.files.safe_pickle import load_inert, tensors_in
from ...concepts.name_search import number_ranges
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_dictionary.token_projector import infer_shape
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.spectrum.attribute_presets import stages_in_ranges, stages_text
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.spectrum_file import load_spectrum
from .embedding_file import Embedding, embeddings_of
from .import_spectrum import LAYER_KEY, NETI_SHELLS, PROSPECT_SHELLS
from .partcraft_files import COARSE, holds_safetensors, read_partcraft_file

Description = dict[str, object]

_SHOWN_TENSORS = 12
_SHOWN_NAMES = 8
_LONGEST_TEXT = 300
_MOST_EMBEDDED = 1 << 22
_EMBEDDING_WIDTHS = {
    768: "SD1.5 (or CLIP-L of SDXL)",
    1024: "SD2",
    1280: "CLIP-G of SDXL",
    128: "the embedded demo model",
}


def describe_file(path: Path) -> Description:
    """What a file holds, as plain values in reading order; "what" says it in a few words.

    Raises:
        BestiaryError: the file is missing, broken or unsafe.
    """
    path = Path(path)
    facts = _describe_safetensors(path) if holds_safetensors(path) else _describe_pickle(path)
    return {"file": str(path), "bytes": path.stat().st_size, **facts}


def description_text(description: Mapping[str, object], indent: str = "") -> str:
    """The same for reading in a terminal; unprintable characters of foreign names are escaped."""
    # nested records are indented, lists of records take one line each
    lines: list[str] = []
    for name, value in description.items():
        label = f"{indent}{_printable(str(name))}:"
        if isinstance(value, Mapping):
            lines += [label, description_text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(label)
            lines += [f"{indent}  {_in_one_line(item)}" for item in value]
        else:
            shown = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
            lines.append(f"{label} {_printable(shown)}")
    return "\n".join(line for line in lines if line)


def _describe_safetensors(path: Path) -> Description:
    header = read_header(path)
    # loading, not just listing: a file that is described has also been checked
    if header.kind == DICTIONARY_KIND:
        return _describe_dictionary(PartDictionary.load(path))
    if header.kind == CODEBOOK_KIND:
        return _describe_codebook(PartCodebook.load(path))
    if header.kind == SPECTRUM_KIND:
        return _describe_spectrum(load_spectrum(path))
    if header.kind is not None:
        settings = {name: _short(value) for name, value in header.concept.items() if name not in ("kind", "format")}
        return {"what": f"Bestiary {_short(header.kind)}", **settings, **_tensors(header.entries)}
    return _describe_foreign(header, path)


def _describe_dictionary(dictionary: PartDictionary) -> Description:
    parts = []
    for part, name in enumerate(dictionary.part_names):
        kinds = dictionary.kinds_of(part)
        if not kinds:
            continue
        entry: Description = {"part": _short(name), "number": part, "kinds": len(kinds)}
        entry["ids"] = number_ranges(kind + dictionary.id_base for kind in kinds)
        # a few names stand for all
        names = [_short(dictionary.kind_names[part][kind]) for kind in kinds if kind in dictionary.kind_names[part]]
        if names:
            entry["names"] = names[:_SHOWN_NAMES] + (
                [f"and {len(names) - _SHOWN_NAMES} more"] * (len(names) > _SHOWN_NAMES)
            )
        if part == dictionary.background:
            entry["background"] = True
        parts.append(entry)
    # one down matrix per adapted layer
    downs = [tensor for name, tensor in dictionary.lora.items() if name.endswith(DOWN)]
    return {
        "what": "Bestiary part dictionary",
        "backbone": dictionary.backbone,
        "tokens": len(dictionary.rows),
        "widths": {name: table.shape[1] for name, table in dictionary.embeddings.items()},
        "parts": parts,
        "lora": f"{len(downs)} layers, rank {_ranks([tensor.shape[0] for tensor in downs])}" if downs else "none",
        "thumbnails": len(dictionary.thumbnails.index) if dictionary.thumbnails else 0,
        "provenance": {_short(name): _short(value) for name, value in dictionary.provenance.items()},
    }


def _describe_codebook(codebook: PartCodebook) -> Description:
    parts = []
    for part, name in enumerate(codebook.part_names):
        named = codebook.kind_names[part] if codebook.kind_names else {}
        kinds = codebook.num_kinds[part] if codebook.fine else 0
        entry: Description = {"part": _short(name), "number": part, "kinds": kinds}
        if named:
            entry["names"] = [_short(text) for text in list(named.values())[:_SHOWN_NAMES]]
        if part == codebook.background:
            entry["background"] = True
        parts.append(entry)
    return {
        "what": "Bestiary part codebook",
        "features": {name: _short(value) for name, value in codebook.feature_spec.items()},
        "grid": "x".join(map(str, codebook.grid)),
        "channels": codebook.width,
        "parts": parts,
        "statistics": {name: _short(value) for name, value in codebook.statistics.items()},
    }


def _describe_spectrum(spectrum: PromptSpectrum) -> Description:
    """Stages, what they hold and which attribute they carry; vectors `(S, [L,] V, W)` by their norms."""
    means = {name: tensor.float().norm(dim=-1).mean() for name, tensor in spectrum.embeddings.items()}
    # norms tell whether vectors are as long as words are
    facts: Description = {
        "what": "Bestiary prompt spectrum",
        "backbone": spectrum.backbone,
        "stages": spectrum.stages,
        "begin_at": [f"{share:.4g}" for share in spectrum.bounds.fractions[:-1]],
        "layers": spectrum.layers or "all alike",
        "vectors": list(spectrum.counts) if spectrum.counts else spectrum.vectors,
        "norms": {name: round(float(norm), 4) for name, norm in means.items()},
        "initial_words": _short(spectrum.initial_words) or "unknown",
        "strength": "0 to 1" if spectrum.neutral else "1 only: no neutral vectors",
        "presets": {
            _short(name): stages_text(stages_in_ranges(ranges, spectrum.bounds)) or "no stage"
            for name, ranges in spectrum.presets.items()
        },
    }
    # stages at which words stand in place of vectors
    if spectrum.words:
        facts["words"] = {stages_text((stage,)): _short(text) for stage, text in spectrum.words.items()}
    return {**facts, "provenance": {_short(name): _short(value) for name, value in spectrum.provenance.items()}}


def _describe_foreign(header: Header, path: Path) -> Description:
    """Somebody else's safetensors file, by the names and shapes of its tensors."""
    entries, metadata = header.entries, {str(_short(name)): _short(text) for name, text in header.metadata.items()}
    facts = _recognised({name: entry.shape for name, entry in entries.items()})
    # small ones may be embeddings, and LoRA files may carry some
    bundled = any(name.startswith(BUNDLED) for name in entries)
    if bundled or (not facts and sum(math.prod(entry.shape) for entry in entries.values()) <= _MOST_EMBEDDED):
        found = embeddings_of(read_tensors(path), path.name.split(".")[0])
        shown = _describe_embeddings(found, "textual inversion embedding")
        facts = facts | {"embeddings": shown.get("tokens", []), "remedy": shown.get("remedy", "")} if facts else shown
    if facts.get("what") == "LoRA":
        facts |= _scale_and_form(entries, header.metadata)
    if not facts:
        return {"what": "safetensors file of an unknown kind", "metadata": metadata, **_tensors(entries)}
    # training logs run to megabytes; what names the model is kept
    kept = {name: text for name, text in metadata.items() if name.startswith(("modelspec.", "ss_base", "ss_network"))}
    return {**facts, **({"metadata": kept} if kept else {})}


def _recognised(shapes: Mapping[str, tuple[int, ...]]) -> Description:
    """A common kind of file, facts by tensor names and shapes such as `(n, width)`; empty if none fits."""
    if any((kohya_name(name) or "").endswith(DOWN) for name in shapes):
        return _describe_lora(shapes)
    if shapes and all(LAYER_KEY.fullmatch(name) for name in shapes):
        return {
            "what": "XTI (P+) embedding",
            "vectors": len(shapes),
            "remedy": "bestiary import xti turns it into a spectrum",
        }
    if COARSE in shapes:
        return {"what": "PartCraft k-means", "parts": shapes[COARSE][0], "channels": shapes[COARSE][1]}
    if {"embedding.weight", "pe"} <= set(shapes):
        # shapes are all it needs, so nothing of a large file is read
        shape = infer_shape({name: torch.empty(size, device="meta") for name, size in shapes.items()})
        counts = {"parts": shape.num_parts, "kinds": shape.num_kinds, "width": shape.width, "depth": shape.depth}
        return {"what": "PartCraft mapper", **counts, "remedy": "bestiary import partcraft turns it into a dictionary"}
    return {}


def _describe_embeddings(found: Mapping[str, Embedding], what: str) -> Description:
    """Embeddings, tensors `(n, W)`, of a known width; empty where one is of another."""
    rows = [(name, encoder, tensor) for name, pair in found.items() for encoder, tensor in pair.items()]
    if not rows or any(tensor.shape[-1] not in _EMBEDDING_WIDTHS for _, _, tensor in rows):
        return {}
    tokens = [
        f"{_short(encoder or name)}: {len(tensor)} of width {tensor.shape[-1]}, {_EMBEDDING_WIDTHS[tensor.shape[-1]]}"
        for name, encoder, tensor in rows
    ]
    remedy = f"bestiary import textual-inversion turns {'one' if len(found) > 1 else 'it'} into a spectrum"
    return {"what": what, "tokens": tokens, "remedy": remedy + (", chosen with --name" if len(found) > 1 else "")}


def _describe_lora(shapes: Mapping[str, tuple[int, ...]]) -> Description:
    downs = {name: shape for name, shape in shapes.items() if (kohya_name(name) or "").endswith(DOWN)}
    modules = [kohya_name(name) or "" for name in downs]
    # one down matrix per layer: their first dimension is the rank
    return {
        "what": "LoRA",
        "naming": _naming(next(iter(downs))),
        "layers": len(downs),
        "rank": _ranks([shape[0] for shape in downs.values()]),
        "text_encoder_layers": sum(module.startswith("lora_te") for module in modules),
        "alpha": "stored"
        if any((kohya_name(name) or "").endswith(ALPHA) for name in shapes)
        else "not stored: scale 1",
        "example": _short(next(iter(downs))),
    }


def _scale_and_form(names: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> Description:
    """What only the header says of a LoRA's scale, and whether it holds more than plain pairs `(r, in)`, `(out, r)`."""
    facts: Description = {}
    is_transformer = any((kohya_name(name) or "").startswith(TRANSFORMER_PREFIX) for name in names)
    prefix = TRANSFORMER_PREFIX if is_transformer else UNET_PREFIX
    downs = {
        name: torch.empty(1).expand(entry.shape)
        for name, entry in names.items()
        if entry.shape and 0 not in entry.shape
    }
    try:
        with_alphas = with_told_alphas(downs, metadata)
        if with_alphas.keys() - downs.keys():
            scales = sorted({round(layer.scale, 4) for layer in lora_layers(with_alphas, prefix).values()})
            facts["alpha"] = f"in the header: scale {', '.join(map(str, scales[:4]))}"
        check_forms(names, prefix)
    except BestiaryError as fault:
        facts["beware"] = str(fault)
    return facts


def _naming(name: str) -> str:
    marks = (
        ("lora_unet_", "kohya"), ("lora_te", "kohya"), (".processor.", "PartCraft and old diffusers"),
        (".lora_A", "peft"), (".lora_layer", "old diffusers (lora_layer)"), (".lora.", "old diffusers (lora)"),
    )  # fmt: skip
    return next((naming for mark, naming in marks if mark in name), "unusual")


def _describe_pickle(path: Path) -> Description:
    """A torch file: PartCraft's, an embedding of AUTOMATIC1111, or whatever tensors it holds."""
    # one unsafe name anywhere in it, and nothing is described
    content = load_inert(path, (*PROSPECT_SHELLS, *NETI_SHELLS))
    if isinstance(content, Mapping) and {"attention", "initial_embeddings"} <= content.keys():
        remedy = "bestiary import prospect bakes it; as an embedding in other programs it is only its initial word"
        return {"what": "ProSpect network", "remedy": remedy, **_tensors(_entries(content))}
    if isinstance(content, Mapping) and {"state_dict", "encoder"} <= content.keys():
        return {"what": "NeTI mapper", "remedy": "bestiary import neti bakes it", **_tensors(_entries(content))}
    # shapes of the one table that matters
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping | Shell):
        found = tensors_in(content["string_to_param"])
        facts = {f"{_short(name.rpartition('.')[2])}": list(t.shape) for name, t in found}
        return {
            "what": "textual inversion embedding (AUTOMATIC1111)",
            "name": _short(content.get("name")),
            "tokens": facts,
        }
    if isinstance(content, Mapping) and "coarse_kmeans" in content:
        return _recognised({name: tuple(t.shape) for name, t in read_partcraft_file(path).tensors.items()})
    # nobody's file that we know: what its tensors look like may still say something
    tensors = _entries(content)
    facts = _recognised({name: entry.shape for name, entry in tensors.items()})
    if facts.get("what") == "LoRA":
        facts |= _scale_and_form(tensors, {})
    facts = facts or _describe_embeddings(
        embeddings_of(content, path.name.split(".")[0]), "textual inversion embedding"
    )
    return facts or {"what": f"torch file of an unknown kind ({type(content).__name__})", **_tensors(tensors)}


def _entries(content: object) -> dict[str, TensorEntry]:
    """Type and shape of every tensor in nested containers and shells, by its dotted path."""
    return {name: TensorEntry(str(t.dtype)[6:], tuple(t.shape)) for name, t in tensors_in(content)}


def _tensors(entries: Mapping[str, TensorEntry]) -> Description:
    """How many tensors there are, and name, type and shape of the first."""
    shown = [
        {"name": _short(name), "type": entry.dtype, "shape": list(entry.shape)}
        for name, entry in list(entries.items())[:_SHOWN_TENSORS]
    ]
    return {"tensors": len(entries), "first_tensors": shown}


def _ranks(ranks: list[int]) -> str:
    return ", ".join(str(rank) for rank, _ in Counter(ranks).most_common(4))


def _short(value: object) -> object:
    """Numbers as they are, everything else as text of a few lines at most."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}... ({len(text):,} characters)"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _in_one_line(item: Mapping[str, object]) -> str:
    pairs = [f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in item.items()]
    return _printable("; ".join(pairs))
