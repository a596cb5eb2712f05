"""The `jcos` command, as far as it can be without the packages of the laboratory."""

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

LAB = (
    *("tyro", "rich", "matplotlib", "scipy", "xarray", "h5netcdf", "h5py", "jinja2"),
    "huggingface_hub",
)
ELSEWHERE = {"convert": "__main__", "verify": "verify"}
"""Commands of the converter, which lies beside the package in a checkout."""


def stop(said: str) -> NoReturn:
    """End after Ctrl-C, with exit code 130; at once, as threads of XLA that are at work would crash
    while Python takes itself apart."""
    print(said, file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; end at once where a module is imported: C++ may swallow it, or
    crash."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            stop("jcos: stopped")
        frame = frame.f_back
    raise KeyboardInterrupt


def _lost(what: Any) -> None:
    """Repeat a Ctrl-C that came in a callback (jax has one of garbage collection), which raises
    nothing."""
    if what.exc_type is KeyboardInterrupt:
        again = threading.main_thread().ident, signal.SIGINT  # a real one, which wakes a sleeper
        threading.Timer(0.1, signal.pthread_kill, again).start()
    else:
        sys.__unraisablehook__(what)


def main() -> None:
    """Run what was typed; one sentence and exit code 2 where an extra is not installed, 130 after
    Ctrl-C."""
    name, arguments = (sys.argv[1:] or [""])[0], sys.argv[2:]
    sys.unraisablehook = _lost
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if name not in ELSEWHERE:
            importlib.import_module("jcos.cli").main()
            sys.stdout.flush()
            return
        package = "jcos.convert" if importlib.util.find_spec("jcos.convert") else "convert"
        module = importlib.import_module(f"{package}.{ELSEWHERE[name]}")
        module.main(arguments, f"jcos {name}")
    except ModuleNotFoundError as missing:
        if missing.name not in LAB:
            raise
        print(
            f"jcos: commands need the extra 'lab' ({missing.name} is missing): "
            "pip install 'jcos[lab]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        stop("jcos: stopped")
    except BrokenPipeError:  # whoever read the output has enough, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
