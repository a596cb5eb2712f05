"""Laws of search along the steps: bookkeeping, costs, weights, judges, refusals."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import jcos
from jcos.config import Sampling
from jcos.generation import generate
from jcos.lab import judges
from jcos.lab.ideal import IdealDenoiser
from jcos.lab.judges import Estimates, Frames, Judge, Scorer
from jcos.lab.methods import (
    LEAST,
    Method,
    Row,
    best_of,
    calibrated,
    chain_clips,
    early_failure,
    epbs,
    evosearch,
    forwards,
    latsearch,
    named,
    smc,
    tbs,
)
from jcos.lab.population import Population, replay
from jcos.lab.refusals import check
from jcos.lab.search import run, video
from jcos.lab.tasks import TASKS
from jcos.loop import _advance, steps
from jcos.sampling.inside import KnockOut
from jcos.sampling.probes import Noise, Probe, SeedEnsemble, chain
from jcos.variants import VARIANTS
from jcos.weights.checkpoint import abstract_model
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, close, frame, randomised

SOME: dict[str, Any] = {"judge": "energy"}


class Listed(Judge):
    """Scores that are known beforehand, row by row. x: the particles whenever it was asked."""

    on_host = True

    def __init__(self, *rows: list[float]):
        self.rows, self.x = iter(rows), []

    def __call__(self, at: Estimates) -> np.ndarray:
        if at.step < 0:  # the check before anything runs
            return np.zeros(at.x0.shape[:2])
        self.x.append(np.asarray(at.x))
        return np.broadcast_to(np.array(next(self.rows), float), at.x0.shape[:2])


def listed(model, condition, method: Method, *rows: list[float], seed: int = 0, **options: Any):
    """Search by scores that are known beforehand; the result, and what was judged."""
    judge = Listed(*rows)
    result = run(model, condition, method, seed, judges={"listed": judge}, **options)
    assert not list(judge.rows), "all scores are read"
    return result, judge.x


GOOD: dict[str, Any] = {"judge": "listed", "stop": 0.8}
LATER = [0.5, -np.inf, 0.6, -np.inf]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scores", "seed", "forwards"),
    [
        # The best at an early step goes on alone.
        (epbs(3, "listed", at=0.25), [[0.1, 0.9, 0.3]], 1, 3 * 2 + 2),
        # A threshold tries fresh seeds one after the other; else the best goes on.
        (early_failure(5, "listed", at=0.25, least=0.5), [[0.1], [0.3], [0.9]], 2, 3 * 2 + 2),
        (early_failure(3, "listed", least=1.0), [[0.1], [0.3], [0.2]], 1, 3 * 4),
        # A fresh seed passes all thresholds so far: seed 0 fails after step 2, seed 1 after step 0.
        (calibrated(4, "listed", least=LATER), [[0.9], [0.1], [0.2], [0.8], [0.7]], 2, 3 + 1 + 4),
        (calibrated(2, "listed", least=LATER), [[0.9], [0.1], [0.2]], 0, 3 + 1 + 1),
        # A particle that is good enough goes on alone.
        (
            Method(rows=(Row(step=0, keep=3, **GOOD), Row(step=2, keep=2, **GOOD)), seeds=3),
            [[0.1, 0.9, 0.3], [0.9]],
            1,
            3 + 3,
        ),
    ],
)
def test_who_is_chosen_and_what_it_costs(model, condition, method, scores, seed, forwards) -> None:
    result, _ = listed(model, condition, method, *scores)
    assert (result.seed.tolist(), result.cost.forwards.tolist()) == ([seed], [forwards])
    assert result.cost.judged.tolist() == [sum(map(len, scores))]
    assert result.cost.decodes.tolist() == [0]
    close(result.latents, generate(model, condition, (seed,)).latents[0])


@pytest.mark.slow
def test_the_tree_tells_who_came_from_whom(model, condition) -> None:
    rows = (
        Row(step=0, judge="listed", keep=2, copies=4, copy="mutate", strength=0.5),
        Row(step=2, judge="listed", keep=3),
        Row(step=-1, judge="listed"),
    )
    scores = [0.0, 2.0, 1.0], [1.0, 4.0, 3.0, 2.0], [0.0, 1.0, 2.0]
    method = Method(rows=rows, seeds=3)
    result, _ = listed(model, condition, method, *scores, seed=5, record=True)
    parents = [g.parents.tolist() for g in result.tree]
    assert parents == [[[1, 2, 1, 2]], [[1, 2, 3]], [[2]]]
    assert [g.seeds.tolist() for g in result.tree] == [[[5, 6, 7]], [[6, 7, 6, 7]], [[7, 6, 7]]]
    assert [g.step for g in result.tree] == [0, 2, 3]
    np.testing.assert_allclose(result.tree[0].log_weights, [scores[0]])  # with these scores
    assert result.seed.tolist() == [7]
    assert result.cost.forwards.tolist() == [3 * 1 + 4 * 2 + 3 * 1]
    assert [g.x0.shape[1] for g in result.tree if g.x0 is not None] == [3, 4, 3]


@pytest.mark.slow
def test_elites_stay_and_mutants_have_noise_of_their_level(model, condition) -> None:
    """The first copy runs as if it were alone; what a mutant has gained is σ · strength · ε."""
    row = Row(step=1, judge="listed", keep=1, copies=2, copy="mutate", strength=1.0)
    rows = (row, Row(step=-1, judge="listed", keep=2))
    result, _ = listed(model, condition, Method(rows=rows, seeds=2), [0.0, 1.0], [1.0, 0.0])
    close(result.latents, generate(model, condition, (1,)).latents[0])
    x = result.particles[0]
    assert float(jnp.abs(x[0] - x[1]).max()) > 1e-2


@pytest.mark.slow
def test_what_becomes_of_a_video_does_not_depend_on_others(model, worlds) -> None:
    """Beside itself with other seeds it becomes the same."""
    for method in (
        epbs(4, "energy", at=0.5),
        latsearch(4, "energy"),
        smc(3, "energy", at=(0.25,)),
        evosearch(4, "energy"),
        early_failure(3, "random", at=0.25, least=9.0),
    ):
        both = run(model, worlds, method, (0, 10))
        for world, first in enumerate((0, 10)):
            twice = jax.tree.map(lambda a, i=world: a[np.array([i, i])], worlds)
            found = run(model, twice, method, (first, 20))
            close(both.latents[world], found.latents[0])
            assert both.cost.forwards[world] == found.cost.forwards[0]
            assert both.seed[world] == found.seed[0]


@pytest.mark.slow
def test_a_replay_of_finished_runs_chooses_as_the_search_does(model, worlds) -> None:
    count = 6
    recorded = np.zeros((2, count, STEPS))
    for state in steps(model, worlds, [range(count), range(100, 100 + count)]):
        solver, alive = state.solver, np.ones((2, count), bool)
        at = Estimates(model, state.step, 0.5, solver.x, solver.last, solver.before_last, alive, {})
        recorded[:, :, state.step] = judges.energy(at)
    least = float(np.median(recorded[..., 2]))
    methods = [
        best_of(count, "energy"),
        epbs(4, "energy", at=0.5),
        Method(rows=(Row(step=1, keep=2, **SOME), Row(step=-1, **SOME)), seeds=5),
        early_failure(6, "energy", at=0.5, least=least),
        calibrated(6, "energy", least=np.median(recorded, (0, 1)).tolist()),
        calibrated(5, "energy", least=[-np.inf, np.inf, least, least]),
        Method(rows=(Row(step=1, keep=3, stop=least, **SOME), Row(step=3, **SOME)), seeds=5),
    ]
    for method in methods:
        result = run(model, worlds, method, (0, 100))
        chosen, forwards = replay(method, {"energy": recorded})
        assert (result.seed - [0, 100]).tolist() == chosen.tolist()
        assert result.cost.forwards.tolist() == forwards.tolist()
    back = Row(step=1, keep=2, copy="renoise", strength=1.0, **SOME)
    drawn = Row(step=1, keep=2, select="multinomial", **SOME)
    for method in (
        smc(4, "energy"),
        Method(rows=(back,), seeds=2),
        Method(rows=(drawn,), seeds=2),
        best_of(2, "energy", steps=STEPS - 1),
    ):
        with pytest.raises(ValueError, match="cannot be replayed"):
            replay(method, {"energy": recorded})
    with pytest.raises(ValueError, match="may need 9 seeds; 6"):
        replay(early_failure(9, "energy", least=0.0), {"energy": recorded})


@pytest.mark.slow
def test_stages_with_as_many_particles_share_a_program(model, condition) -> None:
    before = _advance._cache_size()  # type: ignore[attr-defined]
    run(model, condition, Method(rows=(Row(step=1, keep=7, **SOME),), seeds=9))
    assert _advance._cache_size() - before == 2  # type: ignore[attr-defined]
    run(model, condition, Method(rows=(Row(step=2, keep=7, judge="change"),), seeds=9), 40)
    assert _advance._cache_size() - before == 2  # type: ignore[attr-defined]


# ---- weights


def test_log_weights_are_never_lost() -> None:
    """Nothing is drawn as long as the effective sample size is large; then all of it counts."""
    scores = np.random.default_rng(0).random((4, 2, 5))
    for transform, total in (
        ("diff", scores[-1]),
        ("raw", scores[-1]),
        ("max", scores.max(0)),
        ("sum", scores.sum(0)),
    ):
        people = Population(2, 5, (0, 1))
        row = Row(step=0, select="systematic", keep=5, ess=1e-9, scale=3.0)
        row = dataclasses.replace(row, transform=transform)
        for i in range(4):
            assert people.select(row, scores[i], last=i == 3).tolist() == [[0, 1, 2, 3, 4]] * 2
        np.testing.assert_allclose(people.log_weight, 3 * total)
        shares = np.exp(3 * total)
        shares /= shares.sum(1, keepdims=True)
        np.testing.assert_allclose(people.weights, shares)
        np.testing.assert_allclose(people.ess, 1 / (shares**2).sum(1))


def test_offspring_of_systematic_resampling_are_floor_or_ceiling() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    for seed in range(50):
        people = Population(1, 4, (seed,))
        row = Row(step=0, select="systematic", keep=4, scale=1.0)
        which = people.select(row, np.log(shares)[None])
        counts = np.bincount(which[0], minlength=4)
        assert (np.abs(counts - 4 * shares) < 1).all()
        assert people.log_norm[0] == pytest.approx(np.log(0.25))
        assert (people.log_weight == 0).all()


def test_latsearch_draws_as_many_as_are_alive_and_takes_the_largest_sum_of_those_drawn() -> None:
    """A particle that is not drawn cannot win; each draw is by the shares of its own row."""
    people, scores = Population(1, 6, (0,)), np.array([[0.0] + [-2.0] * 5])
    for i in range(3):
        people.log_weight[:] = 0.0  # as after a draw
        people.weigh(latsearch(6).rows[i], scores, last=i == 2)
        np.testing.assert_allclose(people.weights, special.softmax(scores, 1))
    *_, last = latsearch(6, "energy").rows
    for seed in range(20):
        scores = np.random.default_rng(seed).random((1, 6))
        drawn, final = Population(1, 6, (seed,)), Population(1, 6, (seed,))
        row = dataclasses.replace(last, keep=6)
        among = drawn.select(row, scores)[0][drawn.alive[0]]
        (winner,) = final.select(last, scores)[0]
        assert winner == among[scores[0, among].argmax()]
        assert len({*among}) == len(among) == drawn.alive.sum() < 6  # each once


class Reward(Judge):
    """0, ½ and 1 of three answers, linear in between."""

    def __init__(self, answers: jax.Array):
        self.answers = answers

    def __call__(self, at: Estimates) -> jax.Array:
        return shares(at.x0, self.answers) @ jnp.array([0.0, 0.5, 1.0])


@jax.jit
def shares(x0: jax.Array, answers: jax.Array) -> jax.Array:
    size = jnp.sum(jnp.square(answers), (1, 2, 3, 4))
    return jnp.einsum("pkfhwc,afhwc->pka", x0, answers) / size[None, None]


@pytest.mark.slow
def test_smc_on_the_ideal_denoiser_tends_to_the_exact_target(condition) -> None:
    """Three answers alike but for their reward r are equally likely, so steering towards
    exp(λ r) has the target softmax(λ r). Its bias falls with the number of particles, and the
    estimate of the mean of exp(λ r) has none."""
    small = dataclasses.replace(CONFIG.dit, dim=16, ffn_dim=16, layers=1)  # it has no say
    model = randomised(dataclasses.replace(CONFIG, dit=small))
    many, scale = 192, 3.0
    cells = np.arange(FRAMES * 4 * 4 * 12).reshape(FRAMES, 4, 4, 12) % 3
    answers = jnp.asarray([np.where(cells == k, 0.4, 0.0) for k in range(3)])
    probe = IdealDenoiser(answers, jnp.zeros(3))
    conditions = jax.tree.map(lambda a: np.broadcast_to(a, (many, *a.shape)), condition)
    common = {"judge": "reward", "transform": "diff", "scale": scale, "select": "systematic"}
    target = np.exp(scale * np.array([0, 0.5, 1]))
    norm, target = target.mean(), target / target.sum()
    bias, sizes = {}, {}
    for count in (2, 16):
        rows = [Row(step=s, keep=count, ess=0.7, **common) for s in (1, 2, 3, 4)]
        last = Row(step=-1, keep=count, ess=1e-9, **common)
        method = Method(rows=(*rows, last), seeds=count, steps=7, eta=1.0)
        firsts, reward = [1000 * w for w in range(many)], {"reward": Reward(answers)}
        result = run(model, conditions, method, firsts, judges=reward, probe=probe)
        mass = np.asarray(shares(result.particles, answers))
        assert (mass.max(-1) > 0.98).mean() > 0.97  # particles end as one of the answers
        each = np.einsum("wk,wka->wa", result.weights, mass)
        error = each.std(0) / np.sqrt(many)
        bias[count] = np.abs(each.mean(0) - target).max()
        assert count == 2 or (np.abs(each.mean(0) - target) < 4 * error + 0.02).all()
        estimated = np.exp(result.log_norm)
        assert abs(estimated.mean() - norm) < 4 * estimated.std() / np.sqrt(many)
        sizes[count] = float((1 / np.square(result.weights).sum(1)).mean())
    assert bias[16] < 0.5 * bias[2]
    assert sizes[16] > 4 * sizes[2] / 2


# ---- restarts


@pytest.mark.slow
def test_a_prefix_in_time_is_kept_by_all_that_begin_anew() -> None:
    dit = dataclasses.replace(CONFIG.dit, in_channels=12)
    pinned = randomised(dataclasses.replace(CONFIG, dit=dit, image="pin"))
    condition = pinned.condition(frame(0), "left", FRAMES)
    scores = [0.0, 1.0, 0.5], [0.0, 1.0, 0.5]
    result, _ = listed(pinned, condition, tbs(3, "listed"), *scores, record=True)
    first, second = (g.x0 for g in result.tree)
    assert first is not None
    assert second is not None
    for particle in second[0]:
        np.testing.assert_array_equal(particle[:2], first[0, 1, :2])
    assert float(np.abs(second[0, 0, 2] - second[0, 1, 2]).max()) > 1e-3
    assert result.cost.forwards.tolist() == [2 * 3 * STEPS]
    assert result.tree[1].seeds.tolist() == [[3, 4, 5]]


@pytest.mark.slow
def test_a_prefix_is_known_to_a_model_that_has_learnt_to_see_one_frame(model, condition) -> None:
    """The best run's frames are in every estimate; the same condition as of the clip."""
    scores = [0.0, 1.0, 0.5], [0.0, 1.0, 0.5]
    result, _ = listed(model, condition, tbs(3, "listed"), *scores, record=True)
    shown = result.tree[0].x0
    assert shown is not None
    best = shown[0, 1]
    close(result.latents[:2], best[:2])
    again = model.continued(condition, best[:2])
    close(result.latents, generate(model, again, (4,)).latents[0])
    np.testing.assert_array_equal(again.channels, condition.channels)
    clip = model.decode(best[:2])
    coded = model.condition(clip, "left", FRAMES)
    np.testing.assert_array_equal(coded.known, model.encode(clip))
    one = model.condition(clip[:1], "left", FRAMES)
    assert one.known is None
    np.testing.assert_array_equal(one.channels, model.condition(clip[0], "left", FRAMES).channels)


@pytest.mark.slow
def test_clips_are_chained_by_their_last_frames(model, condition) -> None:
    method = chain_clips(2, "listed", at=0.25)
    result, _ = listed(model, condition, method, [0.0, 1.0], [0.0], [1.0, 0.0])
    first = generate(model, condition, (1,)).latents[0]
    close(result.clips[0], first)
    close(result.latents, generate(model, model.chained(condition, first), (4,)).latents[0])
    made = video(model, result)
    assert made.shape == (2 * FRAMES - 1, 8, 8, 3)
    np.testing.assert_array_equal(made[:FRAMES], model.decode(result.clips[0]))
    assert forwards(method, model.config.sampling) == result.cost.forwards[0] == 2 * (2 * 2 + 2)


class Killed(Exception):
    pass


STOPPED = [
    latsearch(4, "energy", at=(0.25, 0.75)),
    tbs(2, "energy"),
    early_failure(3, "energy", at=0.5, least=9.0),
    smc(2, "energy", at=(0.5,)),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", STOPPED)
def test_a_search_that_was_killed_goes_on(model, condition, method, tmp_path) -> None:
    whole = run(model, condition, method)
    left = [0]

    def on_step(step: int, count: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    survived, result = 0, None
    while result is None and survived < 40:  # a little further each time
        survived += 1
        left[0] = 3 if survived > 1 else 1
        with contextlib.suppress(Killed):
            result = run(model, condition, method, keep=tmp_path, on_step=on_step)
    assert result is not None
    assert survived > 1
    close(result.latents, whole.latents)
    assert result.seed == whole.seed
    assert result.cost.forwards.tolist() == whole.cost.forwards.tolist()
    assert [g.parents.tolist() for g in result.tree] == [g.parents.tolist() for g in whole.tree]
    np.testing.assert_allclose(result.log_norm, whole.log_norm, rtol=1e-5)
    close(jnp.asarray(video(model, result)), jnp.asarray(video(model, whole)))
    (file,) = tmp_path.iterdir()
    other: dict[str, Any] = {"method": best_of(2, "energy"), "seed": 7, "noise": "torch"}
    for what in other:
        with pytest.raises(ValueError, match="is of another search; remove it, or keep this one"):
            run(model, condition, **({"method": method} | {what: other[what]}), keep=tmp_path)
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged; remove it"):
        run(model, condition, method, keep=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "first"),
    [(np.int64(3), [3, 3]), (np.arange(2), [0, 1]), ((2**63 - 1, 2**63), [2**63 - 1, 2**63])],
)
def test_seeds_are_any_integers_and_stay_exact(model, worlds, seed, first) -> None:
    result = run(model, worlds, best_of(2, "energy"), seed)
    assert result.tree[0].seeds.tolist() == [[one, one + 1] for one in first]
    assert all(0 <= chosen - one <= 1 for chosen, one in zip(result.seed, first, strict=True))


@pytest.mark.slow
def test_going_back_makes_steps_again(model, condition) -> None:
    row = Row(step=2, judge="listed", keep=1, copies=2, copy="renoise", strength=1.0, back=0)
    method = Method(rows=(row, Row(step=-1, judge="listed")), seeds=2)
    made: list[int] = []
    options: dict[str, Any] = {"on_step": lambda step, count: made.append(step)}
    result, _ = listed(model, condition, method, [1.0, 0.0], [0.0, 1.0], **options)
    assert made == [0, 1, 2, 1, 2, 3]
    assert result.cost.forwards.tolist() == [12]


@pytest.mark.slow
def test_rows_that_go_back_draw_other_noise_each_all_of_it_at_the_end(model, condition) -> None:
    def last(*steps: int, strength: float) -> list[np.ndarray]:
        change: dict[str, Any] = {"copy": "renoise", "strength": strength, "back": -1}
        rows = [Row(step=step, judge="listed", **change) for step in steps]
        method = Method(rows=(*rows, Row(step=0, judge="listed")), seeds=1)
        return listed(model, condition, method, *[[0.0]] * (len(steps) + 1))[1]

    again = last(0, 0, strength=1.0)
    assert float(np.abs(again[-1] - again[-2]).max()) > 1e-2
    half, whole = last(-1, strength=0.5), last(-1, strength=1.0)
    np.testing.assert_allclose(half[-1], whole[-1], atol=1e-5)


@pytest.mark.slow
def test_the_first_noises_may_lie_near_the_first(model, condition) -> None:
    def apart(spread: float) -> float:
        method = Method(rows=(Row(step=0, judge="listed", keep=4),), seeds=4, spread=spread)
        _, ((x,),) = listed(model, condition, method, [0, 0, 0, 0])
        return float(np.abs(x[1:] - x[:1]).mean())

    assert apart(0.1) < 0.3 * apart(1.0)


# ---- refusals


class Wrong(Judge):
    def __call__(self, at: Estimates) -> jax.Array:
        return jnp.mean(at.x0, (2, 3, 4))


def rows(*rows: dict[str, Any], **settings: Any) -> Method:
    """Of four seeds, judged by energy."""
    return Method(rows=tuple(Row(**(SOME | row)) for row in rows), **{"seeds": 4} | settings)


def misspelt(**words: str) -> Method:
    """As users may write it, without the tests' check of types."""
    method = rows({"step": 1})
    vars(method.rows[0]).update(words)
    return method


def mine(judge: Judge) -> dict[str, Any]:
    return {"judges": {"mine": judge}}


MINE, COPIED = epbs(3, "mine"), rows({"step": 1, "copies": 4})
UNIPC = {"sampling": Sampling(steps=STEPS, solver="unipc", grid="unipc")}
BACK: dict[str, Any] = {"step": 1, "copy": "renoise", "strength": 1.0}


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        (rows({"step": 1, "keep": 5}), {}, "keeps 5 of 4"),
        (rows({"step": 1, "keep": 2}, {"step": 2, "keep": 3}), {}, "keeps 3 of 2"),
        (rows({"step": 1, "keep": 4, "copies": 2}), {}, "copies 2"),
        (rows({"step": 2}, {"step": 1}), {}, "after step 2"),
        (rows({"step": STEPS}), {}, f"to {STEPS - 1}"),
        (rows({"step": 1.5}), {}, "no such step; .* 0.0 to 1.0"),
        (rows({"step": 1, "judge": "nobody"}), {}, "'nobody'"),
        (COPIED, {}, "nothing parts"),
        (COPIED, {"probe": Noise.at_steps(STEPS, FRAMES, (0,))}, "nothing parts"),
        (dataclasses.replace(smc(4, "energy"), eta=0.0), {}, "nothing parts"),
        (smc(4, "energy", at=(STEPS - 2,)), {}, "nothing parts"),
        (rows({"step": -1, "copies": 4}, eta=1.0), {}, "nothing parts"),
        (misspelt(select="treshold"), {}, "select is 'treshold'"),
        (misspelt(transform="summ"), {}, "transform is 'summ'"),
        (misspelt(copy="mutat"), {}, "copy is 'mutat'"),
        (early_failure(2, "energy", least=np.nan), {}, "least nan"),
        (rows({"step": 1, "stop": np.nan}), {}, "stop nan"),
        (rows({"step": 1, "scale": np.inf}), {}, "scale inf"),
        (rows({"step": 1, "scale": np.nan}), {}, "scale nan"),
        (smc(4, "energy", ess=-0.1), {}, "ess -0.1"),
        (rows({"step": 1, "copy": "mutate"}), {}, "strength is 0"),
        (rows({"step": 1, "tries": 2}), {}, "tries 2 .* threshold"),
        (rows({"step": 1, "stop": 0.5, "keep": 4}, {**BACK}), {}, "a renoise would lose"),
        (rows(BACK), UNIPC, "unipc"),
        (rows(BACK | {"back": 2}), {}, "back to step 2 needs a step up to 1"),
        (tbs(4, "energy", frames=(1,)), {}, "a prefix of 1 latent frame"),
        (chain_clips(4, "energy", frames=FRAMES), {}, "it is 1 to 2 frames"),
        (rows(seeds=0), {}, "0 seeds"),
        (
            epbs(3, "energy", at=0.25),
            {"probe": chain(SeedEnsemble.window(STEPS, LAYERS, [2]))},
            "averages over seeds in step 2, where one particle",
        ),
        (
            epbs(3, "energy"),
            {"probe": KnockOut.at(CONFIG, "block", [], by="seed")},
            "KnockOut tells seeds apart",
        ),
        (epbs(3, "energy"), {"seed": (0, 1)}, "2 first seeds for 1 video"),
        (MINE, mine(Wrong()), r"\(1, 3, 12\); it must return \(1, 3\)"),
        (MINE, mine(Frames(lambda video: video.mean(0))), "must return one number"),
        (MINE, mine(Frames(lambda video: float("nan"))), "nan for a video of noise"),
        (MINE, mine(Scorer([TASKS["maze"].sample(0)] * 2)), r"2 puzzle\(s\) for 1 video"),
        (
            rows({"step": 1, "keep": 2}, {"step": 1, "judge": "mine"}),
            mine(judges.Head(0, jnp.zeros(64), 0.0)),
            "reads tokens, of which nothing is left",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    model, condition, method, options, why
) -> None:
    ran: list[int] = []
    with pytest.raises(ValueError, match=why):
        run(model, condition, method, on_step=lambda step, count: ran.append(step), **options)
    assert not ran


def test_a_judge_that_stops_returning_numbers_is_refused(model, condition) -> None:
    scores = iter([0.0])  # of the trial
    judge = Frames(lambda video: next(scores, float("nan")))
    with pytest.raises(ValueError, match="nan for particle 0"):
        run(model, condition, MINE, **mine(judge))


def test_what_parts_copies_and_averages_of_several_are_no_faults(model) -> None:
    noise = Noise.at_steps(STEPS, FRAMES, (3,))
    average = SeedEnsemble.window(STEPS, LAYERS, [1])
    for method, probe in ((COPIED, noise), (epbs(3, "energy", at=0.25), average)):
        check(method, model.config, model.config.sampling, ["energy"], FRAMES, probe)


@pytest.mark.parametrize("steps", [3, 4, 7, 10, 50])
def test_fractions_where_copies_get_keys_are_steps_after_which_noise_parts_them(steps) -> None:
    """The others are as written, of any kind of number."""
    *rows, _ = (row.at(steps) for row in smc(8).rows)
    assert rows == [min(int(f * steps), steps - 3) for f in (0.2, 0.4, 0.6, 0.8)]
    places: list[Any] = [0.5, np.float32(0.5), np.int64(-1), np.int32(2)]
    assert [Row(step=n).at(steps) for n in places] == [steps // 2, steps // 2, steps - 1, 2]


def test_a_default_threshold_is_for_the_judge_and_the_models_that_it_was_fitted_to() -> None:
    for preset in (early_failure, calibrated):
        with pytest.raises(ValueError, match="suits decided; give least, a score of energy"):
            preset(4, "energy")
        config = VARIANTS["wan2.2-i2v-a14b"]()
        with pytest.raises(ValueError, match="give least for wan2"):
            check(preset(4), config, config.sampling, ["decided"], 21, Probe())
    for least in (-0.1, LEAST, -np.inf):  # also the default's value, given
        check(early_failure(4, least=least), config, config.sampling, ["decided"], 21, Probe())


def test_a_search_by_name_is_a_preset_or_a_judge() -> None:
    assert named("change", 4, None, ["change", "random"]) == epbs(4, "change")
    assert named("early-failure", 4, "change", ["change"], least=0.5).rows[0].least == 0.5
    with pytest.raises(ValueError, match="takes no least"):
        named("calibrated", 4, "change", ["change"], least=0.5)


def test_a_judge_of_frames_needs_the_vae(condition) -> None:
    bare = abstract_model(jcos.Wan, VARIANTS["wan2.2-ti2v-5b"]())
    bare.vae, judge = None, Frames(lambda video: float(video.mean()))
    with pytest.raises(ValueError, match="with its VAE"):
        run(bare, condition, MINE, **mine(judge))
