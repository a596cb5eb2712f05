"""How alike are tokens of neighbouring denoising steps, by layer? (arXiv 2602.10095: above a cosine
similarity of 0.95 in early and middle layers.)

    jcos run configs/cosine.py
"""

from jcos.experiments.cosine import Cosine
from jcos.experiments.experiment import Settings

experiment = Cosine(puzzles=32, sampling=Settings(steps=20))
