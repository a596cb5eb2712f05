"""Three seeds of one video, averaged in the first step as in the paper, on every host of a slice.

    python scripts/pod_example.py OUT --model wan-i2v --picture maze.png --prompt "…"

Started alike on every host, with --hosts 1 on a single machine; needs the core of jcos alone. OUT
is an Orbax folder of final latents and clean estimates, of which every host writes the shards that
it holds; `jcos.Trace.load(OUT)` reads it.
"""

import argparse

import jcos
from jcos.config import VaeConfig
from jcos.files import any_path
from jcos.media import image
from jcos.variants import TINY

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("out")
parser.add_argument("--model", default=str(TINY), help="a converted or released folder")
parser.add_argument("--picture", required=True)
parser.add_argument("--prompt", required=True)
parser.add_argument("--frames", type=int, help="by default as the model's authors")
parser.add_argument("--mesh", default="context=-1", help="axes over devices, as in docs/launch.md")
parser.add_argument("--coordinator", help="ADDRESS:PORT of the first host, if jax cannot know it")
parser.add_argument("--hosts", type=int, help="1 on a single machine")
parser.add_argument("--host", type=int)
options = parser.parse_args()
if any_path(options.out).exists():
    parser.error(f"{options.out} exists; remove it or choose another name")

try:
    if options.hosts != 1 or options.coordinator:
        jcos.init_distributed(options.coordinator, options.hosts, options.host)
    with jcos.use_mesh(jcos.make_mesh(jcos.parse_mesh(options.mesh))):
        model = jcos.load(options.model)  # every device reads its slices
        config, clip = model.config, model.config.clip
        picture, seen = image.read_picture(options.picture), None
        if isinstance(config.codec, VaeConfig):  # the small model takes it as it is
            picture, seen = image.first_frame(picture, config, None, clip.height, clip.width)
        condition = model.condition(
            picture, options.prompt, options.frames or clip.frames, seen=seen
        )
        average = jcos.SeedEnsemble.window(config.sampling.steps, config.dit.layers)
        trace = jcos.generate(model, condition, seeds=[0, 1, 2], probe=average)
        trace.save(options.out, model)
except (ValueError, OSError) as error:
    hint = "" if options.hosts else "; a single machine wants --hosts 1"
    parser.error(f"{error}{hint}")
