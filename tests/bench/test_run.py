"""Runs of an arm: whole or absent, never twice, never mixed up; failures are one sample's."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from flax import nnx

from jcos import generation, wan
from jcos.bench import run as bench_run
from jcos.bench.arm import Arm, Shape
from jcos.bench.folder import Bench, Sample, read_bench
from jcos.bench.results import Folder, Status
from jcos.bench.run import Work
from jcos.bench.sampler import Sampler
from jcos.devices import sharding
from jcos.experiments.experiment import Settings
from jcos.lab.methods import chain_clips, epbs, tbs
from jcos.media import formats
from jcos.sampling import flow
from jcos.sampling.probes import Noise, SeedEnsemble, chain
from jcos.staged import Progress, silent
from jcos.variants import VARIANTS, with_profile
from jcos.wan import TINY, Wan
from jcos.weights.checkpoint import abstract_model
from tests.bench.conftest import grey, named

MIDDLE = (0.5, 0.7)
"""As the probe has it by default, of six layers: 3 and 4."""
LONG = 60.0
"""Seconds to wait for what must happen."""
FULL = Mock(side_effect=OSError(28, "No space left on device"))
SMALL = Arm(profile=None, scale=1 / 8, sampling=Settings(steps=2))
FIRST = "In-Domain_50/T-1_maze_data-generator/00000"


def run(
    folder: Path, out: Path, arm: Arm = SMALL, work: Work | None = None, progress: Progress = silent
) -> Status:
    work = work or Work(text=out / "text")
    arms = {"arm": arm}
    return bench_run.run(arms, TINY, read_bench(folder), out, work, progress=progress)["arm"]


def videos(out: Path) -> dict[str, int]:
    """When each was written."""
    found = {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    assert not [p for p in out.rglob("*") if ".part" in p.name]
    return found


@pytest.mark.slow
def test_videos_lie_where_the_scorer_looks(bench_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = run(bench_folder, out)
    assert status.complete
    assert status.total == status.done == 6
    made = videos(out / "arm")
    assert min(made) == f"{FIRST}.mp4"
    assert len(made) == 6

    # What is written is what the model makes.
    bench = read_bench(bench_folder)
    model = wan.load()
    first, _ = SMALL.first_frame(model.config, bench.samples[0])
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
    note = json.loads(Folder(out / "arm").about(FIRST, "made").read_text())
    assert note["prompt"] == bench.samples[0].prompt

    # A repeated run does nothing; one with other settings is refused.
    assert run(bench_folder, out).complete
    assert videos(out / "arm") == made
    with pytest.raises(ValueError, match=r"other settings \(arm.seed 1, not 2\)"):
        run(bench_folder, out, dataclasses.replace(SMALL, seed=2))


def test_a_killed_run_goes_on(bench_folder: Path, tmp_path: Path, calls: list[str]) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    work = Work(text=tmp_path, batch=1)
    with pytest.raises(KeyboardInterrupt):
        run(bench_folder, tmp_path, work=work, progress=kill)
    before = videos(tmp_path / "arm")
    assert 2 <= len(before) < 6
    assert run(bench_folder, tmp_path, work=work).complete
    after = videos(tmp_path / "arm")
    assert len(after) == 6
    assert before.items() <= after.items()
    assert sorted(calls) == list(read_bench(bench_folder).names)  # each once
    (tmp_path / "arm" / f"{FIRST}.mp4").write_bytes(b"")
    assert run(bench_folder, tmp_path, work=work).complete
    assert calls[6:] == [FIRST]
    (bench_folder / FIRST / "prompt.txt").write_text("something else")
    assert run(bench_folder, tmp_path).stale == (FIRST,)


def test_shards_of_one_folder_never_write_the_same_file(
    bench_folder, tmp_path, calls, monkeypatch
) -> None:
    """In a bucket, whose samples are not counted after every batch."""
    monkeypatch.setattr(bench_run, "is_remote", lambda path: True)
    names, made, told = read_bench(bench_folder).names, [], []
    arm = dataclasses.replace(SMALL, x0=(0,), x0_samples=1)
    for i in (0, 1):
        work = Work(text=tmp_path, shard=(i, 2), batch=1)
        status = run(bench_folder, tmp_path, arm, work, progress=lambda *now: told.append(now))
        assert (status.done, status.total) == (3, 3)
        made.append(videos(tmp_path / "arm"))
    stored = {Folder(tmp_path / "arm").about(name, "x0", "safetensors") for name in names[:2]}
    assert set((tmp_path / "arm").rglob("x0/**/*.safetensors")) == stored
    assert len(told) == 4  # the model and the first batch, twice
    assert sorted(calls) == list(names)
    assert [name.removesuffix(".mp4") for name in sorted(made[0])] == list(names[::2])
    assert made[0].items() <= made[1].items()
    summary = json.loads((tmp_path / "arm/summary.json").read_text())
    assert (summary["done"], summary["total"]) == (6, 6)


def test_one_samples_failure_is_its_own(bench_folder, tmp_path, calls, monkeypatch) -> None:
    """A picture that cannot be read, or of a size that the model does not take; latents that are
    not finite, in a batch; a disk that is full while a video is written. The rest goes on, and so
    does what fails only beside another batch."""
    out, names = tmp_path / "out", read_bench(bench_folder).names
    picture = bench_folder / names[4] / "first_frame.png"
    good = picture.read_bytes()
    picture.write_bytes(formats.png(np.zeros((24, 20, 3), np.uint8)))
    generate, write_mp4 = Sampler.generate, bench_run.write_mp4
    prepared: list[str] = []
    sizes: list[int] = []

    def prepare(self: Sampler, sample: Sample, shape: Shape) -> Any:
        prepared.append(sample.name)
        if sample.name == names[0]:
            raise ValueError("the picture cannot be read")
        if sample.name == names[5] and prepared.count(names[5]) == 1:
            raise MemoryError("asked a device for too much")
        return named(self, sample, shape)

    def not_finite(self: Sampler, batch: list, *how: Any) -> tuple:
        sizes.append(len(batch))
        if any(given.context == names[1] for given in batch):
            raise FloatingPointError("the latent is not finite")
        return generate(self, batch, *how)

    def full_for_one(path: Path, *rest: object, crf: int) -> None:
        if names[2] in str(path):
            FULL()
        write_mp4(path, *rest, crf=crf)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "prepare", prepare)
        patch.setattr(Sampler, "generate", not_finite)
        patch.setattr(bench_run, "write_mp4", full_for_one)
        status = run(bench_folder, out, work=Work(text=tmp_path, batch=4))
    assert status.done == 2
    assert sizes[0] == 3
    assert prepared.count(names[5]) == 2
    reasons = ("cannot be read", "not finite", "No space left", "needs a multiple of 4")
    failed = dict(status.failed)
    for i, why in zip((0, 1, 2, 4), reasons, strict=True):
        assert why in failed.pop(names[i])
    assert failed == {}

    # Failed samples are left alone until a retry is asked for.
    picture.write_bytes(good)
    calls.clear()
    assert run(bench_folder, out).done == 2
    assert calls == []
    assert run(bench_folder, out, work=Work(text=tmp_path, retry=True)).complete
    assert sorted(calls) == [names[0], names[1], names[4]]  # the third was denoised before


def test_a_disk_that_cannot_even_hold_the_reason_ends_the_run(
    bench_folder, tmp_path, calls, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "note", FULL)
        with pytest.raises(OSError, match="No space left"):
            run(bench_folder, tmp_path)
    assert videos(tmp_path / "arm") == {}
    assert run(bench_folder, tmp_path).complete


def test_noise_files_are_there_and_decide_the_videos(bench_folder, tmp_path, calls) -> None:
    """A part of the benchmark, then the whole: what was made with other noise is said."""
    out, noise = tmp_path / "out", tmp_path / "noise"
    arm = dataclasses.replace(SMALL, noise_files=noise)
    part, whole = (read_bench(bench_folder, per_task) for per_task in (1, None))

    def made(bench: Bench) -> Status:
        return bench_run.run({"arm": arm}, TINY, bench, out, Work(text=out))["arm"]

    with pytest.raises(ValueError, match="there is no folder"):
        made(part)
    for i, sample in enumerate(part.samples):
        (noise / sample.name).parent.mkdir(parents=True)
        (noise / f"{sample.name}.npy").write_bytes(bytes([i]))
    with pytest.raises(ValueError, match=r"the noise of 3 samples is lacking, .*/00001\.npy first"):
        made(whole)
    assert made(part).complete
    for i, sample in enumerate(whole.samples):
        (noise / f"{sample.name}.npy").write_bytes(bytes([i // 2]))
    assert made(whole).complete
    assert sorted(calls) == list(whole.names)  # each once
    (noise / f"{FIRST}.npy").write_bytes(b"other")
    assert made(whole).stale == (FIRST,)


def sampler_of(model: Wan, arm: Arm, folder: Path) -> tuple[Sampler, list[Sample]]:
    model = jax.tree.map(lambda a: a, model)
    model.config = arm.of(model.config)
    samples = [s for s in read_bench(folder).samples if s.height == 160][:2]
    return Sampler(arm, model), samples


@pytest.mark.slow
def test_an_arm_is_its_probe_and_seeds_that_are_only_averaged_with_stop_early(
    small_model: Wan, bench_folder: Path
) -> None:
    """The end of the first seed is that of `generation.generate`, in which all go on and both
    experts are one program, each sample by itself: seeds averaged by the first expert, one of them
    left to the second, whose step has noise."""
    model = jax.tree.map(lambda a: a, small_model)
    other = jax.tree.map(lambda a: 0.8 * a, small_model.experts[0])
    model.experts = nnx.List([small_model.experts[0], other])
    model.config = dataclasses.replace(small_model.config, boundary=0.8)
    arm = dataclasses.replace(
        SMALL,
        sampling=Settings(steps=4, solver="unipc"),
        ensemble=3,
        ensemble_layers=MIDDLE,
        noise_steps=(0.75,),
        x0=(0, 3),
    )
    sampler, samples = sampler_of(model, arm, bench_folder)
    model = sampler.model
    assert 1 < (flow.plan(model.config.sampling, 0.8).high_steps or 0) < 4
    shape = arm.shape(model.config, samples[0])
    assert arm.together(model.config) == 1
    conditions = [sampler.prepare(sample, shape) for sample in samples]
    latents, x0, _ = sampler.generate(conditions, shape, 2)
    np.testing.assert_allclose(x0[:, 1], latents, atol=1e-5)
    layers = model.config.dit.layers
    probe = chain(Noise.at_steps(4, 5, [3]), SeedEnsemble.window(4, layers))
    for condition, latent in zip(conditions, latents, strict=True):
        trace = generation.generate(model, condition, (1, 2, 3), probe=probe)
        np.testing.assert_allclose(latent, trace.latents[0], atol=1e-4)


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
    arm, config = Arm(profile=None, sampling=Settings(), size=(480, 832)), "wan2.1-i2v-14b"
    assert arm.of(VARIANTS[config]()).sampling.shift == 3.0


def test_the_next_batch_is_prepared_while_one_is_denoised(
    bench_folder, tmp_path, monkeypatch
) -> None:
    names, changed = read_bench(bench_folder).names, threading.Condition()
    prepared: list[str] = []
    begun: list[str] = []
    make = grey(begun)

    def prepare(self: Sampler, sample: Sample, shape: Shape) -> Any:
        with changed:
            prepared.append(sample.name)
            changed.notify_all()
        return named(self, sample, shape)

    def generate(*given: Any) -> tuple:
        made = make(*given)
        with changed:
            want = min(len(begun) + 1, len(names))
            assert changed.wait_for(lambda: len(prepared) >= want, LONG), "nothing is prepared"
        return made

    monkeypatch.setattr(Sampler, "prepare", prepare)
    monkeypatch.setattr(Sampler, "generate", generate)
    assert run(bench_folder, tmp_path, work=Work(text=tmp_path, batch=1)).complete
    assert prepared == begun
    assert sorted(begun) == list(names)


@pytest.mark.slow
def test_a_searching_arm_writes_what_the_search_chose(bench_folder: Path, tmp_path: Path) -> None:
    """The same seed alone gives the same latents."""
    arm = dataclasses.replace(SMALL, search=epbs(3, "energy", at=0))
    sampler, samples = sampler_of(wan.load(), arm, bench_folder)
    model, config = sampler.model, sampler.model.config
    shape = arm.shape(config, samples[0])
    batch = [sampler.prepare(sample, shape) for sample in samples]
    latents, _, notes = sampler.generate(batch, shape, 2)
    for note, condition, made in zip(notes, batch, latents, strict=True):
        assert note["forwards"] == 3 + 1
        assert note["chosen seed"] in (1, 2, 3)
        alone = generation.generate(
            model, condition, (note["chosen seed"],), sampling=config.sampling
        )
        np.testing.assert_allclose(made, alone.latents[0], atol=1e-4)


def test_a_mesh_keeps_the_vae_for_searches_that_code_frames(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_put", lambda model, device: model)
    devices = sharding.make_mesh({"fsdp": -1})
    for search, kept in ((tbs(2), True), (epbs(2), False), (None, False)):
        model = abstract_model(Wan, VARIANTS["wan2.2-i2v-a14b"]())
        Sampler(Arm(search=search), model, str, devices)
        assert (model.vae is not None) == kept


SEARCH = dataclasses.replace(SMALL, search=epbs(3, "nobody"))


def check(mesh: dict[str, int], guidance: float = 5.0) -> None:
    arm = Arm(profile=None, sampling=Settings(guidance=(guidance,)))
    bench_run.check_mesh(mesh)
    wan.check_mesh(mesh, arm.of(wan.read_config(TINY)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Arm(ensemble=3), "at least 2 seeds and 1 layer"),
        (lambda: Arm(ensemble_layers=(0.5,)), "at least 2 seeds and 1 layer"),
        (lambda: Arm(search=epbs(2), ensemble=2, ensemble_layers=(0,)), "searches averages no"),
        (lambda: Arm(search=epbs(2), x0=(0,)), "keeps no x0"),
        (lambda: Arm(search=chain_clips(2)), "longer than the ground truth"),
        (lambda: SEARCH.of(VARIANTS["wan2.2-t2v-a14b"]()), "takes no first frame"),
        (lambda: SEARCH.of(wan.read_config(TINY)), "there is no judge 'nobody'"),
        (lambda: Work(text=TINY, shard=(2, 2)), "shard is 2/2"),
        (lambda: check({"seed": 2}), "seed=2 leaves devices idle"),
        (lambda: check({"world": 2}), "leave world out"),
        (lambda: check({"branch": 2}, 1.0), "1 pass.*branch=2"),
        (lambda: check({"tensor": 3}), "heads do not divide .*tensor=3"),
    ],
)
def test_what_an_arm_cannot_do_is_refused(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()
