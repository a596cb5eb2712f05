"""How far does a perturbation reach? (Paper, section 3.2.)

HSIC is estimated without bias, so that unrelated tokens get 0. Noise at a frame is judged by the
other frames' tokens; so is noise at a step where the two are compared.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Shaped, UInt8

from jcos.config import WanConfig
from jcos.experiments import plots
from jcos.experiments.answers import Answers, answers_of, blend, chosen
from jcos.experiments.experiment import Experiment, Picture, Progress, places
from jcos.experiments.noise import FRAME, NONE, STEP, STEP_LEVEL, Case, labels_of, probe_of
from jcos.experiments.parameters import AtFrames, AtSteps, Count
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import pixels
from jcos.lab.measures import UNBOUNDED, dissimilarity
from jcos.lab.results import IDEAL, described, measure, of_kind
from jcos.sampling import flow, probes, trajectory
from jcos.sampling.probes import Latents, Site, Tokens
from jcos.sampling.trajectory import Trace
from jcos.wan import Wan

SOURCES = {"tokens": "tokens", "x0": "x̂0", "ideal": "x̂0 of the ideal denoiser"}
STEPS = {STEP: "replaced", STEP_LEVEL: "at its own level"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(Experiment):
    """Paper, section 3.2: noise at a step, and how much every later step and layer differs from a
    clean run that shares everything else (1 − CKA; 0 no effect, 1 nothing in common).

    Compared are all tokens after each block, of the conditional branch, video by video, on the
    device; the paper does not say which representation it took. Beyond the paper: by layer; noise
    at a frame; noise at the step's own level (x̂0 kept, noise drawn anew), which leaves no pixel
    noise behind; whether the perturbed run ends with the answer of the clean one; and clean
    estimates, in patches, of the model and of the ideal denoiser under the very same noise. Noise
    at step 0 is a fresh seed.

    steps, frames: where noise goes, all by default. at_once: perturbed runs that share a clean one,
    by default 8 of puzzles and 1 of clips, which needs the least memory.
    """

    question = "How far does a perturbation reach, and when is a run most sensitive to it?"

    steps: AtSteps | None = None
    frames: AtFrames | None = None
    at_once: Count | None = None

    def check(self, config: WanConfig) -> None:
        super().check(config)
        if not self.cases(self.plan(config).steps, self.latent_frames(config)):
            raise ValueError("steps and frames leave no place for noise; give at least one step")

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        samples = self.samples(model)
        steps, frames = self.plan(model.config).steps, samples.latent[0]
        cases = self.cases(steps, frames)
        answers = answers_of(model, samples.puzzles) if samples.judged else None
        groups = grouped(cases, self.at_once or (8 if samples.judged else 1))
        noise = [[probe_of(case, steps, frames, 0) for case in group] for group in groups]
        run = partial(
            self.sweep(model, progress),
            jax.tree.map(lambda a: np.repeat(a, len(groups[0]), axis=1), samples.conditions),
            probes=[Perturbed(trajectory.tree_stack(group), frames) for group in noise],
        )
        what = "noise at every step and frame, with clean runs"
        reach: Reach = run(readout=read_reach, aux=answers, what=what)
        if answers is not None:
            what = f"the same, {IDEAL}"
            ideal = run(item_probe=answers.ideal, readout=read_estimates, what=what)
            reach = reach._replace(ideal=ideal)
        each, one = f"case {samples.runs} seed", self.forwards(model.config)
        variables = samples.levels({"solved": "solved"})
        variables |= {"forwards": ((), 2 * one, {}), "run_forwards": ((), one, {})}
        for name, words in SOURCES.items():
            if (values := getattr(reach, name)) is not None:
                dims = f"{each} step layer without" if name == "tokens" else f"{each} step without"
                values, title = by_case(values, len(cases)), f"1 − CKA of {words}"
                variables[name] = measure(dims, values, title, REACH, span=UNBOUNDED, tabled=False)
        if answers is not None:
            progress("judging", 0, 1)
            solved, agreed = outcomes(samples, answers, reach, cases)
            variables["solved"] = measure(each, solved, "solved", SOLVED, forwards="run_forwards")
            variables["agreement"] = measure(each, agreed, "agreement", AGREEMENT)
        without = ["nothing", *(f"frame {f}" for f in range(frames))]
        labels = labels_of(cases) | {"without": without, "step": range(steps)}
        data = self.dataset(variables, samples, **labels)
        return data.assign(reaches(data))

    def cases(self, steps: int, frames: int) -> list[Case]:
        """Return all positions of noise. A single frame has no others to be judged by."""
        at_steps = places(self.steps, steps, "step")
        cases = [Case(kind, step=s) for kind in STEPS for s in at_steps]
        at_frames = places(self.frames, frames, "frame")
        return cases + [Case(FRAME, frame=f) for f in at_frames if frames > 1]

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        if STEP not in data["kind"]:
            return
        steps = {words: of_kind(data, kind, "at_step") for kind, words in STEPS.items()}
        maps = {f"tokens, {words}": one["tokens"].mean("layer") for words, one in steps.items()}
        for name, who in (("x0", "x̂0"), ("ideal", "x̂0 of the ideal")):
            maps |= {f"{who}, replaced": steps["replaced"][name]} if name in data else {}
        maps = {title: triangle(values) for title, values in maps.items()}
        axes = {"xlabel": "observed step", "ylabel": "noised step"}
        yield "triangle", Picture(plots.heat(maps, "step", "at_step", **axes), TRIANGLE)


def triangle(values: xr.DataArray) -> xr.DataArray:
    """Return values by noised step × observed step, nan before the noise."""
    return values.isel(without=0, drop=True).where(values["step"] >= values["at_step"])


def outside(values: xr.DataArray) -> xr.DataArray:
    """Return values by the tokens outside each case's noised frame; by all where it has none."""
    frame = values["at_frame"].fillna(-1).astype(int) + 1
    return values.isel(without=xr.Variable("case", frame.values)).drop_vars("without")


def by_other_frames(values: xr.DataArray) -> xr.DataArray:
    """Return `CONTRASTS`: noise at all positions together, and a paired difference, by the tokens
    outside each of the noised frames in turn."""
    frames = of_kind(outside(values), FRAME, "at_frame")
    frame, left_out = frames.mean("at_frame"), frames["at_frame"].values.astype(int) + 1
    others = values.isel(without=left_out).mean("without")
    step, level = (of_kind(others, kind, "at_step").mean("at_step") for kind in STEPS)
    contrasts = xr.Variable("contrast", list(CONTRASTS))
    return xr.concat([step, level, frame, frame - step], contrasts)


def reaches(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return how far each case reaches at the end, and what follows from it."""
    kinds = set(data["kind"].values)
    variables: dict[str, xr.DataArray] = {}

    def add(name: str, values: xr.DataArray, title: str, **more: Any) -> None:
        values = values.reset_coords(drop=True)
        values.attrs = described(title, REACH, **{"span": UNBOUNDED, **more})
        variables[name] = values

    ends = {s: data[s].isel(step=-1, drop=True).astype(float) for s in SOURCES if s in data}
    ends["tokens"] = ends["tokens"].mean("layer")
    for source, end in ends.items():
        cost = "" if source == "ideal" else "forwards"
        title = f"1 − CKA of {SOURCES[source]}, at the end"
        add(f"{source}_end", outside(end), title, forwards=cost)
    title = "1 − CKA of tokens, at the end"
    if {STEP, FRAME} <= kinds:
        add("tokens_end_others", by_other_frames(ends["tokens"]), f"{title}, by other frames")
    tokens: dict[str, xr.DataArray] = {}
    for kind, words in STEPS.items() if STEP in kinds else ():
        tokens[words] = of_kind(ends["tokens"].isel(without=0, drop=True), kind, "at_step")
    if tokens and data["at_step"].max() > data["at_step"].min():
        steps: list[xr.DataArray] = [one.mean("seed").idxmax("at_step") for one in tokens.values()]
        about: dict[str, Any] = {"units": "step", "span": (0, data.sizes["step"]), "median": True}
        farthest = xr.concat(steps, xr.Variable("level", list(tokens)))
        add("farthest_end", farthest, "step of farthest reach, median, at the end", **about)
    answers = ("another answer", "same answer") if tokens and "agreement" in data else ()
    for same, words in enumerate(answers):
        of_these: list[xr.DataArray] = [
            one.where(of_kind(data["agreement"], kind, "at_step") == same).mean(("at_step", "seed"))
            for kind, one in zip(STEPS, tokens.values(), strict=True)
        ]
        positions = xr.Variable("positions", [f"all steps, {words}" for words in tokens])
        add(words.replace(" ", "_"), xr.concat(of_these, positions), f"{title}, {words}")
    return variables


CONTRASTS = ("at a step", "at a step, at its own level", "at a frame", "at a frame less at a step")
TRIANGLE = (
    "How much a run differs at each step from the clean one after noise at one step in all frames; "
    "1 − CKA, mean over layers and puzzles. Replaced: x ← N(0, I). Own level: the estimate is kept "
    "and its noise drawn anew. x̂0: of clean estimates in patches, of the model and of the ideal "
    "denoiser under the same noise."
)
REACH = "How much the run differs from the clean one: 0 is no effect, 1 nothing in common."
SOLVED = "Share of runs that end solved."
AGREEMENT = (
    "How often the perturbed run ends with the clean run's answer, of puzzles with several that "
    "both solve."
)


def grouped(cases: list[Case], at_once: int) -> list[list[Case]]:
    """Return groups of one size, of at most so many cases: each begins with a clean run, and the
    last is filled up with such."""
    number = -(-len(cases) // at_once)
    size = -(-len(cases) // number)
    filled = cases + [Case(NONE)] * (number * size - len(cases))
    return [[Case(NONE), *filled[i : i + size]] for i in range(0, len(filled), size)]


def by_case(
    values: Shaped[np.ndarray, "groups P size *axes"], number: int
) -> Shaped[np.ndarray, "Q P *axes"]:
    """Return values of groups of cases as values of each case, without the clean runs."""
    cases = np.moveaxis(values[:, :, 1:], 2, 1)
    return cases.reshape(-1, *cases.shape[2:])[:number]


class Perturbed(probes.Probe):
    """Full noise, in each world its own (none in world 0); observes how much every world differs
    from world 0: `dissimilarity` [steps, layers, G = 1 + frames].

    noise: its arrays have an axis of worlds before that of steps.
    """

    noise: probes.Noise
    frames: int = flax.struct.field(pytree_node=False)

    def made_for(self) -> probes.Sizes:
        of_one = jax.tree.map(lambda a: a[0], self.noise)
        return (("worlds", len(self.noise.mask)), *of_one.made_for())

    def on_latents(self, site: Site, x: Latents) -> Latents:
        noise = jax.tree.map(lambda a: a[jax.lax.axis_index("world")], self.noise)
        return noise.on_latents(site, x)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Float[Array, " G"]]:
        clean = jax.lax.all_gather(tokens, "world")[0]
        return tokens, dissimilarity(clean, tokens, self.frames)


class Reach(NamedTuple):
    """What is kept of a clean run and the perturbed ones of its group, N worlds, by seed.

    tokens [N, K, S, L, G = 1 + F], x0, ideal [N, K, S, G]: `dissimilarity` from the clean run, of
    tokens, of clean estimates, and of those of the ideal denoiser. on, video: how each run ends.
    All but tokens and x0 of puzzles only.
    """

    tokens: Float[Any, "*N K S L G"]
    x0: Float[Any, "*N K S G"]
    ideal: Float[Any, "*N K S G"] | None = None
    on: Float[Any, "*N K A"] | None = None
    video: UInt8[Any, "*N K F H W 3"] | None = None


def read_reach(model: Wan, plan: flow.Plan, trace: Trace, answers: Answers | None) -> Reach:
    """Return what is kept of one group of cases on one puzzle."""
    reach = Reach(trace.block_obs, read_estimates(model, plan, trace, ()))
    if answers is None:
        return reach
    on = blend(trace.latents, answers).on
    return reach._replace(on=on, video=pixels(model, trace.latents))


def read_estimates(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Float[Array, "N K S G"]:
    """Return how far clean estimates of one group of cases are from the clean run's."""
    patches = jax.vmap(jax.vmap(jax.vmap(model.experts[0].patchify)))(trace.x0)
    one = jax.vmap(jax.vmap(lambda a, b: dissimilarity(a, b, trace.x0.shape[3])))
    return jax.vmap(one, in_axes=(None, 0))(patches[0], patches)


def outcomes(
    samples: Samples, answers: Answers, reach: Reach, cases: Sequence[Case]
) -> tuple[Float[np.ndarray, "Q P K"], Float[np.ndarray, "Q P K"]]:
    """Return whether each perturbed run is solved (nan with noise in a frame, which ends as noise);
    and whether it ends with the clean run's answer, of puzzles with several that both solve."""
    assert reach.on is not None
    assert reach.video is not None
    solved = samples.judge(reach.video.swapaxes(0, 1))[1].swapaxes(0, 1)
    choice = np.stack([chosen(on, answers) for on in reach.on])
    noisy, taken = by_case(solved, len(cases)), by_case(choice, len(cases))
    known = solved[0, :, 0] & noisy & samples.several[:, None]
    in_frame = np.array([case.kind == FRAME for case in cases])[:, None, None]
    return np.where(in_frame, np.nan, noisy), np.where(known, taken == choice[0, :, 0], np.nan)
