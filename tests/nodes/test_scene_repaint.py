"""`bestiary scenes repaint --with comfy` on a real ComfyUI: core nodes around the embedded model paint the place, subjects stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bestiary.scenes.set_files import read_png, read_records
from bestiary.trainer.__main__ import main
from PIL import Image, ImageFilter

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "canvas"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "mask"}},
    "3": {"class_type": "BestiaryDemoModel", "inputs": {}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["3", 1]}, "_meta": {"title": "prompt"}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["3", 1]}},
    "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 2]}},
    "7": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["6", 0], "mask": ["2", 1]}},
    "8": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["3", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["7", 0], "seed": 0, "steps": 6,
            "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6,
        },
    },
    "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["3", 2]}},
    "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
}  # fmt: skip


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A set of two collages."""
    rows, columns = np.mgrid[:64, :64]
    alpha = np.where((columns - 32) ** 2 + (rows - 32) ** 2 < 28**2, 255, 0).astype(np.uint8)
    for name, color in (("cat", (210, 60, 40)), ("dog", (40, 90, 210))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        picture = np.dstack([np.full((64, 64, 3), color, np.uint8), alpha])
        Image.fromarray(picture).save(tmp_path / "photos" / name / "1.png")
    command = ["scenes", "build", str(tmp_path / "photos"), "--out", str(tmp_path / "pets"), "--count", "2"]
    sizes = ["--set", "layout.width=128", "--set", "layout.height=128", "--progress", "off"]
    assert main([*command, *sizes]) == 0
    return tmp_path / "pets"


def test_a_set_is_painted_by_core_nodes(server, pets: Path, tmp_path: Path) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(WORKFLOW))
    before = {record.stem: read_png(pets / f"images/{record.stem}.png") for record in read_records(pets)}
    command = ["scenes", "repaint", str(pets), "--with", "comfy", "--url", server.address, "--workflow", str(workflow)]
    assert (
        main([*command, "--prompt", "a photo of a meadow", "--progress", "off", "--set", "repaint.most_seam=100"]) == 0
    )
    for record in read_records(pets):
        after = read_png(pets / f"images/{record.stem}.png")
        mask = Image.fromarray(read_png(pets / f"masks/{record.stem}.png"))
        core = np.asarray(mask.filter(ImageFilter.MinFilter(11))) == 255
        assert core.any() and np.array_equal(after[core], before[record.stem][core])
        place = np.asarray(mask.filter(ImageFilter.MaxFilter(5))) == 0
        assert np.abs(after[place].astype(int) - before[record.stem][place]).mean() > 10
        assert record.model.startswith("comfy ") and record.scores["psnr"] < 60
    assert main(["scenes", "verify", str(pets)]) == 0


def test_a_workflow_that_fails_is_one_message(server, pets: Path, tmp_path: Path, capsys) -> None:
    broken = json.loads(json.dumps(WORKFLOW))
    broken["8"]["inputs"]["sampler_name"] = "no such sampler"
    (tmp_path / "workflow.json").write_text(json.dumps(broken))
    command = ["scenes", "repaint", str(pets), "--with", "comfy", "--url", server.address]
    assert main([*command, "--workflow", str(tmp_path / "workflow.json"), "--progress", "off"]) == 2
    message = capsys.readouterr().err
    assert "ComfyUI refuses /prompt: 400" in message and "no such sampler" in message and "Traceback" not in message
