"""How near does steering come to its exact target, with so many particles?

    jcos run configs/steering.py

Writes out/steering: bias, effective sample size and estimated norm of Feynman–Kac steering against
the number of particles, where the ideal denoiser makes the target known.
"""

from jcos.experiments.steering import Steering

experiment = Steering()
