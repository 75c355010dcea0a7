"""The templates as a person opens them: every block has the room that the browser gives it."""

import json
from pathlib import Path

WORKFLOWS = Path(__file__).parent.parent.parent.parent / "example_workflows"

MEASURE = """() => app.graph.nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const scale = app.canvas.ds.scale;
    const box = element?.getBoundingClientRect();
    // a canvas node's title lies above its place; the element of a Vue node holds it
    const [width, height] = box ? [box.width / scale, box.height / scale] : [node.size[0], node.size[1] + 30];
    return {name: `${node.id} ${node.title}`, drawn: Boolean(box), left: node.pos[0], top: node.pos[1] - 30, width, height};
})"""


def overlaps(boxes):
    """Pairs of blocks that share more than a hair."""
    found = []
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            across = min(one["left"] + one["width"], other["left"] + other["width"]) - max(one["left"], other["left"])
            down = min(one["top"] + one["height"], other["top"] + other["height"]) - max(one["top"], other["top"])
            if across > 1 and down > 1:
                found.append((one["name"], other["name"], round(down)))
    return found


def test_blocks_that_share_room_are_found():
    box = {"left": 0, "top": 0, "width": 10, "height": 10}
    assert overlaps([{**box, "name": "a"}, {**box, "name": "b", "top": 4}]) == [("a", "b", 6)]
    assert overlaps([{**box, "name": "a"}, {**box, "name": "b", "top": 10}]) == []


def test_no_two_blocks_of_a_template_overlap(desk):
    faults = {}
    for path in sorted(WORKFLOWS.glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        desk.page.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        # far away, so that all blocks are drawn
        desk.page.evaluate(
            "() => { app.canvas.ds.scale = 0.3; app.canvas.ds.offset = [60, 100]; app.canvas.setDirty(true, true) }"
        )
        desk.page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
        if desk.vue:
            desk.page.wait_for_function("() => document.querySelectorAll('[data-node-id]').length > 0")
        # panels open after their first answer
        desk.page.wait_for_timeout(1000)
        if found := overlaps(desk.page.evaluate(MEASURE)):
            faults[path.stem] = found
    assert faults == {}
