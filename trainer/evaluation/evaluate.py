"""Judges part dictionaries: do pictures of a prompt show the parts that the prompt names?

Pictures are made of the parts of single pictures learned from (reconstruction) and of mixes of 1 to 4 of them; the
codebook that found the parts looks at the results. EMR is the share of prompted parts seen as exactly the kind asked
for, CoSim the cosine between kind seen and kind asked for (PartCraft, arXiv 2407.04604, section 4).
"""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import check_writable, write_text
from ...concepts.files.concept_names import name_of_file
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT
from ..composing.compose import add_adapters, base_of
from ..composing.picture_making import PictureOrder, SamplingChoice, check_backbone, make_pictures
from ..discovery.feature_sources import build_feature_source
from ..learning.denoiser.transformer_folder import T5Place
from ..learning.discovery.discovery_folder import Discovery
from ..learning.parts.training_kinds import class_kinds, discovered_kinds, read_classes
from ..model.backbones import EMBEDDED_BACKBONES, load_denoiser
from ..model.sampling import SamplingDenoiser
from .cases import TestCase, mix_cases, reconstruction_cases
from .class_reading import ClassReading
from .page import write_evaluation_page
from .picture_judge import PictureJudge, Sight
from .results import Evaluation, TestResult
from .scores import score_pictures

logger = logging.getLogger(__name__)

PROMPT = "a photo of a"
"""Words before the part tokens, as in the templates of training."""
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
StageReport = Callable[[str], ProgressCallback]
"""Name of a stage -> callback of (done, total)."""


class EvaluateSettings(BaseModel):
    """Settings of `bestiary evaluate parts`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dictionary: Path
    """The part dictionary to be judged."""
    discovery: Path
    """The discovery it was trained on."""
    baselines: dict[str, Path] = Field(default_factory=dict)
    """Other dictionaries of the same discovery, judged beside it, by the name to show."""
    labels: Path | None = None
    """CSV with the columns path and class, for dictionaries that were trained on classes."""
    base: str | None = None
    """Base model folder or `demo`; None takes the one the dictionary was trained on."""
    out: Path | None = None
    """Folder of the result; None makes one named after the dictionary."""
    count: int = Field(default=96, ge=1, le=100_000)
    """Pictures of each test."""
    most_sources: int = Field(default=4, ge=1, le=16)
    """Mixes of 1 to this many pictures are tested, as far as there are parts."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the tests and of the pictures."""
    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=7.5, ge=0, le=100)
    """Classifier-free guidance."""
    device: str = "auto"
    """Where to run."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision."""
    text_encoder: Path | None = None
    """SD3 and Flux.1: folder or safetensors file of the T5 encoder; None takes the model folder's own."""
    tokenizer: Path | None = None
    """Likewise folder of T5's tokenizer."""


class PartsEvaluator:
    """One discovery, one base model and one plan of tests; any number of dictionaries."""

    def __init__(
        self,
        discovery: Discovery,
        denoiser: SamplingDenoiser,
        *,
        count: int,
        seed: int,
        choice: SamplingChoice,
        most_sources: int = 4,
        tests: Sequence[str] | None = None,
        labels: Path | None = None,
    ) -> None:
        """Plan the tests; `tests` names those to run, None runs all. `labels` as in EvaluateSettings."""
        # shared by all dictionaries: discovery, model, tests and what real pictures look like
        self._labels = labels
        self.discovery, self.denoiser, self.choice = discovery, denoiser, choice
        # the source reads the bare model: adapters are on it only while pictures are made
        source = build_feature_source(dict(discovery.codebook.feature_spec), _reader(discovery.codebook, denoiser))
        self.judge = PictureJudge(discovery.codebook, source)
        self.tests = plan_tests(discovery, count, seed, most_sources)
        if tests is not None:
            self.tests = {name: self.tests[name] for name in tests}
        # real pictures are looked at once, whatever tests ask for them
        sources = sorted({picture for cases in self.tests.values() for case in cases for picture in case.pictures})
        seen = self.judge.look_at_files([discovery.image_paths[picture] for picture in sources])
        self.real = {picture: seen.rows([row]) for row, picture in enumerate(sources)}

    def ceiling(self) -> dict[str, Any]:
        """What the real pictures score themselves, as they are and after the base model's autoencoder."""
        pictures = list(self.real)
        codes = self.discovery.maps.codes
        # every real picture, asked for with its own codes: the codebook's own agreement with itself
        cases = [TestCase(tuple(codes[picture].tolist()), _all_from(picture, codes), 0) for picture in pictures]
        size = self.denoiser.backbone.image_size
        images = self.judge.read([self.discovery.image_paths[picture] for picture in pictures], size)
        seen = Sight.joined([self.real[picture] for picture in pictures])
        again = self.judge.look(reencoded(self.denoiser, images))
        codebook = self.discovery.codebook
        return {
            "real": score_pictures(cases, seen, codebook, self.real),
            "reencoded": score_pictures(cases, again, codebook, self.real),
        }

    def run(self, name: str, dictionary: PartDictionary, report: StageReport) -> dict[str, TestResult]:
        """All tests of one dictionary; its adapters are on the denoiser only while pictures are made."""
        check_same_discovery(name, dictionary, self.discovery.codebook)
        # dictionaries of classes are judged by classes
        reading = self._class_reading(name, dictionary) if dictionary.provenance.get("ids") == "class" else None
        results = {}
        for test, planned in self.tests.items():
            cases = planned if reading is None else [reading.ask(case) for case in planned]
            orders = [PictureOrder(prompt_of(case, dictionary, self.discovery.codebook), case.seed) for case in cases]
            # make the pictures (N, 3, H, W) with adapters, look at them without
            add_adapters(self.denoiser, {name: dictionary}, 1.0)
            pictures = make_pictures(
                self.denoiser,
                {name: dictionary},
                orders,
                self.choice,
                attention=True,
                on_progress=report(f"{name}: {test}"),
            )
            self.denoiser.network.adapters.unload()
            sight = self.judge.look(torch.stack([picture.image for picture in pictures]))
            sight = sight if reading is None else reading.read(sight)
            scores = score_pictures(cases, sight, reading or self.discovery.codebook, self.real, pictures)
            results[test] = TestResult(cases, pictures, sight, scores)
        return results

    def _class_reading(self, name: str, dictionary: PartDictionary) -> ClassReading:
        """Classes of all pictures learned from, and the mean features `(K, M, d)` of their parts."""
        if self._labels is None:
            raise BestiaryError(f"dictionary {name} was trained on classes: give --labels, the table that named them")
        names = [str(path.relative_to(self.discovery.images_folder)) for path in self.discovery.image_paths]
        kinds = discovered_kinds(self.discovery.codebook, self.discovery.maps)
        kinds = class_kinds(kinds, read_classes(self._labels, names))
        for part in (part for part in range(len(kinds.part_names)) if part != kinds.background):
            strange = set(kinds.kind_names[part].items()) ^ set(dictionary.kind_names[part].items())
            if strange:
                raise BestiaryError(
                    # the same number must mean the same class in the table and in the dictionary
                    f"{self._labels} and dictionary {name} number the classes of {kinds.part_names[part]} differently, "
                    f"for example {sorted(strange)[0][1]!r}: give the table it was trained with"
                )
        sight = self.judge.look_at_files(self.discovery.image_paths)
        return ClassReading.fit(self.discovery.codebook, torch.from_numpy(kinds.codes), sight.part_means)


def evaluate_files(settings: EvaluateSettings, report: StageReport) -> Path:
    """Judge dictionaries and write `evaluation.json` and a page, whose path is returned.

    Raises:
        BestiaryError: files that do not belong together, or a folder that cannot be written to.
    """

    # everything is loaded and checked before the first picture
    started = time.monotonic()
    discovery = Discovery.load(settings.discovery)
    paths = {name_of_file(settings.dictionary.name): settings.dictionary, **settings.baselines}
    dictionaries = {name: PartDictionary.load(path) for name, path in paths.items()}
    folder = settings.out or Path(f"{name_of_file(settings.dictionary.name)}-evaluation")
    check_writable(folder)
    base = settings.base or base_of(next(iter(dictionaries.values())))
    t5 = T5Place(settings.text_encoder, settings.tokenizer)
    denoiser = load_denoiser(base, device=settings.device, dtype=settings.dtype, t5=t5)
    # what does not belong together is reported before the long work
    for name, dictionary in dictionaries.items():
        check_same_discovery(name, dictionary, discovery.codebook)
        check_backbone(name, dictionary, denoiser)
    choice = SamplingChoice(settings.steps, settings.guidance)
    evaluator = PartsEvaluator(
        discovery,
        denoiser,
        count=settings.count,
        seed=settings.seed,
        choice=choice,
        most_sources=settings.most_sources,
        labels=settings.labels,
    )
    evaluation = Evaluation(discovery, evaluator.ceiling())
    for name, dictionary in dictionaries.items():
        evaluation.results[name] = evaluator.run(name, dictionary, report)
    figures = evaluation.figures() | {"seconds": {"total": time.monotonic() - started}}
    figures["settings"] = settings.model_dump(mode="json", exclude={"out"})
    write_text(folder / "evaluation.json", json.dumps(figures, indent=1) + "\n")
    return write_evaluation_page(folder / "index.html", evaluation)


def _reader(codebook: PartCodebook, denoiser: SamplingDenoiser) -> SamplingDenoiser:
    """The model that a codebook reads pictures with: the one that makes them, or the embedded one it was made with."""
    backbone = codebook.feature_spec.get("backbone")
    if backbone == denoiser.backbone.name or backbone not in EMBEDDED_BACKBONES:
        return denoiser
    return load_denoiser(EMBEDDED_BACKBONES[str(backbone)], device=str(denoiser.device))


def plan_tests(discovery: Discovery, count: int, seed: int, most_sources: int) -> dict[str, list[TestCase]]:
    """The tests `reconstruction`, `mix1`, `mix2`, ... of a discovery, `count` pictures each."""
    codes, background = discovery.maps.codes, discovery.codebook.background
    most = min(most_sources, codes.shape[1] - 1, len(codes))
    tests = {"reconstruction": reconstruction_cases(codes, count, seed)}
    return tests | {f"mix{n}": mix_cases(codes, background, n, count, seed) for n in range(1, most + 1)}


def prompt_of(case: TestCase, dictionary: PartDictionary, codebook: PartCodebook) -> str:
    """The prompt that asks a dictionary for a test case.

    A dictionary of parts gets one token for every part it knows; a dictionary of whole pictures one token for every
    picture taken from, with the name of the part where several are mixed.
    """
    if "codes_of_kind" in dictionary.provenance:
        return f"{PROMPT} {_whole_tokens(case, dictionary, codebook)}"
    known = dictionary.row_of
    tokens = [mention(dictionary, part, code) for part, code in enumerate(case.codes) if (part, code) in known]
    return f"{PROMPT} {' '.join(tokens)}"


def mention(dictionary: PartDictionary, part: int, *kinds: int, share: float = 0.0) -> str:
    """The words for a kind of a part, such as `<head:3>`, or for two of them with `share` of the second."""
    name = dictionary.part_names[part]
    shown = name if _PLAIN_NAME.fullmatch(name) else str(part)
    numbers = [kind + dictionary.id_base for kind in kinds]
    if len(numbers) == 1:
        return f"<{shown}:{numbers[0]}>"
    return f"<{shown}:{numbers[0]}*{1 - share:g}+{numbers[1]}*{share:g}>"


def check_same_discovery(name: str, dictionary: PartDictionary, codebook: PartCodebook) -> None:
    """Make sure that the parts of a dictionary are those of a codebook.

    Raises:
        BestiaryError: they are not, so that no code of one could be found in the other.
    """
    recorded = dictionary.provenance.get("parts_of_codes")
    parts = [str(part) for part in recorded] if isinstance(recorded, list | tuple) else dictionary.part_names
    if list(parts) != list(codebook.part_names):
        raise BestiaryError(
            f"dictionary {name} has the parts {', '.join(parts)}, but the discovery has "
            f"{', '.join(codebook.part_names)}: give the --discovery it was trained on"
        )


@torch.no_grad()
def reencoded(denoiser: SamplingDenoiser, images: torch.Tensor) -> torch.Tensor:
    """Images `(N, 3, H, W)` after the base model's autoencoder: the best that any picture of it can look."""
    batches = []
    for some in images.split(8):
        latents = denoiser.images.from_cache(denoiser.images.to_cache(some.to(denoiser.device)))
        batches.append(denoiser.images.decode(latents).float().cpu())
    return torch.cat(batches)


def _whole_tokens(case: TestCase, dictionary: PartDictionary, codebook: PartCodebook) -> str:
    table = torch.tensor(dictionary.provenance["codes_of_kind"])  # (K, M)
    # kinds of whole pictures by the codes (K, M) usual in them
    known = dictionary.kinds_of(0)
    tokens = []
    for picture in case.pictures:
        codes = torch.tensor(
            [code if source == picture else ABSENT for code, source in zip(case.codes, case.sources, strict=True)]
        )
        # the kind that agrees with the most parts taken from this picture
        matches = ((table == codes) & (codes != ABSENT)).sum(1)[list(known)]  # (known kinds,)
        token = mention(dictionary, 0, known[int(matches.argmax())])
        parts = [codebook.part_names[part] for part, source in enumerate(case.sources) if source == picture]
        parts = [part for part in parts if part != codebook.part_names[codebook.background]]
        tokens.append(token if len(case.pictures) == 1 else f"{token} {' and '.join(parts)}")
    return " , ".join(tokens)


def _all_from(picture: int, codes: torch.Tensor) -> tuple[int, ...]:
    # codes (N, M): every part shown comes from the picture itself
    return tuple(picture if code != ABSENT else -1 for code in codes[picture].tolist())
