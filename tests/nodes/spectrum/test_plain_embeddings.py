"""ProSpect files in models/embeddings: what ComfyUI makes of them, how they are known without being opened, and who is told."""

import logging
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

WIDTH = 768


class TransformerBlock(nn.Module):
    """Stands in for ProSpect's network; only its name and place count here."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/embeddings."""
    import folder_paths
    from bestiary.nodes.spectrum import plain_embeddings as misread_embeddings

    endings = folder_paths.folder_names_and_paths["embeddings"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path)], endings))
    folder_paths.filename_list_cache.pop("embeddings", None)
    monkeypatch.setattr(misread_embeddings, "_told", set())
    return tmp_path


@pytest.fixture
def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], torch.Tensor]:
    """`publish("corgi.pt")` writes a file as ProSpect does and returns its initial word `(1, 768)`."""

    def write(name: str) -> torch.Tensor:
        word = nn.Parameter(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1)))
        with monkeypatch.context() as patch:
            for place in ("ldm", "ldm.modules", "ldm.modules.embedding_manager"):
                patch.setitem(sys.modules, place, types.ModuleType(place))
            patch.setattr(sys.modules["ldm.modules.embedding_manager"], "TransformerBlock", TransformerBlock, False)
            patch.setattr(TransformerBlock, "__module__", "ldm.modules.embedding_manager")
            (folder / name).parent.mkdir(exist_ok=True)
            torch.save({"attention": TransformerBlock(), "initial_embeddings": word}, folder / name)
        return word.detach()

    return write


def test_comfyui_reads_the_initial_word_without_an_error(folder, publish):
    from comfy.sd1_clip import load_embed

    word = publish("corgi.pt")
    assert torch.equal(load_embed("corgi", str(folder), WIDTH, "clip_l"), word)


def test_only_prospects_files_are_found(folder, publish):
    from bestiary.nodes.spectrum.plain_embeddings import misread_embeddings

    publish("dogs/corgi.pt")
    torch.save({"string_to_param": {"*": torch.ones(1, WIDTH)}, "name": "cat"}, folder / "cat.pt")
    torch.save({"<cat>": torch.ones(WIDTH)}, folder / "cat.bin", _use_new_zipfile_serialization=False)
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    (folder / "bare.pt").write_bytes(pickle.dumps("ldm.modules.embedding_manager TransformerBlock"))
    assert [Path(name).as_posix() for name in misread_embeddings()] == ["dogs/corgi.pt"]


def test_a_hostile_file_runs_nothing(folder, tmp_path):
    from bestiary.nodes.spectrum.plain_embeddings import misread_embeddings

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(tmp_path / "was-run"), "w")

    marks = "ldm.modules.embedding_manager TransformerBlock initial_embeddings"
    torch.save({marks: Bomb()}, folder / "bomb.pt")
    assert misread_embeddings() == ("bomb.pt",) and not (tmp_path / "was-run").exists()


def test_each_file_is_logged_once_and_told_every_time(folder, publish, caplog):
    from bestiary.nodes.spectrum.plain_embeddings import warn_of_misread

    publish("corgi.pt")
    with caplog.at_level(logging.WARNING, "bestiary"):
        told = {warn_of_misread() for _ in range(3)}
    assert told == {
        "models/embeddings contains spectra of ProSpect (corgi.pt): ComfyUI loads embedding:corgi as its initial "
        "word only. Convert it to a spectrum: bestiary import prospect corgi.pt"
    }
    assert [record.getMessage() for record in caplog.records] == list(told)
    for name in ("a.pt", "b.pt", "c.pt"):
        publish(name)
    assert "ProSpect (a.pt, b.pt, c.pt and 1 more)" in warn_of_misread()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a embedding:corgi, red", True),
        ("(embedding:Corgi.pt:1.2)", True),
        ("a embedding:dogs/teddy", True),
        ("a embedding:corgis and corgi", False),
        ("a corgi", False),
    ],
)
def test_texts_are_told_about_what_they_name(folder, publish, text, told):
    from bestiary.nodes.spectrum.plain_embeddings import warn_of_misread

    publish("corgi.pt")
    publish("dogs/teddy.pt")
    assert bool(warn_of_misread([text, "a bird"])) == told


def test_nothing_is_said_where_there_is_nothing(folder, caplog):
    from bestiary.nodes.spectrum.plain_embeddings import misread_notice, warn_of_misread

    assert warn_of_misread() == misread_notice(()) == "" and not caplog.records


def test_the_nodes_pass_it_on(folder, publish, sd15_model):
    from bestiary.concepts.errors import BestiaryError
    from bestiary.nodes.host.socket_types import NamedSpectrum
    from bestiary.nodes.spectrum.spectrum_files import check_spectrum_file, describe_spectrum
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, PromptSources, TypedSide, encode_typed_sides

    publish("corgi.pt")
    with pytest.raises(BestiaryError, match=r"no prompt spectrum 'corgi'.*bestiary import prospect corgi.pt"):
        check_spectrum_file("corgi")
    from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
    from bestiary.concepts.spectrum.stage_bounds import StageBounds

    one = PromptSpectrum("sd15", {"clip_l": torch.ones(2, 1, 32)}, StageBounds.equal(2))
    assert describe_spectrum(NamedSpectrum("one", one)).endswith("bestiary import prospect corgi.pt")
    for text, told in (("a embedding:corgi", True), ("a bird", False)):
        _, report = encode_typed_sides(sd15_model.clip, [TypedSide(text)], PromptSources({}, {}), PromptOptions())
        assert report.endswith("bestiary import prospect corgi.pt") == told
