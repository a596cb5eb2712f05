"""Runs of an arm: whole or absent, never twice, never mixed up; failures are one sample's."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jcos import generation, wan
from jcos.bench import worker
from jcos.bench.arm import Arm
from jcos.bench.claims import Claims
from jcos.bench.folder import Sample, read_bench
from jcos.bench.hours import expected, hours, measured
from jcos.bench.run import Work, conduct
from jcos.bench.sampler import Sampler
from jcos.bench.state import Folder, Status
from jcos.experiments.experiment import Settings
from jcos.media import formats
from jcos.plan.machines import machine
from jcos.sampling import flow
from jcos.sampling.probes import Noise, SeedEnsemble
from jcos.variants import VARIANTS, with_profile
from jcos.wan import TINY, Wan
from tests.bench.devices import finish

SMALL = Arm(profile=None, scale=1 / 8, sampling=Settings(steps=2))
FIRST = "In-Domain_50/T-1_maze_data-generator/00000"


def run(folder: Path, out: Path, arm: Arm = SMALL, work: Work | None = None) -> Status:
    work = work or Work(text=out / "text")
    return finish(conduct(arm, TINY, read_bench(folder), out / "arm", work, "x"))


def videos(out: Path) -> dict[str, int]:
    """When each was written."""
    found = {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    assert not [p for p in out.rglob("*") if ".part" in p.name]
    return found


@pytest.mark.slow
def test_videos_lie_where_the_scorer_looks(bench_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = run(bench_folder, out, dataclasses.replace(SMALL, x0=(0, 1), x0_samples=1))
    assert status.complete
    assert status.total == status.done == 6
    made = videos(out / "arm")
    assert min(made) == f"{FIRST}.mp4"
    assert len(made) == 6

    # What is written is what the model makes.
    bench = read_bench(bench_folder)
    model = wan.load()
    first = SMALL.first_frame(model.config, bench.samples[0])
    condition = model.condition(first, bench.samples[0].prompt, 5)
    sampling = SMALL.sampling.of(model.config)
    trace = generation.generate(model, condition, (1,), sampling=sampling)
    want = model.decode(trace.latents[0]).astype(int)
    written = formats.read_mp4(out / "arm" / f"{FIRST}.mp4")
    assert written.shape == (5, 160, 160, 3)
    centres = written[:, 4::8, 4::8].astype(int)
    assert np.abs(centres - want).mean() < 6

    about = json.loads((out / "arm" / "run.json").read_text())
    assert about["arm"]["sampling"]["steps"] == 2
    note = json.loads(worker.Folder(out / "arm").about(FIRST, "made").read_text())
    assert note["prompt"] == bench.samples[0].prompt
    kept = worker.Folder(out / "arm").about(FIRST, "x0", "safetensors")
    assert list((out / "arm" / "state" / "x0").rglob("*.safetensors")) == [kept]

    # A repeated run does nothing; one with other settings is refused.
    assert run(bench_folder, out).complete
    assert videos(out / "arm") == made
    with pytest.raises(ValueError, match=r"other settings \(arm.seed 1, not 2\)"):
        run(bench_folder, out, dataclasses.replace(SMALL, seed=2))


def test_a_killed_run_goes_on(bench_folder: Path, tmp_path: Path, calls: list[str]) -> None:
    out, work = tmp_path / "out", Work(text=tmp_path, batch=1)
    steps = conduct(SMALL, TINY, read_bench(bench_folder), out / "arm", work, "x")
    while len(calls) < 3:
        next(steps)
    steps.close()
    before = videos(out / "arm")
    assert 1 <= len(before) < 6
    # A claim and half a file of a worker that died.
    claim = out / "arm" / "state" / "claims" / f"{FIRST.replace('/', '+')}.0"
    claim.write_text(json.dumps({"host": "elsewhere", "space": 0, "pid": 1}))
    assert run(bench_folder, out, work=dataclasses.replace(work, dead=0.1)).complete
    after = videos(out / "arm")
    assert len(after) == 6
    assert before.items() <= after.items()


def test_shards_share_the_samples_without_overlap(
    bench_folder: Path, tmp_path: Path, calls: list[str]
) -> None:
    for i in (0, 1):
        run(bench_folder, tmp_path / f"{i}", work=Work(text=tmp_path, shard=(i, 2), batch=1))
    assert sorted(calls) == list(read_bench(bench_folder).names)
    with pytest.raises(ValueError, match="with 2 shards they are 0/2 to 1/2"):
        Work(text=tmp_path, shard=(2, 2))


def test_workers_take_what_no_other_has(
    bench_folder: Path, tmp_path: Path, calls: list[str]
) -> None:
    def one() -> None:
        run(bench_folder, tmp_path / "out", work=Work(text=tmp_path, batch=2, dead=60.0))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == list(read_bench(bench_folder).names)
    assert len(videos(tmp_path / "out")) == 6


def test_one_samples_failure_is_its_own(
    bench_folder: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not finite, in a batch; a disk that is full while a video is written; a first frame of a size
    that the model does not take."""
    out, names = tmp_path / "out", read_bench(bench_folder).names
    picture = bench_folder / names[4] / "first_frame.png"
    good = picture.read_bytes()
    picture.write_bytes(formats.png(np.zeros((24, 20, 3), np.uint8)))
    generate, write_mp4 = Sampler.generate, worker.write_mp4

    def not_finite(self: Sampler, batch: list, *how: Any) -> tuple:
        if any(given.context == names[1] for given in batch):
            raise FloatingPointError("the latent is not finite")
        return generate(self, batch, *how)

    def full(path: Path, *rest: object, crf: int) -> None:
        if names[2] in str(path):
            raise OSError(28, "No space left on device")
        write_mp4(path, *rest, crf=crf)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "generate", not_finite)
        patch.setattr(worker, "write_mp4", full)
        status = run(bench_folder, out)
    assert not status.complete
    assert status.done == 3
    assert status.failed.keys() == {names[1], names[2], names[4]}
    assert "not finite" in status.failed[names[1]]
    assert "No space left" in status.failed[names[2]]
    assert "needs a multiple of 4" in status.failed[names[4]]

    # Failed samples are left alone until a retry is asked for.
    picture.write_bytes(good)
    calls.clear()
    assert run(bench_folder, out).done == 3
    assert calls == []
    assert run(bench_folder, out, work=Work(text=tmp_path, retry=True)).complete


def test_a_disk_that_cannot_even_hold_the_reason(
    bench_folder: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, name: str, kind: str, about: object) -> None:
        raise OSError(28, "No space left on device")

    picture = bench_folder / FIRST / "first_frame.png"
    picture.write_bytes(formats.png(np.zeros((24, 20, 3), np.uint8)))  # a size the model has not
    monkeypatch.setattr(Folder, "note", full)
    status = run(bench_folder, tmp_path / "out")
    assert status.done == 0
    assert len(status.failed) == 6
    assert "needs a multiple of 4" in status.failed[FIRST]


def test_a_video_of_a_sample_that_changed_is_told(
    bench_folder: Path, tmp_path: Path, calls: list[str]
) -> None:
    run(bench_folder, tmp_path)
    (bench_folder / FIRST / "prompt.txt").write_text("something else")
    assert run(bench_folder, tmp_path).stale == (FIRST,)


def sampler_of(model: Wan, arm: Arm, folder: Path) -> tuple[Sampler, list[Sample]]:
    model.config = arm.of(model.config)
    samples = [s for s in read_bench(folder).samples if s.height == 160][:2]
    return Sampler.of(arm, model), samples


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_seeds_that_are_only_averaged_with_stop_early(
    small_model: Wan, bench_folder: Path, solver
) -> None:
    """The end of the first seed is that of a run in which all go on, each sample by itself."""
    sampling = Settings(steps=4, solver=solver)
    arm = dataclasses.replace(SMALL, sampling=sampling, ensemble=3, x0=(0, 3))
    config = small_model.config
    try:
        made, samples = sampler_of(small_model, arm, bench_folder)
        shape = arm.shape(small_model.config, samples[0])
        assert arm.together(small_model.config) == 1
        conditions = [made.prepare(sample, shape) for sample in samples]
        latents, x0 = made.generate(conditions, shape, 2)
        assert x0.shape == (2, 2, *latents.shape[1:])
        np.testing.assert_allclose(x0[:, 1], latents, atol=1e-5)
        probe = SeedEnsemble.window(4, config.dit.layers)
        for condition, found in zip(conditions, latents, strict=True):
            trace = generation.generate(small_model, condition, (1, 2, 3), probe=probe)
            np.testing.assert_allclose(found, trace.latents[0], atol=1e-4)
    finally:
        small_model.config = config


def test_an_ensemble_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="ensemble_from does nothing where ensemble is 1 seed"):
        Arm(ensemble_from=0.25)
    Arm(ensemble=2, ensemble_from=0.25)


@pytest.mark.slow
def test_two_experts_take_turns(small_model: Wan, bench_folder: Path) -> None:
    """As in `generation.generate`, whose experts are one program: seeds averaged by the first, one
    of them left to the second."""
    model = jax.tree.map(lambda a: a, small_model)
    other = jax.tree.map(lambda a: 0.8 * a, small_model.experts[0])
    model.experts = nnx.List([small_model.experts[0], other])
    model.config = dataclasses.replace(small_model.config, boundary=0.8)
    arm = dataclasses.replace(SMALL, sampling=Settings(steps=4), ensemble=2, x0=(1, 2))
    made, samples = sampler_of(model, arm, bench_folder)
    assert 1 < (flow.plan(model.config.sampling, 0.8).high_steps or 0) < 4
    shape = arm.shape(model.config, samples[0])
    condition = made.prepare(samples[0], shape)
    latents, x0 = made.generate([condition], shape, 1)
    probe = SeedEnsemble.window(4, model.config.dit.layers)
    trace = generation.generate(model, condition, (1, 2), probe=probe)
    np.testing.assert_allclose(latents[0], trace.latents[0], atol=1e-4)
    np.testing.assert_allclose(x0[0], trace.x0[0, 1:3], atol=1e-4)


def test_noise_arms_are_the_probe(small_model: Wan, bench_folder: Path) -> None:
    arm = dataclasses.replace(SMALL, sampling=Settings(steps=4), noise_steps=(0.5,))
    config = small_model.config
    try:
        made, samples = sampler_of(small_model, arm, bench_folder)
        shape = arm.shape(small_model.config, samples[0])
        condition = made.prepare(samples[0], shape)
        latents, _ = made.generate([condition], shape, 1)
        probe = Noise.at_steps(4, 5, [2])
        noised = generation.generate(small_model, condition, (1,), probe=probe)
        clean = generation.generate(small_model, condition, (1,))
        np.testing.assert_allclose(latents[0], noised.latents[0], atol=1e-4)
        assert np.abs(noised.latents - clean.latents).max() > 0.1
    finally:
        small_model.config = config


def test_real_samples_keep_their_size_and_get_4n_plus_1_frames(bench_folder: Path) -> None:
    config = with_profile(VARIANTS["wan2.2-i2v-a14b"](), "diffsynth")
    sample = read_bench(bench_folder).samples[0]
    for size, frames, want in (
        ((1024, 1024), 80, (81, 1024, 1024)),
        ((396, 594), 35, (37, 400, 608)),
        ((1024, 1024), 82, (85, 1024, 1024)),
    ):
        sample = sample._replace(height=size[0], width=size[1], frames=frames)
        assert Arm().shape(config, sample) == want
    assert Arm(frames=17, scale=0.5).shape(config, sample) == (17, 512, 512)
    settings = Arm().of(config).sampling
    assert (settings.steps, settings.shift, settings.guidance) == (50, 5.0, (5.0, 5.0))


def test_hours_follow_from_a_step(bench_folder: Path) -> None:
    config = with_profile(VARIANTS["wan2.2-i2v-a14b"](), "diffsynth")
    sample = read_bench(bench_folder).samples[0]._replace(frames=81, height=480, width=832)
    one, large = [sample], [sample._replace(height=1024, width=1024)]
    pace = measured(6.0)
    assert hours(Arm(), config, one, pace) == pytest.approx(50 * 6.0 / 3600)
    assert hours(Arm(ensemble=3), config, one, pace) == pytest.approx(52 * 6.0 / 3600)
    unguided = Arm(sampling=Settings(guidance=(1.0,)))
    assert hours(unguided, config, one, pace) == pytest.approx(50 * 3.0 / 3600)
    assert 2 < hours(Arm(), config, large, pace) / hours(Arm(), config, one, pace) < 6

    # Worlds of their own devices are as fast as one device each.
    alone = hours(Arm(), config, large, expected(machine("gpu:h200:1"), {}))
    apart = hours(Arm(), config, large, expected(machine("gpu:h200:8"), {"world": 8}))
    assert alone == pytest.approx(8 * apart)
    with pytest.raises(ValueError, match="81 frames of 1024 × 1024 pixels do not fit on gpu:h100"):
        hours(Arm(ensemble=3), config, large, expected(machine("gpu:h100:1"), {}))
    with pytest.raises(ValueError, match=r"branch=2 does not make up gpu:h200:8"):
        expected(machine("gpu:h200:8"), {"branch": 2})


def test_a_claim_that_cannot_be_written_is_that_samples_failure(
    bench_folder: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Claims, name: str) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Claims, "take", full)
    status = run(bench_folder, tmp_path / "out")
    assert (status.done, len(status.failed), calls) == (0, 6, [])
    assert "it cannot be claimed" in status.failed[FIRST]
