"""Small subjects with exact alpha."""

from collections.abc import Callable

import numpy as np
import pytest
from bestiary.scenes.subject import Subject

Maker = Callable[..., Subject]


@pytest.fixture(scope="session")
def make_subject() -> Maker:
    """Makes an opaque rectangle with a name and an aspect; its longer side has 40 pixels."""

    def make(name: str, aspect: float = 1.0, **fields: object) -> Subject:
        height, width = round(40 * min(1.0, 1 / aspect)), round(40 * min(1.0, aspect))
        return Subject(name, np.full((height, width, 4), 255, np.uint8), **fields)

    return make
