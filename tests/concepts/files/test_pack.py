"""The folder of the pack is the one that holds its packages, wherever it lies."""

from pathlib import Path

from bestiary.concepts.files.pack import ROOT


def test_the_root_is_the_folder_that_is_loaded_as_the_pack() -> None:
    assert Path(__file__).parents[3].resolve() == ROOT.resolve()
    assert all(
        (ROOT / name).is_file() for name in ("__init__.py", "trainer/__main__.py", "demo/base_model/model_index.json")
    )
