"""How far a reader walks from `bestiary train parts` to the saved file: one training is run, and every call is noted.

    OMP_NUM_THREADS=1 python benchmarks/walk_of_training.py [--root FOLDER] [--all]

A function of the project counts once, where it is first called; calls one after the other in one file are one stay. `files` are
the files that are entered, `returns` the stays in a file that was left before. The walk begins at the training's own function and
ends where the file is saved. Without --all, `concepts/` is not walked: what the story calls there are tools with their own tests.
`--root` walks another checkout of the project, such as an older one.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parents[1]
QUICK = {"optimizer.steps": 2, "optimizer.accumulation": 1, "run.device": "cpu", "run.dtype": "fp32"}
QUICK |= {"run.preview_every": 1, "run.preview_steps": 1, "run.preview_count": 1, "run.tensorboard": False}


class Walk:
    """First calls of the functions below some folders, in order."""

    def __init__(self, root: Path, whole: bool) -> None:
        self._root, self._whole = str(root) + "/", whole
        self._known: set[object] = set()
        self.stays: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call; for `sys.setprofile`."""
        code = frame.f_code
        if event != "call" or code in self._known or not code.co_filename.startswith(self._root):
            return
        place = code.co_filename.removeprefix(self._root)
        if not place.startswith(("trainer/", "concepts/")[: 1 + self._whole]) or code.co_name == "<module>":
            return
        self._known.add(code)
        if not self.stays or self.stays[-1] != place:
            self.stays.append(place)


def main() -> None:
    """Train two steps on six drawn squares, and print the walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE)
    parser.add_argument("--all", action="store_true", help="walk concepts/ too")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    _load(root / "__init__.py", "bestiary", [str(root)])
    drawn = _load(root / "tests" / "trainer" / "conftest.py", "drawn")
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.training.train_parts import train_parts

    walk = Walk(root, arguments.all)
    with tempfile.TemporaryDirectory() as folder:
        found = drawn._write_discovery(Path(folder) / "birds", size=128)
        settings = load_recipe(None, {**QUICK, "discovery.folder": found, "run.out": Path(folder) / "run"})
        sys.setprofile(walk)
        train_parts(settings)
        sys.setprofile(None)
    for number, place in enumerate(walk.stays, start=1):
        again = "again" if place in walk.stays[: number - 1] else ""
        sys.stdout.write(f"{number:4} {place} {again}\n")
    files = len(set(walk.stays))
    sys.stdout.write(f"{files} files, {len(walk.stays)} stays, {len(walk.stays) - files} returns\n")


def _load(path: Path, name: str, places: list[str] | None = None) -> object:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
