"""Tests of loading in a real ComfyUI: the pack is there with every node."""


def test_comfyui_loads_the_pack_and_lists_every_node(server):
    from bestiary.nodes.registration import NODES

    faults = [line for line in server.log.read_text().splitlines() if "IMPORT FAILED" in line and "Bestiary" in line]
    assert faults == []
    listed = server.get("/object_info").json()
    ours = {name for name, info in listed.items() if info["python_module"].endswith("ComfyUI-Bestiary")}
    assert ours == {node.GET_SCHEMA().node_id for node in NODES}
    assert all(name.startswith("Bestiary") for name in ours)
