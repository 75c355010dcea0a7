"""State of a discovery: shards come back as stored, plans that differ are refused by name, leftovers are removed."""

import json
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.trainer.discovery.state import (
    DiscoveryState,
    PartShard,
    SampleShard,
    files_digest,
    open_plan,
)


def part_shard(index: list[int], width: int = 5) -> PartShard:
    generator = torch.Generator().manual_seed(sum(index))
    return PartShard(
        torch.tensor(index, dtype=torch.int32),
        torch.randint(0, 3, (len(index), 4, 4), generator=generator, dtype=torch.uint8),
        torch.randint(0, 9, (len(index), 3), generator=generator, dtype=torch.int32),
        torch.randn(len(index), 3, width, generator=generator).half(),
    )


def test_shards_cover_all_pictures() -> None:
    state = DiscoveryState(Path("state"), 10, 4)
    assert state.num_shards == 3
    assert [list(state.images_of(shard)) for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_part_shards_come_back_in_order_with_their_skipped_files(tmp_path: Path) -> None:
    state = DiscoveryState(tmp_path, 9, 4)
    shards = [part_shard([0, 2, 3]), None, part_shard([8])]
    for number, skipped in ((2, []), (0, [("b ü.png", "the file is empty")]), (1, [("c.png", "x"), ("d.png", "y")])):
        state.write_parts(number, shards[number], skipped)
    found = list(state.read_parts())
    assert state.count_parts() == 4
    assert [shard.index.tolist() for shard in found] == [[0, 2, 3], [8]]
    for ours, theirs in zip(found, [shards[0], shards[2]], strict=True):
        for name in ("labels", "counts", "means"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert list(state.read_skipped()) == [("b ü.png", "the file is empty"), ("c.png", "x"), ("d.png", "y")]


@pytest.mark.parametrize("with_saliency", [True, False])
def test_sampled_features_are_rounded_to_half_precision(tmp_path: Path, with_saliency: bool) -> None:
    state = DiscoveryState(tmp_path, 4, 4)
    features, saliency = torch.randn(2, 3, 3, 6), torch.rand(2, 3, 3) if with_saliency else None
    state.write_sample(0, SampleShard(torch.tensor([1, 3]), PatchGrid(features, saliency)), [("a", "b")])
    found, skipped = state.read_sample(0)
    assert skipped == [("a", "b")] and found.index.tolist() == [1, 3]
    assert torch.equal(found.grid.features, features.half().float())
    assert found.grid.saliency is None if saliency is None else torch.equal(found.grid.saliency, saliency)
    assert state.read_sample(1) == (None, [])
    state.remove_samples()
    assert state.read_sample(0) == (None, [])


def test_a_sample_without_readable_pictures_keeps_the_reasons(tmp_path: Path) -> None:
    state = DiscoveryState(tmp_path, 4, 4)
    state.write_sample(0, None, [("a.png", "the file is empty")])
    assert state.read_sample(0) == (None, [("a.png", "the file is empty")])


def test_at_768_channels_and_8_parts_a_picture_takes_less_than_13_kib() -> None:
    shard = PartShard(
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, 16, 16, dtype=torch.uint8),
        torch.zeros(4, 8, dtype=torch.int32),
        torch.zeros(4, 8, 768, dtype=torch.float16),
    )
    assert shard.bytes_per_image == 4 + 256 + 32 + 12288
    assert shard.bytes_per_image <= 13 * 1024


def test_a_damaged_shard_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    state = DiscoveryState(tmp_path, 1, 1)
    state.part_path(0).write_bytes(b"not a safetensors file")
    with pytest.raises(BestiaryError) as fault:
        list(state.read_parts())
    assert str(fault.value).startswith(f"{state.part_path(0)} cannot be read (")
    assert str(fault.value).endswith("): delete this file and run the command again")


def test_the_same_plan_continues_and_another_is_refused_by_name(tmp_path: Path) -> None:
    plan = {"seed": 0, "num_parts": None, "files": {"count": 3, "digest": "abc"}}
    open_plan(tmp_path, plan)
    DiscoveryState(tmp_path / "state", 1, 1).write_parts(0, part_shard([0]), [])
    open_plan(tmp_path, plan)
    changed = {"seed": 1, "num_parts": 5, "files": {"count": 4, "digest": "abd"}}
    with pytest.raises(BestiaryError) as fault:
        open_plan(tmp_path, changed)
    assert str(fault.value) == (
        f"{tmp_path} contains a discovery with other settings (seed was 0, now 1; num_parts was auto, now 5; "
        "the picture files have changed since): choose another --out, or give --restart to discard it"
    )
    assert (tmp_path / "state" / "parts-000000.safetensors").exists()
    open_plan(tmp_path, changed, restart=True)
    assert json.loads((tmp_path / "state" / "plan.json").read_text())["seed"] == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["plan.json"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    open_plan(tmp_path, {"seed": 0})
    leftover = tmp_path / "state" / ".parts-000000.safetensors.123.part"
    leftover.write_bytes(b"half")
    open_plan(tmp_path, {"seed": 0})
    assert not leftover.exists()


def test_a_damaged_plan_is_reported(tmp_path: Path) -> None:
    open_plan(tmp_path, {"seed": 0})
    (tmp_path / "state" / "plan.json").write_text("{")
    with pytest.raises(BestiaryError) as fault:
        open_plan(tmp_path, {"seed": 0})
    assert str(fault.value).startswith(f"{tmp_path / 'state' / 'plan.json'} cannot be read (")
    assert str(fault.value).endswith("start over with --restart")
    open_plan(tmp_path, {"seed": 0}, restart=True)


def test_the_digest_follows_names_and_sizes(tmp_path: Path) -> None:
    names = ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    before = files_digest(tmp_path, names)
    assert files_digest(tmp_path, names) == before
    assert files_digest(tmp_path, names[:1]) != before
    (tmp_path / "b.png").write_bytes(b"22")
    assert files_digest(tmp_path, names) != before
