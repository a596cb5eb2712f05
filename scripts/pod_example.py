"""Three seeds of one video, averaged in the first step as in the paper, on every host of a slice.

    python scripts/pod_example.py OUT --model wan-i2v --picture maze.png --prompt "…"

Started alike on every host; needs the core of jcos alone. OUT is an Orbax folder of final latents
and clean estimates, of which every host writes the shards that it holds; `jcos.Trace.load(OUT)`
reads it.
"""

import argparse

import jcos
from jcos.media.image import read_picture
from jcos.variants import TINY

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("out")
parser.add_argument("--model", default=str(TINY), help="a converted or released folder")
parser.add_argument("--picture", required=True)
parser.add_argument("--prompt", required=True)
parser.add_argument("--frames", type=int, help="by default as the model's authors")
parser.add_argument("--mesh", default="context=-1", help="axes over devices, as in docs/launch.md")
parser.add_argument("--coordinator", help="ADDRESS:PORT of the first host, if jax cannot know it")
parser.add_argument("--hosts", type=int)
parser.add_argument("--host", type=int)
options = parser.parse_args()

jcos.init_distributed(options.coordinator, options.hosts, options.host)
with jcos.use_mesh(jcos.make_mesh(jcos.parse_mesh(options.mesh))):
    model = jcos.load(options.model)  # every device reads its slices
    frames = options.frames or model.config.clip.frames
    condition = model.condition(read_picture(options.picture), options.prompt, frames)
    average = jcos.SeedEnsemble.window(model.config.sampling.steps, model.config.dit.layers)
    trace = jcos.generate(model, condition, seeds=[0, 1, 2], probe=average)
    trace.save(options.out, model)
