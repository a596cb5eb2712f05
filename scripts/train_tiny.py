"""Trains the small model on the reasoning tasks, in five parts of about an hour each on two CPU
cores (0.65 to 0.9 seconds a step).

    python scripts/train_tiny.py --out runs/tiny            # resumes by itself after a kill
    python scripts/train_tiny.py --out runs/tiny --steps 5000

Ends with OUT/model (a checkpoint folder, what `jcos.load` reads). To ship it, replace jcos/tiny by
OUT/model and run `make evaluate`. The shipped one went on from there:

    python scripts/train_tiny.py --part 2 --start runs/tiny/model --out runs/second
    python scripts/train_tiny.py --part 3 --start runs/second/model --out runs/third
    python scripts/train_tiny.py --part 4 --start runs/third/model --out runs/fourth
    python scripts/train_tiny.py --part 5 --start runs/fourth/model --out runs/fifth
"""

import dataclasses
from pathlib import Path

from jcos.cli.common import bar
from jcos.devices import programs
from jcos.files import local_path
from jcos.lab.training import PARTS, train
from tables import options

EVERY = 10
"""Steps between two reports of the loss."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--out", type=local_path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, help="by default those of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--part", type=int, default=1, choices=range(1, len(PARTS) + 1))
    parser.add_argument("--start", help="model folder to go on from: what the part before made")
    arguments = parser.parse_args()
    if (arguments.part > 1) != bool(arguments.start):
        parser.error("the first part starts from nothing, every other one needs --start")
    recipe = PARTS[arguments.part - 1]
    recipe = dataclasses.replace(
        recipe,
        steps=recipe.steps if arguments.steps is None else arguments.steps,
        seed=recipe.seed + arguments.seed,
        start=arguments.start,
    )
    programs.keep_in_cache()
    try:
        with bar() as progress:
            for now in train(recipe, arguments.out, save_every=arguments.save_every):
                if now.step == recipe.steps or now.step % EVERY == 0:
                    progress(f"loss {now.loss:.4f}", now.step, recipe.steps)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"The model is in {arguments.out / 'model'}")


if __name__ == "__main__":
    main()
