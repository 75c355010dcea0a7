"""Layouts as text: every form that is read, what is said about it, and text that is meant to do harm."""

import json
import time
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.layout_measures import box_occlusion, is_inside
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_layout
from bestiary.scenes.layout_text import layout_from_text, layout_request
from bestiary.scenes.literal_text import find_values

REQUEST = LayoutRequest(512, 512, 3)
ANSWER = '{"canvas": [512, 512], "scene": "a garden", "objects": [{"id": "dog", "box": [300, 200, 200, 200]}, {"id": "cat", "box": [10, 300, 100, 100]}]}'

FORMS = {
    "JSON": ANSWER,
    "fenced": f"```json\n{ANSWER}\n```",
    "chatty": f"Sure! Here's the layout (it's what you asked for):\n\n{ANSWER}\n\nLet me know if {{anything}} isn't right :)",
    "one line of chat": f"It's this: {ANSWER} and that's it",
    "after a draft": f'First {{"objects": [{{"id": "cat", "box": [0, 0, 9, 9]}}]}}, better: {ANSWER}',
    "second thoughts": f"{ANSWER.replace('[10, 300', '[90, 300')}\nNo:\n{ANSWER}",
    "tuples": "[('a dog', [300, 200, 200, 200]), ('a cat', [10, 300, 100, 100])]",
    "tuples of five": "(('dog', 300, 200, 200, 200), ('cat', 10, 300, 100, 100),)",
    "LMD": "Objects: [('a dog', [300, 200, 200, 200]), ('a cat', [10, 300, 100, 100])]\nBackground prompt: a garden\nNegative prompt: ",
    "tuples without brackets": "('dog', [300, 200, 200, 200]), ('cat', [10, 300, 100, 100])",
    "Python's dictionary": "{'cat': (10, 300, 100, 100), 'dog': [300, 200, 200, 200,], 'ok': True}",
    "JSON with Python's comma": '{"cat": [10, 300, 100, 100], "dog": [300, 200, 200, 200], "ok": true,}',
    "lines": "1. **Cat**: [10, 300, 100, 100]\n2. **Dog**: (300, 200, 200, 200)",
    "mapping of sides": '{"cat": {"x": 10, "y": 300, "width": 100, "height": 100}, "dog": {"x1": 300, "y1": 200, "x2": 500, "y2": 400}}',
    "corners": '[{"label": "cat", "bbox_2d": [10, 300, 110, 400]}, {"label": "dog", "bbox_2d": [300, 200, 500, 400]}]',
    "box as mapping": '[{"name": "cat", "box": {"x": 10, "y": 300, "w": 100, "h": 100}}, {"name": "dog", "left": 300, "top": 200, "width": 200, "height": 200}]',
    "shares": '{"cat": [0.01953125, 0.5859375, 0.1953125, 0.1953125], "dog": [0.5859375, 0.390625, 0.390625, 0.390625]}',
    "another canvas": '{"canvas": {"width": 1024, "height": 256}, "boxes": {"cat": [20, 150, 200, 50], "dog": [600, 100, 400, 100]}}',
    "truncated": ANSWER.removesuffix("]}").removesuffix("}") + '}, {"id": "bi',
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["cat dog", "dog cat"])
def test_every_form_gives_each_name_its_own_box(make_subject, form: str, order: str) -> None:
    read = layout_from_text(FORMS[form], [make_subject(name) for name in order.split()], REQUEST)
    cat, dog = read.layout.placed("cat"), read.layout.placed("dog")
    assert (cat.x, cat.y, cat.width, cat.height) == pytest.approx((10, 300, 100, 100))
    assert (dog.x, dog.y, dog.width, dog.height) == pytest.approx((300, 200, 200, 200))
    assert read.notes == () and read.layout.made_by == "text" and (dog.z, cat.z) in {(0, 1), (1, 0)}
    assert read.place == ("a garden" if "garden" in FORMS[form] and form != "truncated" else "")


def test_our_own_layouts_come_back(make_subject) -> None:
    subjects = [make_subject("cat", 1.5), make_subject("dog", 0.7), make_subject("bird", support="sky")]
    layout = solve_layout(subjects, LayoutRequest(640, 384, 5, turn=10))
    read = layout_from_text(layout.to_json(), subjects, LayoutRequest(640, 384, 5))
    assert read.layout.placements == layout.placements and read.notes == ()
    double = layout_from_text(layout.to_json(), subjects, LayoutRequest(1280, 768)).layout
    assert double.placed("cat").x == pytest.approx(2 * layout.placed("cat").x)


def test_tuples_are_read_on_512_pixels_and_it_is_said(make_subject) -> None:
    read = layout_from_text(FORMS["LMD"], [make_subject("cat"), make_subject("dog")], LayoutRequest(1024, 1024))
    assert read.layout.placed("cat").x == 20 and read.layout.placed("dog").width == 400
    assert read.notes == ("tuples without a canvas: read as on 512 x 512",)
    read = layout_from_text(
        FORMS["LMD"], [make_subject("cat"), make_subject("dog")], LayoutRequest(1024, 1024), (1024, 1024)
    )
    assert read.layout.placed("cat").x == 10 and read.notes == ()


def test_a_truncated_answer_keeps_its_canvas(make_subject) -> None:
    text = ANSWER.replace("512, 512", "1024, 1024").removesuffix("]}") + ', {"id": "b'
    read = layout_from_text(text, [make_subject("cat"), make_subject("dog")], REQUEST)
    assert read.layout.placed("dog").width == 100


def test_coco_boxes_are_normalised_by_their_picture(make_subject) -> None:
    """(480, 240, 160, 240) of 640 x 480 is (384, 256, 128, 256) of 512 x 512."""
    coco = {
        "images": [
            {"id": 4, "width": 100, "height": 100},
            {"id": 7, "width": 640, "height": 480, "file_name": "a.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [480, 240, 160, 240]},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [0, 0, 5, 5]},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 240, 320, 240]},
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    read = layout_from_text(json.dumps(coco), [make_subject("dog"), make_subject("cat", 0.5)], REQUEST)
    cat = read.layout.placed("cat")
    assert (cat.x, cat.y, cat.width, cat.height) == pytest.approx((384, 256, 128, 256))
    assert read.layout.placed("dog").x == pytest.approx(0) and read.notes == ()


def test_an_answer_with_faults_is_repaired_and_it_is_said(make_subject) -> None:
    subjects = [make_subject("cat"), make_subject("dog"), make_subject("bird", support="sky")]
    text = '{"objects": [{"id": "cat", "box": [450, 300, 100, 100]}, {"id": "cat", "box": [1, 1, 9, 9]}, {"id": "cow", "box": [1, 1, 9, 9]}, {"id": "dog", "box": [400, 300, 100, 100]}]}'
    read = layout_from_text(text, subjects, REQUEST)
    assert is_inside(read.layout) and box_occlusion(read.layout) <= 0.15 + 1e-6
    assert [one.subject for one in read.layout.placements] == ["cat", "dog", "bird"]
    assert read.layout.placed("dog").x < read.layout.placed("cat").x
    assert (
        "'cow' is not a subject of the scene: left out" in read.notes
        and "'bird' had no usable box: added" in read.notes
    )
    assert "moved onto the canvas" in read.notes and any("moved apart" in note for note in read.notes)
    assert layout_from_text(text, subjects, REQUEST) == read


@pytest.mark.parametrize(
    "code",
    [
        "[('cat', __import__('os').system('touch {file}'))]",
        "[('cat', [1, 2, 3, 4]), __import__('os').system('touch {file}')]",
        "Objects: [('a cat', [eval(\"open('{file}', 'w')\"), 2, 3, 4])]",
        "[('cat', open('{file}', 'w'))]",
        "[('cat', [1, 2, 3, (lambda: open('{file}', 'w'))()])]",
        "[('cat', [().__class__.__base__.__subclasses__(), 2, 3, 4])]",
    ],
)
def test_code_raises_and_runs_nothing(make_subject, tmp_path: Path, code: str) -> None:
    file = tmp_path / "sentinel"
    with pytest.raises(
        BestiaryError, match="holds what looks like program code, .*, which is never run: ask for JSON alone"
    ):
        layout_from_text(code.replace("{file}", str(file)), [make_subject("cat")], REQUEST)
    assert not file.exists()


@pytest.mark.parametrize(
    "text",
    [
        "('cat', [1+1, 2, 3, 4])",
        "('cat', [10**10**10, 2, 3, 4])",
        "('cat', 'x' * 9999999999)",
        "('cat', [*range(4)])",
        "('cat', [1, 2, 3, f'{4}'])",
        "('cat', [n for n in (1, 2, 3, 4)])",
        "{[1]: ('cat', 2)}",
        '{"cat": [NaN, 1, 2, 3]}',
        '{"cat": [1, 2, 3, Infinity]}',
        '{"cat": ["1", "2", "3", "4"]}',
        '{"cat": [true, true, true, true]}',
        '{"cat": [1, 2, 3]}',
        "",
        "I cannot do that.",
        "null",
        "[[], {}, ()]",
    ],
)
def test_text_without_boxes(make_subject, text: str) -> None:
    with pytest.raises(BestiaryError, match="the text holds no box: write JSON such as .*; wanted 'cat'"):
        layout_from_text(text, [make_subject("cat")], REQUEST)


def test_boxes_of_nobody(make_subject) -> None:
    with pytest.raises(BestiaryError, match="no box of the text has the name of a subject: found 'cow'; wanted 'cat'"):
        layout_from_text('{"cow": [1, 2, 3, 4]}', [make_subject("cat")], REQUEST)


def test_an_empty_box_is_no_box(make_subject) -> None:
    read = layout_from_text(
        '{"cat": [1, 2, -3, 4], "dog": [9, 9, 90, 90]}', [make_subject("cat"), make_subject("dog")], REQUEST
    )
    assert read.notes[0] == "the box of 'cat' is empty or no number: left out" and is_inside(read.layout)


@pytest.mark.parametrize(("canvas"), [(0, 512), (512,), (float("nan"), 1)])
def test_a_canvas_that_cannot_be(make_subject, canvas: tuple[float, ...]) -> None:
    with pytest.raises(BestiaryError, match="the canvas of a text, .* must be a width and a height above 0"):
        layout_from_text(ANSWER, [make_subject("cat")], REQUEST, canvas)


SIZE = 99_000
HOSTILE = {
    "open lists": "[" * SIZE,
    "open mappings": '{"a":' * (SIZE // 5),
    "lists": "[" * 60 + "1," * (SIZE // 2 - 60) + "]" * 60,
    "signs": "[" + "-" * SIZE + "1]",
    "sums": "[" + "1+" * (SIZE // 2 - 2) + "1]",
    "digits": "[" + "9" * (SIZE - 2) + "]",
    "quotes": "['" * 30 + "'" * (SIZE - 60),
    "escaped quotes": "['" + "\\'" * (SIZE // 2 - 1),
    "unclosed strings": '["a\n' * 60 + "x" * (SIZE - 300),
    "small lists": "[1]" * (SIZE // 3),
    "wrong lists": "[x]" * (SIZE // 3),
    "many boxes": "[" + "('cow',[1,2,3,4])," * (SIZE // 18) + "]",
    "many single boxes": "('cow',[1,2,3,4])\n" * (SIZE // 18),
    "lines": "a: [1, 2, 3, 4]\n" * (SIZE // 16),
    "almost lines": ("a" * 79 + " " * 3) * (SIZE // 82),
    "spaces": " " * SIZE,
    "canvas": "canvas " * (SIZE // 7),
    "lambda": "lambda " * (SIZE // 7),
    "long names": json.dumps({"a" * 45_000: [1, 2, 3, 4], "b" * 45_000: [1, 2, 3, 4]}),
    "smileys": "(: " * 40 + ":) " * 30_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_ends_soon_in_one_error(make_subject, kind: str) -> None:
    begun = time.process_time()
    with pytest.raises(BestiaryError):
        layout_from_text(HOSTILE[kind], [make_subject("cat"), make_subject("dog")], REQUEST)
    # about half a second at most on a core of its own; without the bounds minutes
    assert time.process_time() - begun < 3


def test_a_text_that_is_too_long_or_too_deep(make_subject) -> None:
    with pytest.raises(
        BestiaryError, match="a text of 100001 characters is too long for a layout: at most 100 kB are read"
    ):
        find_values("x" * 100_001)
    with pytest.raises(BestiaryError, match="a text of 50001 characters"):
        find_values("é" * 50_001)
    with pytest.raises(BestiaryError, match="brackets nested deeper than 64"):
        find_values("[" * 65 + "]" * 65)
    assert find_values("[" * 64 + "]" * 64)


def test_values_are_data() -> None:
    assert find_values("a [1, 2] b {'x': (True, None, -1.5e3)} c") == [[1, 2], {"x": (True, None, -1500.0)}]
    assert find_values("f(1)(2)") == [1, 2]
    assert find_values('["a]", "b\\"]"]') == [["a]", 'b"]']]


def test_the_question_names_every_subject_and_its_answer_is_read(make_subject) -> None:
    subjects = [
        make_subject("my cat", 1.5, words="a <head:tabby> cat", size=0.5, support="on:sofa"),
        make_subject("sofa", 2, size=1),
        make_subject("bird", support="sky", size=0.4),
    ]
    question = layout_request(subjects, "in a garden", 640, 480)
    assert "Plan a picture in a garden. Its canvas is 640 pixels wide and 480 pixels high" in question
    assert (
        "- my_cat: a <head:tabby> cat; stands on sofa; its longest side is 50% of the largest one's; width : height = 1.48 : 1"
        in question
    )
    assert "- bird: bird; is in the air" in question
    form = question.splitlines()[-1]
    assert [one["id"] for one in json.loads(form)["objects"]] == ["my_cat", "sofa", "bird"]
    boxes = iter(["[200, 200, 100, 80]", "[100, 280, 400, 150]", "[20, 20, 80, 80]"])
    while '["left", "top", "width", "height"]' in form:
        form = form.replace('["left", "top", "width", "height"]', next(boxes), 1)
    read = layout_from_text(form, subjects, LayoutRequest(640, 480))
    assert (
        read.notes == ()
        and read.layout.placed("bird").x == 20
        and read.place == "a short description of the background"
    )


def test_the_question_needs_subjects() -> None:
    with pytest.raises(BestiaryError, match="at least one subject, got none"):
        layout_request([], "in a garden")
