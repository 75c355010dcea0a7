"""Evaluation end to end on a tiny model: real pictures score 1, figures and page are written, mismatches are refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.trainer.__main__ import main
from bestiary.trainer.composing.picture_making import SamplingChoice
from bestiary.trainer.demo.drawn_masks import draw_pictures
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.evaluation import evaluate as evaluate_module
from bestiary.trainer.evaluation.cases import TestCase
from bestiary.trainer.evaluation.evaluate import PartsEvaluator, check_same_discovery, mention, plan_tests, prompt_of
from bestiary.trainer.evaluation.page import write_evaluation_page
from bestiary.trainer.evaluation.results import Evaluation
from bestiary.trainer.learning.discovery.discovery_folder import Discovery


@pytest.fixture(scope="module")
def discovery(tmp_path_factory) -> Discovery:
    folder = tmp_path_factory.mktemp("drawn")
    draw_pictures(folder, 16, seed=1)
    settings = DiscoverSettings(
        images=folder / "pictures", out=folder / "found", source="descriptor", num_parts=4, kinds=4, device="cpu"
    )
    discover(settings)
    return Discovery.load(folder / "found")


def make_dictionary(discovery: Discovery, **provenance: object) -> PartDictionary:
    codes = discovery.maps.codes
    rows = [
        (part, kind) for part in range(codes.shape[1]) for kind in codes[:, part].unique().tolist() if kind != ABSENT
    ]
    names = discovery.codebook.part_names
    if "codes_of_kind" in provenance:
        rows, names = [(0, kind) for kind in range(len(provenance["codes_of_kind"]))], ("whole",)
    vectors = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0)) * 0.1
    kinds = tuple({} for _ in names)
    background = discovery.codebook.background if len(names) > 1 else None
    return PartDictionary(
        "bestiary-demo", names, kinds, background, torch.tensor(rows), {"clip_l": vectors}, provenance=provenance
    )


@pytest.fixture(scope="module")
def evaluator(discovery, tiny_folder) -> PartsEvaluator:
    from bestiary.trainer.model.backbones import load_denoiser

    denoiser = load_denoiser(tiny_folder("bestiary-demo"), device="cpu", dtype="fp32")
    choice = SamplingChoice(steps=1, guidance=1, size=64)
    return PartsEvaluator(discovery, denoiser, count=3, seed=0, choice=choice, tests=["reconstruction", "mix4"])


@pytest.fixture(scope="module")
def evaluation(discovery, evaluator) -> Evaluation:
    evaluation = Evaluation(discovery, evaluator.ceiling())
    evaluation.results["ours"] = evaluator.run(
        "ours", make_dictionary(discovery), lambda stage: lambda done, total: None
    )
    return evaluation


def test_a_dictionary_of_a_transformer_is_evaluated_by_the_same_program(discovery, tiny_denoiser):
    denoiser = tiny_denoiser("sd3")
    plain = make_dictionary(discovery)
    vectors = {spec.name: torch.randn(len(plain.rows), spec.width) * 0.1 for spec in denoiser.backbone.text_encoders}
    ours = PartDictionary("sd3", plain.part_names, plain.kind_names, plain.background, plain.rows, vectors)
    choice = SamplingChoice(steps=1, guidance=1, size=64)
    evaluator = PartsEvaluator(discovery, denoiser, count=1, seed=0, choice=choice, tests=["reconstruction"])
    result = evaluator.run("ours", ours, lambda stage: lambda done, total: None)["reconstruction"]
    assert 0 <= result.scores["attention_iou"] <= 1 and 0 <= result.scores["emr"] <= 1


def test_real_pictures_through_the_same_path_score_one(evaluation):
    real = evaluation.ceiling["real"]
    assert (real["emr"], real["absent_rate"]) == (1, 0)
    assert (real["cosim"], real["part_likeness"], real["image_similarity"]) == pytest.approx((1, 1, 1), abs=1e-5)
    assert evaluation.ceiling["reencoded"]["emr"] < 1


def test_every_test_has_all_figures(evaluation):
    scores = evaluation.figures()["methods"]["ours"]
    assert scores.keys() == {"reconstruction", "mix4"}
    assert scores["mix4"]["pictures"] == 3 and scores["mix4"]["image_similarity"] is None
    assert 0 <= scores["reconstruction"]["emr"] <= 1
    assert 0 <= scores["reconstruction"]["attention_iou"] <= 1
    json.dumps(evaluation.figures(), allow_nan=False)


def test_page_shows_pictures_before_figures(evaluation, tmp_path):
    text = write_evaluation_page(tmp_path / "index.html", evaluation).read_text(encoding="utf-8")
    assert text.index('class="recipe"') < text.index("<table>")
    assert "mix of 4 sources" in text and "real pictures through the autoencoder" in text
    assert text.count("data:image/webp") > 10


def test_tests_follow_from_the_discovery(discovery):
    tests = plan_tests(discovery, 2, seed=0, most_sources=9)
    assert list(tests) == ["reconstruction", "mix1", "mix2", "mix3", "mix4"]


def test_prompt_names_every_part_known(discovery):
    dictionary, names = make_dictionary(discovery), ("head", "body", "legs", "tail", "background")
    object.__setattr__(dictionary, "part_names", names)
    codebook = discovery.codebook.with_names(names, ({},) * len(names))
    case = TestCase(tuple(discovery.maps.codes[0].tolist()), (0, 0, 0, 0, 0), 0)
    tokens = [f"<{names[part]}:{code}>" for part, code in enumerate(case.codes) if code != ABSENT]
    assert prompt_of(case, dictionary, codebook) == "a photo of a " + " ".join(tokens)


def test_whole_dictionary_gets_one_token_for_each_picture(discovery):
    parts = list(discovery.codebook.part_names)
    table = [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    whole = make_dictionary(discovery, codes_of_kind=table, parts_of_codes=parts)
    alone = TestCase((1, 1, 0, 1, 0), (3, 3, 3, 3, 3), 0)
    assert prompt_of(alone, whole, discovery.codebook) == "a photo of a <whole:1>"
    mixed = TestCase((1, 1, 0, 0, 0), (3, 3, 5, 5, 5), 0)
    prompt = prompt_of(mixed, whole, discovery.codebook)
    assert prompt == f"a photo of a <whole:1> {parts[0]} and {parts[1]} , <whole:0> {parts[2]} and {parts[3]}"
    check_same_discovery("whole", whole, discovery.codebook)


def test_mentions_of_parts_with_strange_names_use_numbers(discovery):
    dictionary = make_dictionary(discovery)
    object.__setattr__(dictionary, "part_names", ("head", "part 2", "3", "tail:x", "background"))
    assert [mention(dictionary, part, 0) for part in range(4)] == ["<head:0>", "<1:0>", "<2:0>", "<3:0>"]
    assert mention(dictionary, 0, 1, 3, share=0.25) == "<head:1*0.75+3*0.25>"


def test_dictionary_of_another_discovery_is_refused(discovery):
    other = make_dictionary(discovery)
    object.__setattr__(other, "part_names", ("beak", "wing", "body", "tail", "background"))
    with pytest.raises(BestiaryError, match="dictionary birds has the parts beak, wing, body, tail, background, but"):
        check_same_discovery("birds", other, discovery.codebook)


def test_command_line_writes_figures_and_page(discovery, tiny_folder, tmp_path, capsys):
    path = tmp_path / "creatures.safetensors"
    make_dictionary(discovery).save(path)
    options = ["--discovery", discovery.folder, "--base", tiny_folder("bestiary-demo"), "--out", tmp_path / "result"]
    options += ["--count", 1, "--steps", 1, "--guidance", 1, "--device", "cpu", "--progress", "off"]
    assert main(["evaluate", "parts", str(path), *map(str, options), "--baseline", f"again={path}"]) == 0
    figures = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert figures["methods"].keys() == {"creatures", "again"}
    assert figures["methods"]["creatures"]["mix4"]["emr"] == figures["methods"]["again"]["mix4"]["emr"]
    assert str(tmp_path / "result" / "index.html") in capsys.readouterr().out


def test_missing_baseline_and_empty_discovery_are_one_line(discovery, tmp_path, capsys):
    path = tmp_path / "creatures.safetensors"
    make_dictionary(discovery).save(path)
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "parts", str(path), "--discovery", str(tmp_path / "empty")]) == 2
    assert "no discovery" in capsys.readouterr().err
    assert main(["evaluate", "parts", str(path), "--discovery", str(tmp_path), "--baseline", "x=nothing"]) == 2
    assert "no file nothing" in capsys.readouterr().err


def test_pictures_that_are_gone_are_one_line(tmp_path, capsys, tiny_folder):
    draw_pictures(tmp_path, 16, seed=1)
    settings = DiscoverSettings(
        images=tmp_path / "pictures", out=tmp_path / "found", source="descriptor", kinds=2, device="cpu"
    )
    discover(settings)
    found = Discovery.load(tmp_path / "found")
    path = tmp_path / "creatures.safetensors"
    make_dictionary(found).save(path)
    for picture in (tmp_path / "pictures").iterdir():
        picture.unlink()
    assert (
        main(
            [
                "evaluate",
                "parts",
                str(path),
                "--discovery",
                str(tmp_path / "found"),
                "--base",
                str(tiny_folder("bestiary-demo")),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "0000.png" in error and error.count("\n") == 1


def test_dictionaries_of_classes_are_read_as_classes(discovery, evaluator, tmp_path):
    names = [path.name for path in discovery.image_paths]
    table = ["path,class", *(f"{name},{'even' if number % 2 == 0 else 'odd'}" for number, name in enumerate(names))]
    (tmp_path / "labels.csv").write_text("\n".join(table))
    made = make_dictionary(discovery, ids="class")
    for part, named in enumerate(made.kind_names):
        named.update({} if part == discovery.codebook.background else {0: "even", 1: "odd"})
    with pytest.raises(BestiaryError, match="dictionary birds was trained on classes: give --labels"):
        evaluator.run("birds", made, lambda stage: lambda done, total: None)
    evaluator._labels = tmp_path / "labels.csv"
    try:
        result = evaluator.run("birds", made, lambda stage: lambda done, total: None)["reconstruction"]
        strange = make_dictionary(discovery, ids="class")
        with pytest.raises(BestiaryError, match=r"number the classes of .* differently, for example 'even': give"):
            evaluator.run("birds", strange, lambda stage: lambda done, total: None)
    finally:
        evaluator._labels = None
    background = discovery.codebook.background
    asked = {code for case in result.cases for part, code in enumerate(case.codes) if part != background}
    assert asked <= {ABSENT, 0, 1}


def test_pictures_are_read_with_the_embedded_model_of_their_codebook(monkeypatch):
    made_with = SimpleNamespace(backbone=SimpleNamespace(name="bestiary-demo-dit"), device=torch.device("cpu"))
    monkeypatch.setattr(evaluate_module, "load_denoiser", lambda name, **_: name)
    readers = [
        evaluate_module._reader(SimpleNamespace(feature_spec={"name": "diffusion", "backbone": backbone}), made_with)
        for backbone in ("bestiary-demo", "bestiary-demo-dit", "sd15", None)
    ]
    assert readers == ["demo", made_with, made_with, made_with]
