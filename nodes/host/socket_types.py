"""The socket types of the pack and the records passed through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

if TYPE_CHECKING:
    from ...concepts.part_dictionary.part_dictionary import PartDictionary
    from ...concepts.part_map.part_codebook import PartCodebook
    from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
    from ...scenes.collage import CollageOptions, Scene
    from ...scenes.scene_layout import SceneLayout
    from ...scenes.subject import Subject

DictionarySocket = io.Custom("BESTIARY_DICTIONARY")
PartSocket = io.Custom("BESTIARY_PART")
CodebookSocket = io.Custom("BESTIARY_CODEBOOK")
PartMapsSocket = io.Custom("BESTIARY_PART_MAPS")
SpectrumSocket = io.Custom("BESTIARY_SPECTRUM")
AttentionSocket = io.Custom("BESTIARY_ATTENTION")
TrainingSetSocket = io.Custom("BESTIARY_TRAINING_SET")
SubjectsSocket = io.Custom("BESTIARY_SUBJECTS")
LayoutsSocket = io.Custom("BESTIARY_LAYOUTS")
ScenesSocket = io.Custom("BESTIARY_SCENES")
BoundingBoxSocket = io.Custom("BOUNDING_BOX")
"""ComfyUI's own boxes, which older ones have no word for."""
LayersSocket = io.Custom("LAYERS")
"""ComfyUI's own document of layers, likewise."""

PARTS_PLACE = "{parts}"
"""Placeholder in a prompt for the linked parts."""
WORD_PLACE = "{word}"
"""Placeholder in the text of a sweep for the word."""
ALL_PARTS = "all"
"""Value for a part input: every part of a dictionary except the background."""


@dataclass(frozen=True)
class NamedDictionary:
    """A dictionary with its name in prompts: value of a BESTIARY_DICTIONARY socket."""

    name: str
    dictionary: PartDictionary = field(repr=False)


@dataclass(frozen=True)
class NamedSpectrum:
    """A spectrum with its name in prompts: value of a BESTIARY_SPECTRUM socket."""

    name: str
    spectrum: PromptSpectrum = field(repr=False)


@dataclass(frozen=True)
class ChosenPart:
    """One part with its kind or blend of kinds: an element of `ChosenParts`, the value of a BESTIARY_PART socket."""

    dictionary: str
    """Name of its dictionary."""
    part: str
    kind: str
    """In prompt syntax: "cardinal", "17" or "17*0.6+18*0.4"."""
    weight: float = 1.0
    """Prompt weight, 1 is neutral."""
    vector: Tensor | None = field(default=None, repr=False)
    """`(D,)` concatenated over the text encoders, for a kind that is not in a dictionary; None looks it up."""


@dataclass(frozen=True)
class ChosenParts:
    """Parts in the order of the prompt."""

    parts: tuple[ChosenPart, ...]


@dataclass(frozen=True)
class NamedCodebook:
    """A codebook with its origin: value of a BESTIARY_CODEBOOK socket."""

    name: str
    codebook: PartCodebook = field(repr=False)
    origin: object = field(default=None, repr=False)
    """Its discovery, which this reference keeps alive; None for a codebook from a file."""


SPANS_KEY = "bestiary_parts"
"""Key in the options of a conditioning for its tuple of `PartSpan`s."""
WORDS_KEY = "bestiary_words"
"""Key for its `PromptWords`: where the plain words of its prompt stand."""


@dataclass(frozen=True)
class PartSpan:
    """Position of one mention of a part in a conditioning."""

    label: str
    """Name in the prompt, such as "head:cardinal"."""
    part: str
    """Name of the part alone, such as "head"."""
    positions: tuple[int, ...]
    """Positions in the context: in the concatenated chunks, chunk * 77 + position, and of T5 in SD3 behind those."""
    is_word: bool = False
    """True for a plain word of the prompt, all its mentions together."""


@dataclass(frozen=True)
class SceneSubjects:
    """What scenes are made of: what a BESTIARY_SUBJECTS socket carries."""

    subjects: tuple[Subject, ...] = field(repr=False)
    """One of each name, in the order in which they were added."""
    others: tuple[Subject, ...] = field(default=(), repr=False)
    """Further pictures of them, under the same names."""


@dataclass(frozen=True)
class SceneLayouts:
    """Layouts of the same subjects on canvases of one size: what a BESTIARY_LAYOUTS socket carries."""

    layouts: tuple[SceneLayout, ...]
    called: Mapping[str, str]
    """What prompts call each subject, by its name."""
    place: str = ""
    """Words for the place, such as `in a garden`, where a layout's author gave them."""


@dataclass(frozen=True)
class ComposedScenes:
    """Scenes and how they were composed: what a BESTIARY_SCENES socket carries."""

    scenes: tuple[Scene, ...] = field(repr=False)
    options: CollageOptions
