"""What the options of several commands have in common; like all options it imports nothing slow."""

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jcos.cli.paths import AnyOutFolder, Model
from jcos.config import Solver
from jcos.variants import Profile, with_preset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jax.sharding import Mesh

# ---- options that several commands have
Checkpoint = Annotated[
    Model, tyro.conf.arg(help="A folder, or org/name on Hugging Face; by default the small model.")
]
Task = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(help="Which task: `jcos tasks` lists them.")
]
Steps = Annotated[int | None, tyro.conf.arg(help="Denoising steps; None for the model's number.")]
Sigmas = Annotated[
    tuple[float, ...] | None,
    tyro.conf.arg(
        help="Explicit noise levels in place of steps and shift, or timesteps, as distilled models "
        "want them: 1000 750 500 250."
    ),
]
Frames = Annotated[int | None, tyro.conf.arg(help="Number of frames, 4 n + 1.")]
ProfileName = Annotated[
    Profile | None,
    tyro.conf.arg(
        help="Whose data types, schedule, defaults and rule for pictures: by default those of the "
        "model's authors."
    ),
]
Loras = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        help="LoRA files, merged while the weights are read: FILE[:SCALE], of models with two "
        "experts high=FILE[:SCALE] and low=FILE[:SCALE]."
    ),
]
Changes = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(help="Changes a field, as FIELD=VALUE; can be repeated."),
]


def one_line_helps(kind: Any) -> None:
    """Give tyro the docstrings of a dataclass's fields as one line each; it would take the indented
    lines for breaks."""
    from docstring_parser import parse_from_object

    words = [p for c in kind.__mro__[-2::-1] for p in parse_from_object(c).params]
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in words}
    for field in dataclasses.fields(kind):
        field.metadata = MappingProxyType({"help": texts.get(field.name)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command: a dataclass of options, whose `run` imports what it needs and does the work."""

    def check(self) -> None:
        """Raise ValueError for what is wrong and can be known without importing jax."""

    def run(self) -> None:
        raise NotImplementedError

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return the options that are arguments of a library function, by their common names."""
        options = {field.name for field in dataclasses.fields(self)}
        names = inspect.signature(function).parameters
        return {name: getattr(self, name) for name in names if name in options}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """The options of how a released model is sampled."""

    steps: Steps = None
    shift: float | None = None
    """Of the noise levels."""
    guidance: tuple[float, ...] | None = None
    """One scale, or one per expert, high noise first; 1 leaves the negative prompt out."""
    sigmas: Sigmas = None
    solver: Solver | None = None
    """Brings its grid of noise levels, unless it is the profile's solver anyway. cps, sde, dance,
    cpws and renoise add noise in every step (docs/search.md)."""
    eta: float | None = None
    """Size of that noise, 0 for none; cps takes up to 1."""
    temperature: float | None = None
    """Scale of the first noise, 1 by default."""
    preset: str | None = None
    """Schedule of a distilled model, where no option says otherwise: lightning-4 or lightning-8."""

    def sampling(self) -> dict[str, Any]:
        """Return what `WanConfig.sampling_with` takes: these options, else the preset's."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampled)}
        return with_preset(given.pop("preset"), given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnMesh:
    """The option of every command that can use many devices."""

    mesh: str | None = None
    """How all devices of this process share the work, like branch=2,context=4 (docs/launch.md): by
    seed, branch (of guidance), context or fsdp (a video's tokens; fsdp slices the weights too),
    tensor (heads), world (runs of an experiment). One device by default."""

    join: bool = False
    """This is one of several hosts that all run this command, with --mesh over the devices of all;
    the benchmark shares the samples out. TPU pods and SLURM know their hosts; elsewhere
    set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    scalars: AnyOutFolder | None = None
    """Folder for a line of JSON per step (seconds, passes, memory), and TensorBoard's events where
    tensorboardX is installed; to W&B too where wandb is and WANDB_PROJECT is set."""
    trace_profile: AnyOutFolder | None = None
    """Folder for a profile of a few steps (jax.profiler); docs/launch.md says how to open it."""

    def check(self) -> None:
        if self.join and self.mesh is None:
            raise ValueError("--join needs --mesh: how the hosts' devices share the work")

    @contextlib.contextmanager
    def at_work(self) -> "Iterator[None]":
        """Join the other hosts, if there are any, watch the steps, and wait for them at the end."""
        from jcos.devices import sharding
        from jcos.devices.watching import watched

        if self.join:
            sharding.init_distributed()
        with sharding.among_hosts() if self.join else contextlib.nullcontext():
            if self.join:
                alone = ("scalars", "trace_profile")  # may differ
                names = (f.name for f in dataclasses.fields(self) if f.name not in alone)
                sharding.check_equal({name: getattr(self, name) for name in names})
            with watched(self.scalars, self.trace_profile):
                yield
            sharding.wait_for_hosts()  # or they take it for a loss

    def devices(self, *, everywhere: bool = True) -> "Mesh | None":
        """Return the mesh, None for one device; of all hosts, or of this one's devices. ValueError
        where the devices do not make it up."""
        import jax

        from jcos.devices import sharding

        here = jax.devices() if self.join and everywhere else jax.local_devices()
        if self.mesh is not None:
            return sharding.make_mesh(sharding.parse_mesh(self.mesh), here)
        if len(here) > 1:
            warnings.warn(
                f"{len(here) - 1} of {len(here)} devices are idle: see --mesh", stacklevel=2
            )
        return None
