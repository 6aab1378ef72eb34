import pytest

from tests.helpers import forget_runs
from tests.hooks.toy import toy_runner


@pytest.fixture
def toy(tmp_path):
    """Returns a function that makes a runner, as toy_runner(), in a folder of the given name."""

    def make(name='run', **options):
        forget_runs()
        return toy_runner(tmp_path / name, **options)

    return make
