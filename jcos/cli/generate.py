"""`jcos generate`."""

import contextlib
import dataclasses
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from jcos import generation, loop, runs, wan
from jcos.cli import options
from jcos.cli.common import PACE, Interventions, OnMesh, command_line, console, read_size
from jcos.config import Sampling, VaeConfig, WanConfig
from jcos.devices import mesh, programs, sharding
from jcos.files import check_room, keep, write
from jcos.media import formats, image
from jcos.model.text import UMT5, TextCache, read_prompt
from jcos.model.vae import Tiles
from jcos.report import explorer
from jcos.sampling.noise import noise_from_file, seed_words
from jcos.sampling.probes import Probe, choose
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan
from jcos.weights.checkpoint import identify

HEADER = 2**16
"""Bytes of a safetensors file beside its numbers, at most."""
PIXELS_OF_A_BYTE = 4
"""Of a film, as far as its size can be told before it is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(options.Generate, Interventions, OnMesh):
    """`jcos generate`, at work."""

    def run(self) -> None:
        # All that can be wrong is found before the weights are read.
        config = wan.read_config(self.checkpoint, self.profile)
        changed = ("steps", "shift", "solver", "guidance", "sigmas")
        sampling = config.sampling_with(**{name: getattr(self, name) for name in changed})
        config = dataclasses.replace(config, sampling=sampling)
        devices = self._devices(config)
        choose(sampling.steps, self.x0, "step")
        tiles = self._tiles(config)
        wan.check_picture(config, self.image is not None)
        picture = None if self.image is None else image.read_picture(self.image, self.profile)
        first, size = self._first_frame(config, picture)
        asked = config.clip.frames if self.frames is None else self.frames
        stride = 1 if config.codec is None else config.codec.strides[0]
        frames = image.round_frames(asked, self.profile or "official", stride)
        grid = wan.latent_grid(config, frames, *size)
        noise_shape = (*grid, config.dit.out_channels)
        seed_words(self.seeds)  # which of them are no seeds
        noise = self._noise(config, noise_shape)
        interventions = self.probe(sampling.steps, grid[0], config.dit.layers, len(self.seeds))
        prompts = [read_prompt(p) for p in (self.prompt, self.negative or config.negative)]
        settings = self._settings(config, size, frames, picture, prompts, noise)
        latents = self.out / "latents.safetensors"
        done = runs.holds(self.out, "checkpoint", settings) and latents.is_file()
        count = len(self.seeds) * (1 + len(self.x0))
        room = HEADER + 4 * count * math.prod(noise_shape)
        films = count * frames * math.prod(size) // PIXELS_OF_A_BYTE
        check_room(self.out, 0 if done else room, films)
        formats.check_mp4(*size, config.clip.fps)
        if self.programs is not None:
            programs.keep(self.programs)
        # Text encoder, VAE and experts are loaded when they are needed, and let go again: the
        # device never holds the experts and the text encoder together.
        coder = wan.load(self.checkpoint, profile=self.profile, experts=False, text=False)
        if isinstance(config.codec, VaeConfig) and coder.vae is None:
            raise ValueError(
                f"{self.checkpoint} has no VAE, which makes videos of latents; put that of the "
                "release into the folder (and convert it again)"
            )

        if done:
            console.print(f"The latents of this run are in {self.out} already.")
        else:
            prompt, negative = self._embedded(config, prompts)
            condition = coder.condition(
                first, prompt, frames, negative=negative, size=size, tiles=tiles
            )
            if devices is not None:  # it lies on the one that coded it
                condition = jax.device_get(condition)
            manifest = {
                "checkpoint": str(self.checkpoint),
                "changes": [change.to_json() for change in interventions.changes()],
                **settings,
                **runs.made(command_line(), devices.shape if devices else {}),
            }
            with runs.begun(self.out, manifest, room), sharding.use_mesh(devices):
                arrays, seconds = self._sample(condition, sampling, interventions, noise)
            keep(latents, save(arrays))
            manifest |= {"seconds": round(seconds, 1), "date": runs.now()}
            write(self.out / runs.MANIFEST, runs.as_text(manifest))
        try:
            arrays = load_file(latents)
        except SafetensorError as error:
            raise ValueError(f"{latents} is damaged ({error}); remove it") from None
        self._write_videos(coder, arrays, tiles)
        with console.status("the page …"):
            page = explorer.make(self.out)
        print(f"Videos and latents are in {self.out}; the page is at {page.resolve()}")

    def _sample(
        self,
        condition: Condition,
        sampling: Sampling,
        probe: Probe,
        noise: loop.Noise,
    ) -> tuple[dict[str, np.ndarray], float]:
        """Final latents and the clean estimates that are kept, and the seconds they took. The
        experts are loaded for this alone."""
        model = wan.load(
            self.checkpoint, profile=self.profile, text=False, vae=False, resident=self.resident
        )
        start = time.monotonic()
        with _bar(sampling.steps) as on_step:
            trace = generation.generate(
                model,
                condition,
                self.seeds,
                probe=probe,
                sampling=sampling,
                noise=noise,
                on_step=on_step,
            )
            arrays = {"latents": trace.latents, "x0": trace.x0[:, np.array(self.x0, int)]}
            arrays = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
        return arrays, time.monotonic() - start

    def _devices(self, config: WanConfig) -> Mesh | None:
        devices = self.devices_for(config, len(self.seeds))
        worlds = 1 if devices is None else devices.shape[mesh.WORLD]
        if worlds > 1:
            raise ValueError(
                f"the mesh has world={worlds}, but there is one prompt: spread seeds over seed"
            )
        return devices

    def _tiles(self, config: WanConfig) -> Tiles | None:
        if self.tiles is None:
            return None
        if not isinstance(config.codec, VaeConfig):
            raise ValueError(f"{config.name} has no VAE whose frames could be coded in tiles")
        height, width = self.tiles
        return Tiles(self.tiles, (height // 2, width // 2))

    def _first_frame(
        self, config: WanConfig, picture: UInt8[np.ndarray, "H W 3"] | None
    ) -> tuple[Float[Array | np.ndarray, "h w 3"] | None, tuple[int, int]]:
        """The first frame in the size that it is generated in, and that size (height, width)."""
        clip = config.clip
        width, height = (clip.width, clip.height) if self.size is None else read_size(self.size)
        if picture is None:
            return None, (height, width)
        rule = image.rule_for(config, self.profile)
        frame = image.prepare(picture, rule, height, width)
        return frame, (frame.shape[0], frame.shape[1])

    def _noise(self, config: WanConfig, shape: tuple[int, int, int, int]) -> loop.Noise:
        drawn = self.noise or config.noise
        if drawn == "torch" or drawn == "jax":
            return drawn
        if len(self.seeds) > 1:
            raise ValueError("noise from a file is one video's; give one seed")
        return noise_from_file(drawn, shape)[None]

    def _embedded(self, config: WanConfig, prompts: Sequence[wan.Prompt]) -> list[wan.Prompt]:
        """Prompts as rows. The encoder is loaded where there are words (and a cache, if there is
        one, lacks some of them), and let go again."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            rows: list[wan.Prompt] = []
            if texts and self.text_cache is None:
                encoder = self._encoder()
                rows = [encoder.embed(text) for text in texts]
            elif texts and self.text_cache is not None:
                rows = self._cached(self.text_cache, texts, config.dit.text_len)
        for warning in said:  # of a prompt that is too long
            console.print(f"Note: {warning.message}.", highlight=False)
        known = dict(zip(texts, rows, strict=True))
        return [known[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]

    def _cached(self, folder: Path, prompts: Sequence[str], length: int) -> list[wan.Prompt]:
        try:
            cache = TextCache(folder)
            return [cache.embed(text, length) for text in prompts]
        except ValueError as missing:
            encoder = self._encoder()
            if not isinstance(encoder.text, UMT5):
                raise missing from None
            cache = TextCache(folder, encoder.text, encoder.tokenizer)
            return [cache.embed(text, length) for text in prompts]

    def _encoder(self) -> Wan:
        return wan.load(self.checkpoint, profile=self.profile, experts=False, vae=False)

    def _settings(
        self,
        config: WanConfig,
        size: tuple[int, int],
        frames: int,
        picture: np.ndarray | None,
        prompts: Sequence[wan.Prompt],
        noise: loop.Noise,
    ) -> dict[str, Any]:
        """Everything that decides what comes out."""
        return {
            "weights": identify(self.checkpoint),
            "model": config.name,
            "prompt": prompts[0] if isinstance(prompts[0], str) else self.prompt,
            "negative": prompts[1] if isinstance(prompts[1], str) else self.negative,
            "embedded": [None if isinstance(p, str) else _hash(p) for p in prompts],
            "image": None if picture is None else _hash(picture),
            "size": {"height": size[0], "width": size[1], "frames": frames, "fps": config.clip.fps},
            "sampling": dataclasses.asdict(config.sampling) | {"boundary": config.boundary},
            "numerics": dataclasses.asdict(config.numerics),
            "seeds": list(self.seeds),
            "noise": self.noise or config.noise,
            "noise file": None if isinstance(noise, str) else _hash(noise),
            "interventions": self.interventions(),
            "x0": list(self.x0),
            "tiles": None if self.tiles is None else list(self.tiles),
        }

    def _write_videos(self, model: Wan, arrays: dict[str, np.ndarray], tiles: Tiles | None) -> None:
        for i, seed in enumerate(self.seeds):
            if not np.isfinite(arrays["latents"][i]).all():
                console.print(f"Seed {seed} has no video: its latent is not finite.")
                continue
            with console.status(f"decoding seed {seed} …"):
                video = model.decode(arrays["latents"][i], tiles)
                formats.write_mp4(self.out / f"seed-{seed}.mp4", video, model.config.clip.fps)
                if not self.x0:
                    continue
                shown = np.unique(np.linspace(0, len(video) - 1, 9).round().astype(int))
                kept = []
                for step, x0 in zip(self.x0, arrays["x0"][i], strict=True):
                    film = model.decode(x0, tiles)
                    path = self.out / formats.X0_FILM.format(seed=seed, step=step)
                    formats.write_mp4(path, film, model.config.clip.fps)
                    kept.append(film[shown])
                rows = np.stack(kept)
                sheet = formats.contact_sheet(rows[:, :, :: _thin(rows), :: _thin(rows)])
                write(self.out / f"seed-{seed}-x0.png", formats.png(sheet))


def _thin(rows: np.ndarray) -> int:
    """Every how many pixels of a frame are shown on a sheet of all frames."""
    return max(1, rows.shape[3] // 240)


def _hash(array: wan.Prompt | np.ndarray | None) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


@contextlib.contextmanager
def _bar(steps: int) -> Iterator[Callable[[int], None]]:
    """Steps done and time left; to be called with every step that is done."""
    columns = (TextColumn("{task.description}"), BarColumn())
    columns = (*columns, MofNCompleteColumn(), TimeRemainingColumn())
    # A step may take minutes, and rich by itself forgets what was more than 30 seconds ago.
    with Bar(*columns, console=console, speed_estimate_period=PACE) as bar:
        task = bar.add_task("compiling", total=steps)
        yield lambda step: bar.update(task, completed=step + 1, description="denoising")
