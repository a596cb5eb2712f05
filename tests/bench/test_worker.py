"""What a worker does side by side: it prepares the next batch while one is generated and the one
before is written."""

import threading
from pathlib import Path
from typing import Any

import pytest

from jcos.bench import worker
from jcos.bench.arm import Arm, Shape
from jcos.bench.claims import Claims
from jcos.bench.folder import Sample, read_bench
from jcos.bench.run import Work, conduct
from jcos.bench.sampler import Sampler
from jcos.bench.state import Status
from jcos.experiments.experiment import Settings
from jcos.wan import TINY
from tests.bench.devices import finish, grey, named

LONG = 60.0
"""Seconds to wait for what must happen."""


def run(folder: Path, out: Path, batch: int) -> Status:
    arm = Arm(profile=None, scale=1 / 8, sampling=Settings(steps=2))
    return finish(conduct(arm, TINY, read_bench(folder), out, Work(text=out, batch=batch), "x"))


def test_the_next_batch_is_prepared_while_one_is_generated(
    bench_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch is done before the next one is prepared, but for the first, beside which nothing is
    claimed; and no video is written before the batch after it has begun."""
    names, out = read_bench(bench_folder).names, tmp_path / "out"
    changed = threading.Condition()
    prepared: list[str] = []
    generated: list[str] = []
    make, write_mp4 = grey(generated), worker.write_mp4

    def tell(told: list[str], name: str) -> None:
        with changed:
            told.append(name)
            changed.notify_all()

    def prepare(self: Sampler, sample: Sample, shape: Shape, i: int) -> Any:
        tell(prepared, sample.name)
        return named(self, sample, shape, i)

    def generate(self: Sampler, batch: list[Any], shape: Shape, size: int) -> tuple:
        with changed:
            made = make(self, batch, shape, size)
            changed.notify_all()
            want = len(generated) + (1 < len(generated) < len(names))
            assert changed.wait_for(lambda: len(prepared) >= want, LONG), "nothing is prepared"
        assert len(prepared) == want
        # This batch, the next, and the one that is being written.
        assert len(list((out / "state" / "claims").iterdir())) <= 3
        return made

    def write(path: Path, *rest: Any, crf: int) -> None:
        at = generated.index(path.relative_to(out).with_suffix("").as_posix())
        want = min(at + 2, len(names))
        with changed:
            assert changed.wait_for(lambda: len(generated) >= want, LONG), "nothing is generated"
        write_mp4(path, *rest, crf=crf)

    monkeypatch.setattr(Sampler, "prepare", prepare)
    monkeypatch.setattr(Sampler, "generate", generate)
    monkeypatch.setattr(worker, "write_mp4", write)
    assert run(bench_folder, out, batch=1).complete
    assert prepared == generated
    assert sorted(generated) == list(names)


def test_what_cannot_be_prepared_is_one_samples_failure(
    bench_folder: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its batch goes on together; what fails only beside another batch is made."""
    names = read_bench(bench_folder).names
    broken, short = names[1], names[4]
    tried: list[str] = []
    sizes: list[int] = []
    generate = Sampler.generate

    def prepare(self: Sampler, sample: Sample, shape: Shape, i: int) -> Any:
        tried.append(sample.name)
        if sample.name == broken:
            raise ValueError("the picture cannot be read")
        if sample.name == short and tried.count(short) == 1:
            raise MemoryError("asked a device for too much")
        return named(self, sample, shape, i)

    def sized(self: Sampler, batch: list[Any], *how: Any) -> tuple:
        sizes.append(len(batch))
        return generate(self, batch, *how)

    monkeypatch.setattr(Sampler, "prepare", prepare)
    monkeypatch.setattr(Sampler, "generate", sized)
    status = run(bench_folder, tmp_path / "out", batch=4)
    assert status.failed == {broken: "the picture cannot be read"}
    assert status.done == 5
    assert sizes == [3, 2]
    assert sorted(calls) == sorted(set(names) - {broken})
    assert tried.count(short) == 2
    assert list((tmp_path / "out" / "state" / "claims").iterdir()) == []


def test_no_batch_is_claimed_ahead_that_another_worker_would_wait_for(
    bench_folder: Path, tmp_path: Path
) -> None:
    samples = read_bench(bench_folder).samples
    names = [sample.name for sample in samples]
    claims = tmp_path / "claims"
    with Claims(claims) as mine, Claims(claims) as others:
        assert mine.take(names[0])
        assert worker._enough(samples[:1], mine)  # alone, whatever is left
        assert others.take(names[1])
        assert worker._enough(samples, mine)  # four free
        assert others.take(names[2])
        assert not worker._enough(samples, mine)  # three free: a batch of two for each is not there
