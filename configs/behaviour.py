"""Does the model remember, correct itself, and see before it acts? (Paper, section 4.)

    jcos run configs/behaviour.py

Writes out/behaviour: how many early wrong answers are right in the end
and when, and the converse; when the scene is right and when the answer is; both also of the ideal
denoiser; what linear probes read of a hidden object off the tokens, by layer, step and place.

4.5 minutes on one core of two (x86_64, 2026-11-21).
"""

from jcos.experiments.behaviour import Behaviour

experiment = Behaviour(puzzles=48)
"""Six tasks, and 384 puzzles of hidden objects."""
