"""The published set of subjects and prompts, and how many pictures its protocol asks for."""

from __future__ import annotations

from pathlib import Path

from bestiary.trainer.evaluation.dreambooth_protocol import read_protocol
from PIL import Image

SUBJECTS, PROMPTS = 30, 25


def test_the_published_set_asks_for_three_thousand_pictures(tmp_path: Path) -> None:
    """Thirty subjects, two lists of twenty-five prompts, four pictures of each prompt."""
    folder = tmp_path / "dataset"
    nouns = {f"subject{n:02d}": "dog" if n < 9 else "backpack" for n in range(SUBJECTS)}
    for name in nouns:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / name / "00.jpg")
    table = "".join(f"{name},{noun}\n" for name, noun in nouns.items())
    lists = []
    for kind in ("on shelf", "in garden"):
        lines = [f"'a {{0}} {{1}} {kind} {n}'.format(unique_token, class_token)," for n in range(PROMPTS)]
        lists.append("\n".join(["prompt_list = [", *lines, "]"]))
    listing = "\n\n".join(["Classes", f"subject_name,class\n{table}", "Prompts", *lists])
    (folder / "prompts_and_classes.txt").write_text(listing)
    plans = read_protocol(tmp_path)
    assert len(plans) == SUBJECTS and sum(len(plan.prompts) for plan in plans) * 4 == 3000
    assert plans[0].prompts[3] == "a {} dog in garden 3" and plans[-1].prompts[3] == "a {} backpack on shelf 3"
