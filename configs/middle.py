"""Why does the middle of a run tell more about its failure than the end?

    jcos run configs/middle.py
    jcos run configs/middle.py --set tasks=tictactoe-block,bounce-hard

Writes out/middle: how well each sign tells failures by step, for runs of 8, 20 and 50 steps and for
an ideal denoiser that is unsure; what runs that fail hold in the middle.
"""

from jcos.experiments.middle import Middle

experiment = Middle(puzzles=64)
