"""The `jcos` command, as far as it can be without the packages of the laboratory."""

import importlib
import importlib.util
import os
import sys

LAB = (
    *("tyro", "rich", "matplotlib", "scipy", "xarray", "h5netcdf", "h5py", "jinja2"),
    "huggingface_hub",
)
ELSEWHERE = {"convert": "__main__", "verify": "verify"}
"""Commands of the converter, which lies beside the package in a checkout."""


def main() -> None:
    """Run what was typed; one sentence and exit code 2 where an extra is not installed, 130 after
    Ctrl-C."""
    name, arguments = (sys.argv[1:] or [""])[0], sys.argv[2:]
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
        print("jcos: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the output has enough, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
