"""A set of scenes in a real ComfyUI's queue, without any model; ComfyUI's own document of the nodes' menus."""

from __future__ import annotations

from bestiary.nodes.scenes.scene_set_nodes import VIEWS
from bestiary.scenes.set_verify import verify_set
from bestiary.scenes.set_views import KINDS


def node(name: str, /, **inputs: object) -> dict:
    return {"class_type": name, "inputs": inputs}


def set_graph(name: str = "drawn pets", **save: object) -> dict:
    """Two drawn creatures, three scenes, captions, a core node in place of the model, a set."""
    graph = {f"draw{number}": node("BestiaryDemoPictures", count=1, seed=number, first=number) for number in range(2)}
    graph["cat"] = node(
        "BestiarySubject", image=["draw0", 0], mask=["draw0", 2], name="cat", words="", size="", support="ground"
    )
    graph["dog"] = node(
        "BestiarySubject",
        image=["draw1", 0],
        mask=["draw1", 2],
        name="dog",
        words="<head:3> dog",
        size="",
        support="ground",
        subjects=["cat", 0],
    )
    layout = {"width": 128, "height": 96, "count": 3, "seed": 1, "coverage": 0.3, "max_occlusion": 0.15}
    layout |= {"ground": 0.62, "perspective": 0.3, "flip": True}
    graph["layout"] = node("BestiarySolveLayout", subjects=["dog", 0], **layout)
    linked = {"subjects": ["dog", 0], "layouts": ["layout", 0]}
    graph["scene"] = node("BestiaryComposeScene", background_mode="noise", inset=3, feather=0, shadow=0.5, **linked)
    graph["decoded"] = node("ImageInvert", image=["scene", 0])
    graph["restored"] = node(
        "BestiaryRestoreSubjects",
        decoded=["decoded", 0],
        canvas=["scene", 0],
        mask=["scene", 1],
        feather=2,
        lightness=0.0,
    )
    limits = {"min_fidelity": 30.0, "max_seam": 50.0, "min_place": 0.02, "max_extra": 0.1}
    graph["judged"] = node(
        "BestiaryJudgeScene", image=["restored", 0], canvas=["scene", 0], mask=["scene", 1], **limits
    )
    graph["text"] = node(
        "BestiarySceneCaption", template="a photo of {subjects} {place}", place="in a garden", relations=False, **linked
    )
    asked = {"name": name, "target": "output", "view": "none", **save}
    graph["save"] = node(
        "BestiarySaveSceneSet",
        scenes=["scene", 5],
        captions=["text", 0],
        prompts=["text", 1],
        image=["judged", 0],
        place="in a garden",
        **asked,
    )
    graph["references"] = node("BestiarySubjectReferences", size=128, **linked)
    graph["shown"] = node("PreviewImage", images=["references", 0])
    graph["told"] = node("PreviewAny", source=["references", 1])
    return graph


def test_a_set_is_written_without_a_sampler(server):
    outputs = server.run(set_graph())
    folder = server.folder / "output" / "drawn pets"
    assert outputs["save"]["text"] == [f"3 scenes in {folder}"] and verify_set(folder) == []
    assert (folder / "images" / "000002.txt").read_text("utf-8") == "a photo of a cat and a dog in a garden\n"
    assert '"prompt": "a photo of a cat and a <head:3> dog in a garden"' in (
        folder / "layouts" / "000001.json"
    ).read_text("utf-8")
    assert "rejected" not in outputs["judged"]["text"][0] and len(outputs["shown"]["images"]) == 2
    assert outputs["told"]["text"][0].startswith("put the cat of picture 1 and the dog of picture 2")


def test_a_set_cannot_leave_the_output_folder(server):
    assert "name of the set" in server.fail(set_graph("../outside"))
    assert not (server.folder / "outside").exists()


def test_the_menu_of_views_is_the_library_s():
    assert set(VIEWS) == {"none", *KINDS}
