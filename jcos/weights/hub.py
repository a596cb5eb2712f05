"""Models by name: `org/name[@revision]` on the Hugging Face hub, or in its cache.

A model that is there already is read where it lies; nothing is written into the cache but what
`huggingface_hub` downloads. Parts that a fine-tuned release lacks are read from the release it was
made of (`variants.BASES`).
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jcos.files import any_path, check_there, is_remote, shown
from jcos.variants import BASES

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
FILES = (
    *("model_index.json", "config.json", "diffusion_pytorch_model*.safetensors*"),
    *("high_noise_model/*", "low_noise_model/*", "transformer/*", "transformer_2/*"),
    *("vae/*", "text_encoder/*", "tokenizer/*", "image_encoder/*", "image_processor/*"),
    *("Wan2.?_VAE.*", "models_t5*", "models_clip*", "google/umt5-xxl/*"),
    *("jcos.json", "weights/*"),
)
"""Files of a repository that are needed, in any layout that is read."""
_NOT_NEEDED = ("*.bin", "*.fp16.*", "*.bf16.*", "*.md", "*.png", "*.jpg", "*.mp4")


def is_name(given: Path | str) -> bool:
    """Return whether this is no file or folder, but may be a model's name on the hub."""
    return bool(_NAME.fullmatch(str(given))) and not os.path.lexists(given)


def check(given: Path) -> None:
    """Check that it is a folder or file that can be read, or may be a name; ValueError else."""
    if not is_name(given):
        check_there(given)


def find(given: Path | str) -> Path:
    """Return the folder (or single file) of a model, with all of its parts on this machine.

    given: a folder or file, also in a bucket, returned as it is; a Hugging Face cache, or a model's
    folder or snapshot in one; or `org/name[@revision]`, whose needed files are downloaded into the
    cache.
    Raises ValueError, in one sentence, where there is no such model or the hub cannot be reached.
    """
    path = any_path(given)
    if is_remote(path):
        return path
    if is_name(given):
        named = _NAME.fullmatch(str(given))
        assert named is not None
        path = _download(named[1], named[2])
    elif path.is_dir():
        path = _in_cache(path)
    lacking = _lacking(path)
    # Of a name the hub knows which files are lacking, as after a download that was killed.
    if lacking and (is_name(given) or base_of(path, lacking) is None):
        repo, folders = BASES[repo_of(path)][0], lacking
        model = _model_of(path)
        _download(repo, None, [f"{name}/*" for name in folders], model and model.parent)
    return path


def base_of(folder: Path, parts: Sequence[str] = ()) -> Path | None:
    """Return the snapshot that a fine-tuned release takes the parts from that it lacks; None where
    it lacks none, or the cache has no such snapshot with all of `parts`."""
    model = _model_of(folder)
    if model is None or (repo := repo_of(folder)) not in BASES:
        return None
    found = _snapshot(model.with_name(f"models--{BASES[repo][0].replace('/', '--')}"))
    return found if found and all((found / part).is_dir() for part in parts) else None


def _lacking(folder: Path) -> list[str]:
    """Return parts that a fine-tuned release takes from another."""
    parts = BASES.get(repo_of(folder), ("", ()))[1]
    return [part for part in parts if not (folder / part).is_dir()]


# ---- the cache: models--ORG--NAME/snapshots/COMMIT, and refs/REVISION with a commit in it


def repo_of(folder: Path) -> str:
    """Return the name of the model whose snapshot a folder is, or links to; empty where it is
    none."""
    model = _model_of(folder)
    return model.name.removeprefix("models--").replace("--", "/", 1) if model else ""


def remedy(folder: Path) -> str:
    """Return how a snapshot that was downloaded in part becomes whole, for messages about what is
    missing in a folder; empty where it is no snapshot."""
    repo = repo_of(folder)
    command = f"hf download {repo} --revision {folder.resolve().name}"
    return f" (if its download was cut short: {command})" if repo else ""


def _model_of(folder: Path) -> Path | None:
    """Return the folder in a cache of the model whose snapshot this is."""
    for place in (folder.absolute(), folder.resolve()):
        model = place.parent.parent
        if place.parent.name == "snapshots" and model.name.startswith("models--"):
            return model
    return None


def _snapshot(model: Path) -> Path | None:
    """Return the snapshot of main, or the only one."""
    ref = model / "refs" / "main"
    found = list((model / "snapshots").glob(ref.read_text().strip() if ref.is_file() else "*"))
    return found[0] if len(found) == 1 and found[0].is_dir() else None


def _in_cache(folder: Path) -> Path:
    """Return the snapshot, if the folder is a cache or a model's folder in one; else the folder."""
    if (folder / "snapshots").is_dir():
        found = _snapshot(folder)
        if found is None:
            raise ValueError(f"{shown(folder)} has no single snapshot; name one of its snapshots/")
        return found
    for cache in (folder, folder / "hub"):
        if models := sorted(cache.glob("models--*")):
            if len(models) == 1:
                return _in_cache(models[0])
            names = ", ".join(m.name.removeprefix("models--").replace("--", "/", 1) for m in models)
            raise ValueError(f"{shown(folder)} is a cache of several models; name one: {names}")
    return folder


# ---- the hub


def _download(
    repo: str,
    revision: str | None,
    patterns: Sequence[str] = FILES,
    cache: Path | None = None,
) -> Path:
    """Return the snapshot of a repository with the files of some patterns, downloaded as far as
    they are not in the cache. Raises as `find`."""
    name = f"{repo}@{revision}" if revision else repo
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import logging
    except ImportError:
        raise ValueError(
            f"there is no folder {name}; to get it as a model from Hugging Face, install the extra "
            "lab: pip install 'jcos[lab]'"
        ) from None
    logging.set_verbosity_error()  # but for its progress
    try:
        found = Path(
            hub.snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache or Path(constants.HF_HUB_CACHE),
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_NEEDED),
            )
        )
    except errors.GatedRepoError:
        raise ValueError(f"{name} asks for consent on Hugging Face: `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{repo} on Hugging Face has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"there is no folder {name}, and Hugging Face has no such model") from None
    except Exception as error:  # each of its HTTP libraries has errors of its own
        disk = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES
        if getattr(error, "errno", None) in disk:
            raise
        only = "" if patterns is FILES else " --include " + " ".join(f'"{p}"' for p in patterns)
        at = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"there is no folder {name}, and Hugging Face cannot be reached "
            f"({type(error).__name__}); on a machine that can: hf download {repo}{at}{only}"
        ) from None
    if not any(any(found.glob(pattern)) for pattern in patterns):
        raise ValueError(f"{name} on Hugging Face has no files of a model that jcos reads")
    return found
