"""How alike are tokens of neighbouring denoising steps, by layer? (arXiv 2602.10095: above a cosine
similarity of 0.95 in early and middle layers.)

    jcos run configs/cosine.py

Writes out/cosine: the cosine similarity of tokens between neighbouring steps by layer, with those
of another seed and of another puzzle as baselines, and all of it with the mean token subtracted.

The 20 steps are for the small model; for another take its own with --set sampling.steps=none.
"""

from jcos.experiments.cosine import Cosine
from jcos.experiments.experiment import Settings

experiment = Cosine(puzzles=32, sampling=Settings(steps=20))
