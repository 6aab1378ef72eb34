"""What a file from a stranger passes through is in one place each; another place would have to be as careful."""

import ast

import pytest

from tests.helpers import ROOT

DOORS = {
    'torch.load': ['mmyolo_ema/checkpoint/reading.py'],
    'CheckpointLoader.register_scheme': ['mmyolo_ema/checkpoint/reading.py'],
    'CheckpointLoader.load_checkpoint': [],
    'load_checkpoint': [],
    '_load_checkpoint': [],
    'init_detector': [],
    'safe_open': ['mmyolo_ema/checkpoint/reading.py'],
    'load_file': [],
    'pickle.load': [],
    'pickle.loads': [],
    'MODELS.build': ['mmyolo_ema/building.py'],
    'print': ['mmyolo_ema/cli/ending.py', 'mmyolo_ema/printing.py', 'tools/_start.py'],
}

# Print no text of a checkpoint: the demo, the benchmarks, and the check of a GPU.
PRINTS_ITS_OWN = ('benchmarks/', 'tools/demo.py', 'tools/gpu_', 'tools/environment/')


def calls(path):
    """Yields the names of the functions that a file calls, and the first argument of each call as text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ''


@pytest.fixture
def sources():
    paths = [path for folder in ('mmyolo_ema', 'tools', 'benchmarks') for path in (ROOT / folder).rglob('*.py')]
    return {path.relative_to(ROOT).as_posix(): path for path in paths if '.mim' not in path.parts}


@pytest.mark.parametrize(('function', 'allowed'), DOORS.items(), ids=DOORS)
def test_what_a_file_passes_through_is_in_one_place(sources, function, allowed):
    # A hook builds averages, of a model that is there.
    found = {
        name
        for name, path in sources.items()
        for called, argument in calls(path)
        if called == function and 'ema_cfg' not in argument
    }
    if function == 'print':
        found = {name for name in found if not name.startswith(PRINTS_ITS_OWN)}
    assert sorted(found) == allowed
