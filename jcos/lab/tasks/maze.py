"""Maze: the shortest way from the red agent to the blue goal, often one of several.

Cells are (row, column). Everything is drawn and judged on a lattice of [2 n + 1, 2 n + 1] symbols
for n x n cells: cells stand at odd places, doors and walls between them, corner posts at even
places. Each lattice node is a patch of 2x2 pixels (the outermost are cut in half by the edge of the
picture), so that a tile of 4 pixels is a cell of 2x2 with a border of one pixel.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jcos.lab.tasks.base import PALETTE, TILE, Puzzle, Task, Verdict, Video
from jcos.lab.tasks.marks import SYMBOLS, decode, symmetries, tiles

Cell = tuple[int, int]
Trail = tuple[Cell, ...]
Doors = tuple[tuple[Cell, Cell], ...]
Neighbours = dict[Cell, list[Cell]]
Lattice = Int[np.ndarray, "N N"]

_RGB = np.array(list(PALETTE.values()), np.uint8)
_FLOOR, _WALL = SYMBOLS["floor"], SYMBOLS["wall"]
_AGENT, _TRAIL, _GOAL = SYMBOLS["red"], SYMBOLS["green"], SYMBOLS["blue"]


class Scene(NamedTuple):
    """doors: the pairs of neighbouring cells that one can walk between, sorted."""

    side: int
    doors: Doors
    start: Cell
    goal: Cell


class Maze(Task):
    """Mazes with and without loops; the answers are all the shortest paths, as tuples of cells."""

    name = "maze"
    about = "A maze with an agent and a goal; walk from one to the other by a shortest way."
    faculty = "Spatiality"

    side = 5
    height = width = side * TILE
    prompt = "maze shortest way from red to blue"
    loops: tuple[float, ...] = (0.0, 0.15, 0.35)
    """Chances, one drawn per puzzle, that a wall left by the spanning tree becomes a door."""
    least_steps = 4
    most_answers = 12

    def make(self, rng: np.random.Generator) -> Puzzle:
        while True:
            doors = _random_doors(self.side, rng.choice(self.loops), rng)
            neighbours = _neighbours(doors)
            start = divmod(int(rng.integers(self.side**2)), self.side)
            away = _distances(neighbours, start)
            goals = [cell for cell in sorted(away) if away[cell] >= self.least_steps]
            if not goals:
                continue
            goal = goals[rng.integers(len(goals))]
            paths = _shortest_paths(neighbours, _distances(neighbours, goal), (start,))
            answers = tuple(itertools.islice(paths, self.most_answers + 1))
            if len(answers) <= self.most_answers:
                scene = Scene(self.side, doors, start, goal)
                return Puzzle(self.name, self.prompt, identity_of(scene), scene, answers)

    def draw(self, puzzle: Puzzle, answer: Trail) -> Video:
        frame, last = _lattice(puzzle.scene), self.frames - 1
        lattices, shown = [], 0
        for f in range(self.frames):
            step = (2 * (len(answer) - 1) * f + last) // (2 * last)  # rounds halves up
            for a, b in itertools.pairwise(answer[shown : step + 1]):
                frame[_node(a)] = frame[_door(a, b)] = _TRAIL
            frame[_node(answer[step])] = _AGENT
            lattices.append(frame.copy())
            shown = step
        return _RGB[np.stack(lattices).repeat(2, 1).repeat(2, 2)[:, 1:-1, 1:-1]]

    def guess(self, puzzle: Puzzle, rng: np.random.Generator) -> Trail:
        """A random walk off its own trail, as long as a shortest path or until stuck."""
        neighbours = _neighbours(puzzle.scene.doors)
        trail = [puzzle.scene.start]
        while len(trail) < len(puzzle.answers[0]):
            ahead = [cell for cell in neighbours[trail[-1]] if cell not in trail]
            if not ahead:
                break
            trail.append(ahead[rng.integers(len(ahead))])
        return tuple(trail)

    def judge(self, puzzle: Puzzle, video: Video) -> Verdict:
        """Progress along the maze, gated by how it was made.

        scene: 1 - (patches changed beside trail and goal, worst frame) / side.
        agent: share of frames with exactly one.
        goal: share of frames that show it, or the trail over it.
        path: every frame's trail is a simple way through doors from start to agent.
        growth: frame 0 has no trail, each trail continues the last, no faster than the way needs.
        """
        scene: Scene = puzzle.scene
        neighbours = _neighbours(scene.doors)
        to_goal = _distances(neighbours, scene.goal)
        shortest = to_goal[scene.start]
        symbols = _read(video)
        painted = (symbols == _TRAIL) | (symbols == _AGENT)
        trails = [
            _trail(s, p, neighbours, scene.start) for s, p in zip(symbols, painted, strict=True)
        ]

        blank, goal = _lattice(scene), _node(scene.goal)
        blank[_node(scene.start)] = _FLOOR
        changed = (symbols != blank) & ~(painted & (blank != _WALL))
        changed[:, *goal] = False
        gates = {
            "scene": max(0.0, 1.0 - float(changed.sum((1, 2)).max()) / scene.side),
            "agent": float(np.mean((symbols == _AGENT).sum((1, 2)) == 1)),
            "goal": float(np.mean((symbols[:, *goal] == _GOAL) | painted[:, *goal])),
            "path": float(all(trails)),
            "growth": float(all(trails) and _grows(trails, shortest, self.frames)),
        }
        if not trails[-1]:
            return Verdict(0.0, gates)
        left, walked = to_goal[trails[-1][-1]], len(trails[-1]) - 1
        detour = shortest / (walked + left)
        return Verdict(max(0.0, 1.0 - left / shortest) * detour, gates)


class HardMaze(Maze):
    """Larger mazes without loops: one long way among dead ends."""

    name = "maze7"
    about = "A larger maze without loops; walk the one long way from the agent to the goal."
    hard = True

    side = 7
    height = width = side * TILE
    loops = (0.0,)
    least_steps = 14


class LargerMaze(HardMaze):
    """Mazes of a size that the shipped model has never seen."""

    name = "maze9"
    about = "A maze of 9 × 9 cells, larger than any in training; walk the one long way."

    side = 9
    height = width = side * TILE
    least_steps = 18


def identity_of(scene: Scene) -> tuple:
    """The smallest of the lattice's eight mirrored and turned copies."""
    lattice = _lattice(scene).astype(np.uint8)
    return (scene.side, min(copy.tobytes() for copy in symmetries(lattice)))


def _random_doors(side: int, loops: float, rng: np.random.Generator) -> Doors:
    """A random spanning tree (Kruskal on random weights); each other wall opens by chance."""
    edges = _edges(side)
    room = {cell: [cell] for cell in itertools.product(range(side), repeat=2)}
    opened = (rng.random(len(edges)) < loops).tolist()
    for i in rng.permutation(len(edges)).tolist():
        a, b = (room[cell] for cell in edges[i])
        if a is not b:
            small, large = (a, b) if len(a) < len(b) else (b, a)
            large.extend(small)
            room.update(dict.fromkeys(small, large))
            opened[i] = True
    return tuple(itertools.compress(edges, opened))


def _edges(side: int) -> list[tuple[Cell, Cell]]:
    cells = list(itertools.product(range(side), repeat=2))
    right = [((r, c), (r, c + 1)) for r, c in cells if c + 1 < side]
    down = [((r, c), (r + 1, c)) for r, c in cells if r + 1 < side]
    return sorted(right + down)


def _neighbours(doors: Doors) -> Neighbours:
    near: Neighbours = {}
    for a, b in doors:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    return near


def _distances(neighbours: Neighbours, source: Cell) -> dict[Cell, int]:
    """Steps from the source to each cell, breadth first."""
    distance, queue = {source: 0}, [source]
    for cell in queue:
        for other in neighbours[cell]:
            if other not in distance:
                distance[other] = distance[cell] + 1
                queue.append(other)
    return distance


def _shortest_paths(
    neighbours: Neighbours, to_goal: dict[Cell, int], trail: Trail
) -> Iterator[Trail]:
    """All ways on from a trail that come nearer to the goal with each step."""
    left = to_goal[trail[-1]]
    if left == 0:
        yield trail
    for cell in neighbours[trail[-1]]:
        if to_goal[cell] < left:
            yield from _shortest_paths(neighbours, to_goal, (*trail, cell))


def _node(cell: Cell) -> tuple[int, int]:
    """Where a cell is on the lattice."""
    return 2 * cell[0] + 1, 2 * cell[1] + 1


def _door(a: Cell, b: Cell) -> tuple[int, int]:
    """Where the door between two neighbours is on the lattice."""
    return a[0] + b[0] + 1, a[1] + b[1] + 1


def _lattice(scene: Scene) -> Lattice:
    """Symbols of the first frame."""
    lattice = np.full((2 * scene.side + 1,) * 2, _WALL)
    lattice[1::2, 1::2] = _FLOOR
    rows, columns = np.sum(scene.doors, 1).T + 1  # as `_door`
    lattice[rows, columns] = _FLOOR
    lattice[_node(scene.start)], lattice[_node(scene.goal)] = _AGENT, _GOAL
    return lattice


def _read(video: Video) -> Int[np.ndarray, "F N N"]:
    """Lattice symbols of each frame, of the mean colour of 2x2 pixels: noise averages out."""
    whole = np.pad(video, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    symbols = decode(tiles(whole, 2).mean((3, 4)), ("floor", "wall", "red", "green", "blue"))
    symbols[:, [0, 0, -1, -1], [0, -1, 0, -1]] = (
        _WALL  # single pixels, too little to tell from noise
    )
    return symbols


def _trail(
    symbols: Lattice, painted: Bool[np.ndarray, "N N"], neighbours: Neighbours, start: Cell
) -> Trail:
    """The painted cells from start to agent; empty unless they are one simple legal way."""
    trail = [start]
    while True:
        ahead = [
            cell
            for cell in neighbours[trail[-1]]
            if painted[_door(trail[-1], cell)] and cell not in trail
        ]
        if len(ahead) != 1:
            break
        trail.append(ahead[0])
    # Each step paints a door and a cell; any paint that is left over lies beside the way.
    places = [_node(cell) for cell in trail] + [_door(a, b) for a, b in itertools.pairwise(trail)]
    whole = all(painted[place] for place in places) and painted.sum() == len(places)
    agents = np.argwhere(symbols == _AGENT).tolist()
    return tuple(trail) if whole and agents == [list(_node(trail[-1]))] else ()


def _grows(trails: list[Trail], shortest: int, frames: int) -> bool:
    """Whether the trail starts from nothing and only ever continues, at an even pace."""
    # A detour has more to walk in the same time; a jump to its end is too fast all the same.
    most = -(-max(shortest, len(trails[-1]) - 1) // (frames - 1)) + 1
    return len(trails[0]) == 1 and all(
        new[: len(old)] == old and len(new) - len(old) <= most
        for old, new in itertools.pairwise(trails)
    )
