"""Published files become spectra: ProSpect's network against the reference computation, XTI, NeTI, textual inversion, hostile files."""

import os
import pickle
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.exchange.import_spectrum import import_neti, import_prospect, import_textual_inversion, import_xti
from safetensors.torch import save_file
from torch import nn

WIDTH, STAGES = 128, 10


class Attention(nn.Module):
    """Cross-attention of latent diffusion, computed in full: scores, softmax, sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.heads = 64**-0.5, 8
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, 512, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(512, width), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, -1, 8, 64).transpose(1, 2).reshape(b * 8, -1, 64)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = (torch.einsum("bid,bjd->bij", q, k) * self.scale).softmax(dim=-1)
        out = torch.einsum("bij,bjd->bid", weights, v)
        return self.to_out(out.view(b, 8, n, 64).transpose(1, 2).reshape(b, n, 512))


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * nn.functional.gelu(gate)


class Feed(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gated(width, 4 * width), nn.Dropout(0.1), nn.Linear(4 * width, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, stages: int = STAGES) -> None:
        super().__init__()
        self.attn1, self.ff, self.attn2 = Attention(width), Feed(width, stages * width), Attention(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x))


REFERENCE_NAMES = {
    "ldm.modules.embedding_manager": {"TransformerBlock": Block},
    "ldm.modules.attention": {"CrossAttention": Attention, "FeedForward": Feed, "GEGLU": Gated},
    "models.positional_encoding": {},
}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, object], None]:
    """`published(path, content)` pickles content as if its classes lay where the authors' code has them."""

    def write(path: Path, content: object) -> None:
        with monkeypatch.context() as patch:
            for parent in ("ldm", "ldm.modules", "models"):
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
            for name, classes in REFERENCE_NAMES.items():
                module = types.ModuleType(name)
                patch.setitem(sys.modules, name, module)
                for own_name, one in classes.items():
                    setattr(module, own_name, one)
                    one.__module__, one.__name__, one.__qualname__ = name, own_name, own_name
            torch.save(content, path)

    return write


def _network(seed: int = 0, **shape: int) -> tuple[Block, torch.Tensor]:
    torch.manual_seed(seed)
    return Block(**shape), nn.Parameter(torch.randn(1, shape.get("width", WIDTH)) * 0.02)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stages", [10, 7])
def test_prospect_bakes_to_the_reference_bit_for_bit(
    tmp_path: Path, published: Callable, training: bool, stages: int
) -> None:
    block, word = _network(stages=stages)
    with torch.no_grad():
        theirs = block.eval()(word.view(1, 1, WIDTH), word.view(1, 1, WIDTH)).view(stages, WIDTH)
    # the flag a file was pickled with must not switch dropout on
    published(tmp_path / "embeddings.pt", {"attention": block.train(training), "initial_embeddings": word})
    assert "ldm" not in sys.modules
    ours = import_prospect(tmp_path / "embeddings.pt", "teddy")
    # their list begins with the last stage
    assert (ours.matrix()[:, 0].flip(0) - theirs).abs().max() == 0
    assert torch.equal(ours.neutral_matrix(), word.detach())
    assert (ours.backbone, ours.stages, ours.initial_words) == ("bestiary-demo", stages, "teddy")
    again = import_prospect(tmp_path / "embeddings.pt")
    assert torch.equal(again.matrix(), ours.matrix())


def test_prospect_of_another_width_is_told(tmp_path: Path, published: Callable) -> None:
    block, word = _network(width=96)
    published(tmp_path / "e.pt", {"attention": block, "initial_embeddings": word})
    with pytest.raises(BestiaryError, match=r"e.pt holds vectors of width 96, .*768 \(sd15\), 1024 \(sd2\)"):
        import_prospect(tmp_path / "e.pt")
    published(tmp_path / "f.pt", {"attention": Block(), "initial_embeddings": torch.zeros(1, 1280)})
    with pytest.raises(BestiaryError, match="Vectors of 1280 belong to BERT's variant"):
        import_prospect(tmp_path / "f.pt")


def test_prospect_with_a_network_that_does_not_fit_its_word(tmp_path: Path, published: Callable) -> None:
    block, word = _network()
    block.ff.net[2] = nn.Linear(4 * WIDTH, 77)
    published(tmp_path / "e.pt", {"attention": block, "initial_embeddings": word})
    with pytest.raises(
        BestiaryError, match=r"e.pt: its last layer ff.net.2.weight is \(77, 512\): \(stages \* 128, 512\)"
    ):
        import_prospect(tmp_path / "e.pt")
    block, _ = _network()
    block.attn1.to_v = nn.Linear(WIDTH, 64, bias=False)
    published(tmp_path / "f.pt", {"attention": block, "initial_embeddings": word})
    with pytest.raises(
        BestiaryError, match=r"its tensor attn1.to_v.weight has shape \(64, 128\), \(512, 128\) is needed"
    ):
        import_prospect(tmp_path / "f.pt")
    published(tmp_path / "g.pt", {"attention": nn.Linear(3, 3), "initial_embeddings": word})
    with pytest.raises(BestiaryError, match="its last layer ff.net.2.weight is missing"):
        import_prospect(tmp_path / "g.pt")


class Bomb:
    """Makes a file when unpickled by pickle itself."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("read", [import_prospect, import_neti, import_textual_inversion, import_xti])
def test_a_pickle_with_a_program_is_refused_and_runs_nothing(
    tmp_path: Path, published: Callable, read: Callable
) -> None:
    block, word = _network()
    content = {"attention": block, "initial_embeddings": word, "state_dict": {}, "note": Bomb(tmp_path / "ran")}
    published(tmp_path / "bomb.pt", content)
    with pytest.raises(BestiaryError, match=r"bomb.pt was not loaded: it asks for .*(posix|nt)\.system"):
        read(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


def test_unknown_names_cut_files_and_giants(tmp_path: Path, published: Callable) -> None:
    torch.save({"attention": types.SimpleNamespace(a=1), "initial_embeddings": 1}, tmp_path / "strange.pt")
    with pytest.raises(BestiaryError, match="it asks for types.SimpleNamespace"):
        import_prospect(tmp_path / "strange.pt")
    block, word = _network()
    published(tmp_path / "whole.pt", {"attention": block, "initial_embeddings": word})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-2000])
    with pytest.raises(BestiaryError, match="cut.pt is not a readable torch file"):
        import_prospect(tmp_path / "cut.pt")
    with pytest.raises(BestiaryError, match=r"list.pt is not a ProSpect file: it holds list, expected attention"):
        torch.save([1], tmp_path / "list.pt")
        import_prospect(tmp_path / "list.pt")
    with pytest.raises(BestiaryError, match="initial_embeddings is not a tensor"):
        published(tmp_path / "word.pt", {"attention": block, "initial_embeddings": "teddy"})
        import_prospect(tmp_path / "word.pt")


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path: Path, published: Callable) -> None:
    block, word = _network()
    published(tmp_path / "whole.pt", {"attention": block, "initial_embeddings": word})
    # every storage of the archive loses all but its first bytes
    with zipfile.ZipFile(tmp_path / "whole.pt") as source, zipfile.ZipFile(tmp_path / "thin.pt", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:16] if "/data/" in name else content)
    with pytest.raises(BestiaryError):
        import_prospect(tmp_path / "thin.pt")


def test_xti_keys_sort_as_numbers(tmp_path: Path) -> None:
    tensors = {f"<yc-{layer}-0>": torch.full((768,), float(layer)) for layer in range(16)}
    save_file({"<yc>": torch.full((768,), 99.0), **tensors}, tmp_path / "x.safetensors")
    spectrum = import_xti(tmp_path / "x.safetensors")
    assert spectrum.matrix().shape == (1, 16, 1, 768) and spectrum.layers == 16 and spectrum.backbone == "sd15"
    assert spectrum.matrix()[0, :, 0, 0].tolist() == list(range(16))


def test_giant_layer_numbers_cost_nothing(tmp_path: Path) -> None:
    names = [f"<owl-{layer}-{vector}>" for layer, vector in ((999_999, 0), (0, 999_999), (15, 999_999))]
    save_file({name: torch.zeros(768) for name in names}, str(tmp_path / "x.safetensors"))
    begin = time.process_time()
    with pytest.raises(BestiaryError, match="1000000 layers of 1000000 vectors, widths \\[768\\]"):
        import_xti(tmp_path / "x.safetensors")
    assert time.process_time() - begin < 5
    save_file({f"<owl-{'9' * 5000}-0>": torch.zeros(768)}, str(tmp_path / "y.safetensors"))
    with pytest.raises(BestiaryError, match="is not an XTI file"):
        import_xti(tmp_path / "y.safetensors")


def test_xti_with_several_vectors_and_with_missing_ones(tmp_path: Path) -> None:
    tensors = {f"<a-{layer}-{j}>": torch.full((1024,), layer + j / 10) for layer in range(16) for j in range(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    spectrum = import_xti(tmp_path / "x.safetensors")
    assert spectrum.vectors == 2 and spectrum.backbone == "sd2"
    assert spectrum.matrix()[0, 10, 1, 0] == pytest.approx(10.1)
    del tensors["<a-7-1>"]
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises(BestiaryError, match=r"does not hold all vectors of 16 layers: .* missing \[\(7, 1\)\]"):
        import_xti(tmp_path / "y.safetensors")
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "z.safetensors")
    with pytest.raises(BestiaryError, match=r"is not an XTI file: none of its tensors \(emb_params\) is named"):
        import_xti(tmp_path / "z.safetensors")


class Encoder(nn.Module):
    """NeTI's Fourier features of (timestep, layer)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.w = torch.randn(1024, 2) * torch.tensor([0.03, 2.0])

    def encode(self, t: float, layer: float) -> torch.Tensor:
        point = torch.tensor([t, layer]).float()
        features = torch.cat([torch.sin(self.w @ point), torch.cos(self.w @ point)])
        return features / features.norm()


REFERENCE_NAMES["models.positional_encoding"]["NeTIPositionalEncoding"] = Encoder


def _neti(output: int) -> tuple[Encoder, nn.Sequential, nn.Sequential]:
    encoder = Encoder()
    net = nn.Sequential(
        nn.Linear(2048, 160), nn.Linear(160, 128), nn.LayerNorm(128), nn.LeakyReLU(),
        nn.Linear(128, 128), nn.LayerNorm(128), nn.LeakyReLU(),
    )  # fmt: skip
    anchors = [encoder.encode(t, layer) for t in range(0, 1000, 100) for layer in range(16)]
    net[0].weight.data = torch.stack(anchors)
    return encoder, net, nn.Sequential(nn.Linear(128, output))


@pytest.mark.parametrize("truncation", [None, 0, 32, 128])
@pytest.mark.parametrize(("output", "norm"), [(1536, 0.4), (768, None)])
def test_neti_bakes_to_the_reference(
    tmp_path: Path, published: Callable, truncation: int | None, output: int, norm: float | None
) -> None:
    encoder, net, last = _neti(output)
    state = {f"net.{n}": t for n, t in net.state_dict().items()}
    state |= {"input_layer.weight": net[0].weight, "input_layer.bias": net[0].bias}
    state |= {f"output_layer.{n}": t for n, t in last.state_dict().items()}
    config = {"model": {"target_norm": norm, "word_embedding_dim": 768}}
    published(tmp_path / "mapper-steps-1000.pt", {"state_dict": state, "cfg": config, "encoder": encoder})
    ours = import_neti(tmp_path / "mapper-steps-1000.pt", stages=50, truncation=truncation)
    assert ours.matrix().shape == (50, 16, 1, 768) and bool(ours.bypass) == (output == 1536)
    for stage, layer in ((0, 0), (7, 10), (49, 15)):
        t = 999 - 20 * stage - 10  # the middle of the stage
        with torch.no_grad():
            hidden = net(encoder.encode(t, layer).unsqueeze(0))
            if truncation is not None:
                hidden[:, truncation:] = 0
            theirs = last(hidden)[0]
            theirs = theirs if norm is None else nn.functional.normalize(theirs, dim=-1) * norm
        mine = ours.matrix()[stage, layer, 0]
        if ours.bypass:
            mine = torch.cat([mine, ours.bypass_matrix()[stage, layer, 0]])
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)


def test_neti_without_its_parts(tmp_path: Path, published: Callable) -> None:
    encoder, net, last = _neti(768)
    state = {f"net.{n}": t for n, t in net.state_dict().items()}
    published(tmp_path / "a.pt", {"state_dict": state, "cfg": {}, "encoder": encoder})
    with pytest.raises(BestiaryError, match="a.pt: the mapper lacks output_layer.0.weight, output_layer.0.bias"):
        import_neti(tmp_path / "a.pt")
    state |= {f"output_layer.{n}": t for n, t in last.state_dict().items()}
    published(tmp_path / "b.pt", {"state_dict": state, "cfg": {"model": {"target_norm": "x"}}, "encoder": encoder})
    with pytest.raises(BestiaryError, match="model.target_norm of its settings is 'x'"):
        import_neti(tmp_path / "b.pt")
    published(tmp_path / "c.pt", {"state_dict": state, "cfg": {}, "encoder": encoder})
    with pytest.raises(BestiaryError, match="truncation 200: choose 0"):
        import_neti(tmp_path / "c.pt", truncation=200)
    torch.save({"<cat>": torch.ones(768)}, tmp_path / "d.bin")
    with pytest.raises(BestiaryError, match=r"is not a NeTI mapper: it holds \['<cat>'\]"):
        import_neti(tmp_path / "d.bin")


def test_textual_inversion_of_every_program(tmp_path: Path) -> None:
    rows = torch.arange(2 * 768).view(2, 768).float()
    torch.save({"<cat>": rows}, tmp_path / "diffusers.bin")
    torch.save({"string_to_param": {"*": nn.Parameter(rows)}, "name": "cat", "step": 5}, tmp_path / "a1111.pt")
    save_file({"emb_params": rows}, tmp_path / "kohya.safetensors")
    torch.save({"<cat>": rows[0]}, tmp_path / "one.bin")
    for name in ("diffusers.bin", "a1111.pt", "kohya.safetensors"):
        spectrum = import_textual_inversion(tmp_path / name)
        assert spectrum.stages == 1 and spectrum.backbone == "sd15"
        assert torch.equal(spectrum.matrix()[0], rows) and torch.equal(spectrum.mean_embedding()["clip_l"], rows)
    assert import_textual_inversion(tmp_path / "one.bin").vectors == 1


def test_textual_inversion_of_sdxl(tmp_path: Path) -> None:
    save_file({"clip_g": torch.ones(2, 1280), "clip_l": torch.zeros(2, 768)}, tmp_path / "x.safetensors")
    spectrum = import_textual_inversion(tmp_path / "x.safetensors")
    assert spectrum.backbone == "sdxl" and spectrum.matrix().shape == (1, 2, 2048)
    assert spectrum.matrix()[..., :768].abs().max() == 0
    save_file({"clip_g": torch.ones(2, 1280), "clip_l": torch.zeros(1, 768)}, tmp_path / "y.safetensors")
    with pytest.raises(BestiaryError, match="do not fit SDXL"):
        import_textual_inversion(tmp_path / "y.safetensors")


def test_embedding_files_that_are_none(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 768), "b": torch.ones(2, 768)}, tmp_path / "two.safetensors")
    with pytest.raises(BestiaryError, match=r"holds 2 embeddings \(a, b\)"):
        import_textual_inversion(tmp_path / "two.safetensors")
    save_file({"a": torch.ones(1, 5)}, tmp_path / "five.safetensors")
    with pytest.raises(BestiaryError, match="holds vectors of width 5"):
        import_textual_inversion(tmp_path / "five.safetensors")
    save_file({"a": torch.ones(2, dtype=torch.int64)}, tmp_path / "whole.safetensors")
    with pytest.raises(BestiaryError, match="holds no embedding"):
        import_textual_inversion(tmp_path / "whole.safetensors")
    (tmp_path / "text.pt").write_bytes(pickle.dumps("hello"))
    with pytest.raises(BestiaryError):
        import_textual_inversion(tmp_path / "text.pt")
