"""What beginners need not see is marked so, in the words that this ComfyUI hands to its frontend."""


def test_marked_inputs_exist_and_reach_the_frontend(server):
    from bestiary.nodes.host.advanced_inputs import ADVANCED

    described = server.get("/object_info").json()
    for node, names in ADVANCED.items():
        inputs = {name: facts for group in described[node]["input"].values() for name, facts in group.items()}
        marked = {name for name, facts in inputs.items() if len(facts) > 1 and facts[1].get("advanced")}
        assert marked == set(names), node
