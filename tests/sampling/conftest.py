"""One random model and its conditions, for all tests of sampling."""

import pytest

from jcos.sampling.trajectory import Condition, tree_stack
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, frame, randomised


@pytest.fixture(scope="session")
def model() -> Wan:
    return randomised(CONFIG)


@pytest.fixture(scope="session")
def condition(model: Wan) -> Condition:
    return model.condition(frame(0), "left", FRAMES)


@pytest.fixture(scope="session")
def worlds(model: Wan, condition: Condition) -> Condition:
    return tree_stack([condition, model.condition(frame(1), "right", FRAMES)])
