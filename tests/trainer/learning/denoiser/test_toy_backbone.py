"""A backbone of another kind, added the way CONTRIBUTING.md says: a record, a text side, a network, a line in the table of loaders.

It denoises pixels along a flow, attends on one named grid, and reads either one text encoder or two that lay prompts out differently. Parts and
spectra are trained on it by the code that trains Stable Diffusion.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.adapters import Adapters, adapted_output
from bestiary.concepts.denoiser.backbone import BACKBONES, Backbone, TextEncoderSpec
from bestiary.concepts.denoiser.ddim import sample_ddim
from bestiary.concepts.denoiser.denoiser import (
    AttentionRequest,
    Conditioning,
    Denoiser,
    NetworkOutput,
    PromptPiece,
)
from bestiary.concepts.denoiser.image_side import PixelSpace
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.trainer.learning.denoiser.attention_capture import attend, build_capture, reading_features, split_heads
from bestiary.trainer.learning.denoiser.prompt_encoding import ClipStates, PromptEncoding
from bestiary.trainer.learning.parts.finished_parts import learned_dictionary
from bestiary.trainer.learning.parts.objective_setup import (
    build_batches,
    build_objective,
    check_layers,
    parameter_groups,
)
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import build_spectrum, set_up_spectrum
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.model import backbones
from PIL import Image
from torch import Tensor, nn

SIZE, PATCH, WIDTH = 16, 4, 16
PICTURES = 4
ONE = Backbone("toy", (TextEncoderSpec("toy_t", 16, "final", 64, runs="single", min_tokens=6),), SIZE, 3, PATCH, 1)
TWO = Backbone(
    "toy-two",
    (
        TextEncoderSpec("toy_c", 16, "final", 10, pooled=True),
        TextEncoderSpec("toy_t", 8, "final", 24, place="behind", runs="single", min_tokens=12, mask=True),
    ),
    SIZE,
    3,
    PATCH,
    1,
)


class ToyEncoder:
    """Words by their letters; states are a mixture of every token with those before it."""

    def __init__(self, width: int, start: int | None, letters: bool) -> None:
        self.start, self.end, self.pad, self.unknown = start, 1, 0, None
        self.device = torch.device("cpu")
        self._letters, generator = letters, torch.Generator().manual_seed(width)
        self._table = torch.randn(40, width, generator=generator)
        self._mix = torch.randn(width, width, generator=generator) / width**0.5

    def plain_ids(self, text: str) -> list[int]:
        """A token per letter, or per word."""
        units = [letter for letter in text if letter != " "] if self._letters else text.split()
        return [3 + sum(map(ord, unit)) % 37 for unit in units]

    def embed(self, ids: Tensor) -> Tensor:
        return self._table[ids]

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        steps = torch.arange(1, embeddings.shape[1] + 1).view(1, -1, 1)
        hidden = torch.tanh(embeddings @ self._mix + embeddings.cumsum(1) / steps)  # (N, L, D)
        pooled = hidden[torch.arange(len(hidden)), end_places] if spec.pooled else None
        return ClipStates(hidden, pooled)


class ToyNetwork(nn.Module):
    """Patches that look at the text once."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone, self._process = backbone, FlowProcess(shift=3.0)
        self.layers = nn.ModuleDict()
        torch.manual_seed(0)
        for name, inner in (("to_q", WIDTH), ("to_k", backbone.context_width), ("to_v", backbone.context_width)):
            self.layers[name] = nn.Linear(inner, WIDTH)
        self.patch, self.back = nn.Linear(3 * PATCH**2, WIDTH), nn.Linear(WIDTH, 3 * PATCH**2)
        self.requires_grad_(False)
        names = {f"mixer.{name}": layer for name, layer in self.layers.items()}
        self.adapters = Adapters(names, lambda self_attention: names, lambda: self.device)
        self.device, self.dtype, self.seen_masks = torch.device("cpu"), torch.float32, []

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {"mixer": (size[0] // PATCH, size[1] // PATCH)}

    def method_layers(self) -> tuple[str, ...]:
        return ("mixer",)

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {}

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        raise AssertionError("the toy has nothing to recompute")

    def predict(
        self,
        latents: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> NetworkOutput:
        b, c, h, w = latents.shape
        grids = self.attention_grids((h, w))
        capture = attention and build_capture(attention, grids, self.method_layers(), self._backbone, self.device)
        cells = latents.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, h', w', p, p)
        flat = cells.permute(0, 2, 3, 1, 4, 5).reshape(b, -1, c * PATCH**2)
        x = self.patch(flat) + self._process.sigma(times).view(-1, 1, 1)  # (B, N, D): told sigma
        inputs = {"to_q": x, "to_k": conditioning.context, "to_v": conditioning.context}
        q, k, v = (split_heads(self._layer(name, value), 2) for name, value in inputs.items())
        self.seen_masks.append(conditioning.extras.get("mask"))
        with reading_features({}):
            mixed = attend(q, k, v, (WIDTH // 2) ** -0.5, "mixer", capture)  # (B, H, N, d)
        out = self.back(x + mixed.transpose(1, 2).reshape(b, -1, WIDTH)).view(
            b, h // PATCH, w // PATCH, c, PATCH, PATCH
        )
        prediction = out.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
        return NetworkOutput(prediction, {} if capture is None else capture.maps)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        layer = self.layers[name]
        return adapted_output(x, layer, self.adapters.of(f"mixer.{name}"), layer)


def load_toy(folder: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """The loader that the table gets."""
    record = BACKBONES[json.loads((folder / "bestiary.json").read_text())["backbone"]]
    encoders = {
        spec.name: ToyEncoder(spec.width, 2 if spec.runs == "chunked" else None, letters=spec.runs == "single")
        for spec in record.text_encoders
    }
    network = ToyNetwork(record)
    return Denoiser(record, PromptEncoding(record, encoders), PixelSpace(), network._process, network)


@pytest.fixture(params=[ONE, TWO], ids=["one encoder", "two encoders"])
def load(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Denoiser]:
    """Adds the backbone; gives what loads it from a folder."""
    record = request.param
    monkeypatch.setitem(BACKBONES, record.name, record)
    monkeypatch.setitem(backbones.LOADERS, record.name, load_toy)
    (tmp_path / "bestiary.json").write_text(json.dumps({"backbone": record.name}))
    return lambda: backbones.load_denoiser(tmp_path, device="cpu", dtype="fp32")


def _cache(denoiser: Denoiser) -> LatentCache:
    pictures = torch.rand(PICTURES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return LatentCache(denoiser.images.to_cache(pictures).unsqueeze(1).half().numpy())  # (N, 1, 2, 3, S, S)


def _names() -> list[str]:
    return [f"{number}.png" for number in range(PICTURES)]


def _steps(objective: Callable, batch: object, groups: Sequence) -> list[float]:
    """Losses before and after two steps on one batch."""
    optimizer = torch.optim.Adam([{"params": list(g.parameters.values()), "lr": g.learning_rate} for g in groups])
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        total = objective(batch).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return [*losses, objective(batch).total.item()]


def test_parts_are_trained(load: Callable[[], Denoiser], tmp_path: Path) -> None:
    denoiser = load()
    settings = load_recipe(None, {"method.min_snr": 0.0, "optimizer.batch_size": 3, "lora.rank": 2, "attention_loss.weight": 1.0,
                                  "captions.templates": 1.0, "method.part_words": "head body"})  # fmt: skip
    check_layers(settings, denoiser)
    labels = np.broadcast_to(np.arange(8)[:, None] // 4, (PICTURES, 8, 8)).astype(np.uint8)
    codes = np.stack([np.arange(PICTURES) % 2, np.arange(PICTURES) % 2], axis=1)
    kinds = TrainingKinds(("head", "body"), ({}, {}), None, labels, codes, {})
    batches = build_batches(settings, _names(), kinds, _cache(denoiser), denoiser)
    batch = batches.draw(0, 0)
    assert batch.times.is_floating_point() and bool(((batch.times > 0) & (batch.times <= 1)).all())
    objective = build_objective(settings, kinds, denoiser, batches)
    report = objective(batch)
    assert report.curves["part_attention_loss"].shape == (3, 2) and report.curves["attention_loss"] > 0
    groups = parameter_groups(settings, objective, denoiser)
    assert {group.name for group in groups} == {"tokens", "projector", "lora"}
    losses = _steps(objective, batch, groups)
    assert losses[2] < losses[1] < losses[0]
    # the shared file, with vectors of every encoder and adapters under the network's own names
    tiles = {row: Image.new("RGB", (8, 8)) for row in kinds.rows()}
    learned_dictionary(objective, kinds, tiles, {}).save(tmp_path / "toy.parts.safetensors")
    again = PartDictionary.load(tmp_path / "toy.parts.safetensors")
    expected = {spec.name: (4, spec.width) for spec in denoiser.backbone.text_encoders}
    assert {name: tuple(own.shape) for name, own in again.embeddings.items()} == expected
    fresh = load()
    assert fresh.network.adapters.load(again.lora) == 3


def test_a_spectrum_is_trained(load: Callable[[], Denoiser], tmp_path: Path) -> None:
    denoiser = load()
    changes = {"method.stages": 4, "method.vectors": 2, "optimizer.batch_size": 4, "method.initial_words": "head"}
    training = set_up_spectrum(load_spectrum_recipe(None, changes), denoiser, _names(), _cache(denoiser))
    batch = training.batches.draw(0, 0)
    assert training.bounds.stage_at(batch.times).tolist() == list(batch.stages) and len(set(batch.stages)) == 4
    losses = _steps(training.objective, batch, training.groups)
    assert losses[2] < losses[1] < losses[0]
    spectrum = build_spectrum(training, 2)
    save_spectrum(spectrum, tmp_path / "toy.spectrum.safetensors")
    again: PromptSpectrum = load_spectrum(tmp_path / "toy.spectrum.safetensors")
    assert again.backbone == denoiser.backbone.name and torch.equal(again.matrix(), spectrum.matrix())


def test_attention_comes_back_on_the_named_grid(load: Callable[[], Denoiser]) -> None:
    denoiser = load()
    tokens = denoiser.text.tokenize([PromptPiece("a red"), PromptPiece(None), PromptPiece("of"), PromptPiece(None)])
    generator = torch.Generator().manual_seed(2)
    vectors = {s.name: torch.randn(2, 2, s.width, generator=generator) for s in denoiser.backbone.text_encoders}
    text = denoiser.text.encode([tokens, tokens], vectors)
    noised = torch.randn(2, 3, SIZE, 2 * SIZE, generator=generator)
    grids = denoiser.network.attention_grids((SIZE, 2 * SIZE))
    maps = {}
    for method in ("lse", "one_hot"):
        request = AttentionRequest(text.columns, ("mixer",), method)
        maps[method] = denoiser.network.predict(noised, torch.tensor([0.5, 1.0]), text, request).attention["mixer"]
    assert maps["lse"].shape == (2, 2, *grids["mixer"]) and (maps["lse"] > 0).all()
    torch.testing.assert_close(maps["lse"], maps["one_hot"], atol=1e-6, rtol=1e-5)
    # a vector that is nowhere has no map
    nowhere = AttentionRequest(torch.full_like(text.columns, -1))
    assert not denoiser.network.predict(noised, torch.tensor([0.5, 1.0]), text, nowhere).attention["mixer"].any()


def test_pictures_are_sampled_along_the_flow(load: Callable[[], Denoiser]) -> None:
    denoiser = load()
    empty = denoiser.empty_conditioning()
    made = sample_ddim(denoiser, empty.expanded(2), empty, seeds=[1, 2], steps=3, guidance=2.0, size=SIZE)
    assert made.shape == (2, 3, SIZE, SIZE) and made.isfinite().all() and made.min() >= 0 and made.max() <= 1


def test_encoders_that_lay_out_differently_give_a_vector_several_columns() -> None:
    """CLIP counts words behind a start token, the other one letters; its states stand behind CLIP's ten positions."""
    text = PromptEncoding(TWO, {"toy_c": ToyEncoder(16, 2, False), "toy_t": ToyEncoder(8, None, True)})
    pieces = [PromptPiece("a red"), PromptPiece(None), PromptPiece("of"), PromptPiece(None, 1.2)]
    layout, short = text.tokenize(pieces, chunks=1), text.tokenize([PromptPiece(None)], chunks=1)
    assert layout["toy_c"].slots.tolist() == [3, 5] and layout["toy_t"].slots.tolist() == [4, 7]
    assert layout["toy_c"].ids.shape == (1, 10) and layout["toy_t"].ids.shape == (1, 12)
    vectors = {"toy_c": torch.randn(2, 2, 16), "toy_t": torch.randn(2, 2, 8)}
    encoded = text.encode([layout, short], vectors)
    assert encoded.columns.tolist() == [[[3, 14], [5, 17]], [[1, 10], [-1, -1]]]
    # narrower states are padded to the width of the context, and only real tokens of the masked encoder are seen
    assert encoded.context.shape == (2, 22, 16) and not encoded.context[:, 10:, 8:].any()
    assert encoded.pooled.shape == (2, 16)
    assert encoded.extras["mask"].sum(1).tolist() == [10 + 9, 10 + 2] and encoded.extras["mask"][:, :10].all()
    # every vector acts at its own places in its own encoder
    moved = text.encode([layout, short], {**vectors, "toy_t": vectors["toy_t"] + 1})
    assert torch.equal(moved.context[:, :10], encoded.context[:, :10])
    assert not torch.equal(moved.context[:, 10:], encoded.context[:, 10:])
    longer = text.tokenize([PromptPiece("photograph of a red bird"), PromptPiece(None)], chunks=1)
    both = text.encode([short, longer], {name: own[:, :1] for name, own in vectors.items()})
    assert both.context.shape == (2, 10 + 22, 16) and both.columns[1].tolist() == [[6, 10 + 20]]
