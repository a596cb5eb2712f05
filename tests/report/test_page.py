"""The demo page: whole, safe, small, honest, and with pictures that are the arrays."""

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float
from PIL import Image

from jcos.lab.tasks import TASKS
from jcos.report.demo import Comparison, Curve, Demo, Example
from jcos.report.page import render, write_demo
from jcos.report.words import verdict

SHOWN = [0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 49]
VOID = {"meta", "link", "img", "input", "br"}


def fake_mass(steps: np.ndarray, answers: int, winner: int, at: float) -> Float[np.ndarray, "S K"]:
    """Masses that begin near even and end on `winner`, half decided at step `at`."""
    start = np.linspace(1.0, 0.6, answers)
    start /= start.sum()
    pull = 1 / (1 + np.exp(-(steps[:, None] - at) / 4))
    return (start * (1 - pull) + np.eye(answers)[winner] * pull) * (1 - 0.05 * np.exp(-steps / 8))[
        :, None
    ]


def fake_example(name: str, *, at: float = 14.0, solved: bool = True, several: int = 1) -> Example:
    """A run that fades from the blend of all right answers (or of a wrong one) into one."""
    task = TASKS[name]
    rng = np.random.default_rng(5)
    seeds = (seed for seed in range(3000) if len(task.sample(seed, "test").answers) >= several)
    puzzle = task.sample(next(seeds), "test")
    right = np.stack([task.draw(puzzle, answer) for answer in puzzle.answers])
    wrong = task.draw(puzzle, task.guess(puzzle, rng))
    shown = right if solved and len(right) > 1 else np.stack([right[0], wrong])
    steps = np.arange(50)
    winner = int(not solved) if len(right) == 1 else 1
    mass = fake_mass(steps, len(shown), winner, at)
    blend = np.einsum("sk,kfhwc->sfhwc", mass / mass.sum(1, keepdims=True), shown.astype(float))
    blend += rng.normal(size=blend.shape) * (12 * np.exp(-steps / 15))[:, None, None, None, None]
    blend[:, 0] = shown[0, 0]
    x0 = blend.round().clip(0, 255).astype(np.uint8)
    scores = [task.score(puzzle, x0[step]).score for step in SHOWN]
    many = len(right) > 1
    return Example(
        task=name,
        about=task.about,
        prompt=puzzle.prompt,
        seed="puzzle 3 of the held-out ones, noise seed 0, taken because it has several answers",
        steps=SHOWN,
        x0=x0[SHOWN],
        video=x0[-1],
        reference=right[0],
        scores=scores,
        solved=solved,
        mass=mass if many else None,
        off=0.3 * np.exp(-steps / 6) if many else None,
        answers=right if many else None,
    )


def fake_curve(label: str, y: np.ndarray, n: int = 128) -> Curve:
    half = 1.96 * np.sqrt(np.clip(y * (1 - y), 0.004, 1) / n)
    low, high = (y - half).clip(0, 1), (y + half).clip(0, 1)
    return Curve(
        label=label, x=list(range(len(y))), y=y.tolist(), low=low.tolist(), high=high.tolist(), n=n
    )


def rising(first: float, last: float, at: float) -> np.ndarray:
    s = 1 / (1 + np.exp(-(np.arange(50) - at) / 4))
    return first + (last - first) * (s - s[0]) / (s[-1] - s[0])


def fake_demo() -> Demo:
    names = [name for name in TASKS if name != "maze"]
    ends = {"maze7": (0.12, 0.86), "tictactoe-block": (0.7, 0.93), "bounce-hard": (0.35, 0.81)}
    taken = rising(0.42, 0.98, 12)
    return Demo(
        examples=[
            fake_example("maze", several=3),
            *(
                fake_example(name, at=6 + 2 * i, solved=name != "bounce-hard")
                for i, name in enumerate(names)
            ),
        ],
        solved_by_step=[
            fake_curve(name, rising(*ends.get(name, (0.66 + 0.03 * i, 0.97)), 8 + i))
            for i, name in enumerate(TASKS)
        ],
        route_mass=[
            fake_curve("the route taken", taken, 64),
            fake_curve("all other routes", 0.97 - taken * 0.97, 64),
            fake_curve("explained by no route", 0.2 * np.exp(-np.arange(50) / 6), 64),
        ],
        noise_steps=fake_curve("score", rising(0.97, 0.01, 27)),
        noise_frames=fake_curve("score", np.array([0.97, 0.95, 0.93, 0.86, 0.31])),
        noise_baseline=0.973,
        ensemble=[
            Comparison(label="one seed", solved=0.93, low=0.9, high=0.952, n=384),
            Comparison(
                label="three seeds, blocks 2 and 3",
                solved=0.933,
                low=0.903,
                high=0.954,
                n=384,
                difference=0.003,
                difference_low=-0.008,
                difference_high=0.014,
            ),
            Comparison(
                label="three seeds, all blocks",
                solved=0.908,
                low=0.875,
                high=0.933,
                n=384,
                difference=-0.022,
                difference_low=-0.041,
                difference_high=-0.004,
            ),
        ],
        settings={
            "model": "toy (1.8 M parameters)",
            "steps": "50",
            "shift": "3.0",
            "solver": "Euler",
            "seeds": "puzzles 0, noise 0, 1, 2",
            "versions": "jcos 0.1.0, jax 0.10.2, flax 0.12.8, Python 3.11",
            "hardware": "2 CPU cores",
            "date": "2025-06-01",
            "seconds": "87",
        },
        command="jcos demo --seed 0 --puzzles 128",
    )


@pytest.fixture(scope="module")
def demo() -> Demo:
    return fake_demo()


@pytest.fixture(scope="module")
def page(demo: Demo) -> str:
    return str(render(demo))


class Reader(HTMLParser):
    """Collects tags and visible text, and fails where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def pictures(page: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(str(img["src"]).partition(",")[2]))))
        for img in Reader(page).all("img")
    ]


def flat(**changes: Any) -> Example:
    """A tiny example of two frames and two steps."""
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, 256, (2, 2, 4, 6, 3), dtype=np.uint8)
    given: dict[str, Any] = dict(
        task="maze", about="A maze.", prompt="go", seed="seed 0", steps=[0, 49], x0=x0, video=x0[1],
        reference=x0[0], scores=[0.25, 1.0], solved=True,
    )  # fmt: skip
    return Example(**(given | changes))


def test_the_page_is_written_whole_and_under_its_name_only(tmp_path, demo, page):
    path = write_demo(tmp_path / "new" / "folder", demo)
    assert path == tmp_path / "new" / "folder" / "index.html"
    assert path.read_text(encoding="utf-8") == page
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_the_page_is_small_and_needs_nothing_from_outside(page):
    assert len(page.encode()) < 3_000_000
    reader = Reader(page)
    assert not reader.all("script")
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    for name in ("src", "href", "srcset"):
        for tag, attrs in reader.tags:
            assert str(attrs.get(name, "data:")).startswith("data:"), (tag, name)
    assert all(img["alt"] for img in reader.all("img"))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_every_example_and_every_setting_is_there(demo, page):
    text = " ".join(Reader(page).text)
    for example in demo.examples:
        assert example.task in text
        assert f"“{example.prompt}”" in text
    for key, value in demo.settings.items():
        assert key in text
        assert value in text
    assert demo.command in text
    assert "2603.16870" in text
    assert text.count("✗ not solved") == 1
    assert text.count("✓ solved") == len(demo.examples) - 1  # the gallery and the hero


@pytest.mark.parametrize(
    "evil",
    [
        '<script>alert("x")</script>',
        "\"><img src=x onerror='y'>",
        "$title ${x} & 🙂 “é”",
        "</title>",
    ],
)
def test_texts_are_shown_as_they_are_and_never_run(evil):
    example = flat(task=evil, about=evil, prompt=evil, seed=evil)
    demo = Demo(
        examples=[example, example],
        solved_by_step=[Curve(label=evil, x=[0, 1], y=[0.1, 0.2])],
        route_mass=[Curve(label=evil, x=[0], y=[1.0])],
        noise_steps=Curve(label=evil, x=[0, 1], y=[0.1, 0.2]),
        ensemble=[Comparison(label=evil, solved=0.5, low=0.4, high=0.6, n=9, difference=0.1)],
        settings={evil: evil},
        command=evil,
        interval=evil,
    )
    page = str(render(demo))
    reader = Reader(page)
    assert not reader.all("script")
    assert not any("onerror" in attrs for _, attrs in reader.tags)
    assert all(str(img["src"]).startswith("data:") for img in reader.all("img"))
    text = "".join(reader.text)
    assert text.count(f"“{evil}”") == 2
    assert evil in text.split("To make it again:")[1]


def test_the_grid_is_the_arrays_pixel_for_pixel():
    example = flat()
    grid, film, reference = pictures(str(render(Demo(examples=[example]))))[:3]
    assert grid.shape[2] == 4
    scale = 10  # 6 pixels become about 60
    gap = grid.shape[0] // 2 - 4 * scale
    for step in range(2):
        for frame in range(2):
            top = step * (4 * scale + gap) + gap // 2
            left = frame * (6 * scale + gap) + gap // 2
            cell = grid[top : top + 4 * scale, left : left + 6 * scale]
            np.testing.assert_array_equal(cell[::scale, ::scale, :3], example.x0[step, frame])
            np.testing.assert_array_equal(
                cell[scale - 1 :: scale, scale - 1 :: scale, :3], example.x0[step, frame]
            )
            assert (cell[..., 3] == 255).all()
    assert (grid[..., 3] == 255).sum() == 4 * 4 * 6 * scale**2
    for strip, video in ((film, example.video), (reference, example.reference)):
        size = strip.shape[0] // 4
        np.testing.assert_array_equal(strip[::size, ::size], np.concatenate(list(video), axis=1))


def test_a_demo_of_one_example_has_no_empty_sections():
    page = str(render(Demo(examples=[flat()])))
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert len(headings) == 2
    assert headings[-1] == "How this page was made"


def test_films_of_different_lengths_each_have_their_keyframes():
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, 256, (1, 3, 4, 4, 3), dtype=np.uint8)
    longer = flat(steps=[0], x0=x0, video=x0[0], reference=x0[0], scores=[None])
    page = str(render(Demo(examples=[flat(), longer])))
    assert page.count("@keyframes film2{") == 1
    assert page.count("@keyframes film3{") == 1


def with_mass(rows: list[list[float]], **changes: Any) -> Example:
    answers = np.zeros((len(rows[0]), 2, 4, 6, 3), np.uint8)
    return flat(mass=np.array(rows), answers=answers, **changes)


def test_the_story_is_told_from_the_numbers():
    def told(example):
        return " ".join(Reader(str(render(Demo(examples=[example])))).text)

    fades = told(with_mass([[0.3, 0.5, 0.2], [0.95, 0.05, 0.0]]))
    assert "One maze, 3 shortest routes" in fades
    assert (
        "At step 0, 30% of the estimate lies on the route taken in the end and 70% on the others: "
        "3 routes at once." in fades
    )
    assert "From step 49 on one route alone" in fades
    assert "one route leads from the start" in told(with_mass([[0.95, 0.05], [0.99, 0.01]]))
    vague = told(with_mass([[0.05, 0.04], [0.95, 0.0]]))
    assert "From step 49 on one route alone" in vague
    assert "from the start" not in vague
    assert "routes at once" not in vague
    assert "No single route" in told(with_mass([[0.5, 0.5], [0.6, 0.4]], solved=False))


def test_masses_may_be_missing_or_many():
    rows = [[math.nan] * 7, [0.5, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0]]
    page = str(render(Demo(examples=[with_mass(rows, off=np.array([math.nan, 0.1]))])))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    assert "3 more" in page
    widths = [float(w) for w in re.findall(r'style="width:([\d.]+)%"', page)]
    assert sum(widths) == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.01, 0.02, "neither a gain nor a loss"),
        (0.0, 0.02, "neither a gain nor a loss"),
        (0.002, 0.02, "it helps"),
        (-0.03, -0.002, "it hurts"),
        (None, None, "nothing follows"),
    ],
)
def test_an_effect_is_claimed_only_where_the_interval_leaves_out_zero(low, high, says):
    middle = 0.01 if low is None else (low + high) / 2
    row = Comparison(
        label="three seeds", solved=0.9, low=0.8, high=0.95, n=64, difference=middle,
        difference_low=low, difference_high=high,
    )  # fmt: skip
    assert says in verdict(row)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": [0, 1, 2]}, "steps has 3"),
        ({"steps": [5, 0]}, "not ascending"),
        ({"scores": [0.1]}, "scores has 1"),
        ({"steps": [], "scores": [], "x0": np.zeros((0, 2, 4, 6, 3), np.uint8)}, "no step"),
        ({"mass": np.ones((3, 2)), "mass_steps": [4, 5]}, "mass_steps has 2"),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        flat(**changes)


def test_rows_of_mass_belong_to_steps():
    assert flat().rows_of_mass == []
    assert flat(mass=np.ones((2, 1))).rows_of_mass == [0, 49]
    assert flat(mass=np.ones((4, 1))).rows_of_mass == [0, 1, 2, 3]
    assert flat(mass=np.ones((2, 1)), mass_steps=[3, 9]).rows_of_mass == [3, 9]


def test_curves_and_demos_that_lack_a_part_are_refused():
    with pytest.raises(ValueError, match="give both"):
        Curve(label="a", x=[0], y=[0.1], low=[0.0])
    with pytest.raises(ValueError, match="y has 2"):
        Curve(label="a", x=[0], y=[0.1, 0.2])
    with pytest.raises(ValueError, match="at least one example"):
        Demo(examples=[])
    assert dataclasses.replace(Demo(examples=[flat()]), command="x").command == "x"
