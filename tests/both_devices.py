"""For test modules that import `device`: each of their tests on the emulated device and a real one.

A module of its own: cuda_support is a plugin of pytest too, where this would be for all tests.
"""

import pytest
from cuda_support import device_core, running_on


@pytest.fixture(
    autouse=True, params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)], scope="module"
)
def device(request):
    with running_on(device_core(request.param)):
        yield request.param
