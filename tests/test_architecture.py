"""The rooms of the package import each other only in the directions that docs/architecture.md draws."""

import ast
from collections import defaultdict

import pytest

from tests.helpers import ROOT

# What each room, or file of the top level, imports of the others. All may import `_upstream`.
ARROWS = {
    'registry': {'environment'},
    'environment': set(),
    'files': set(),
    'printing': set(),
    'processes': set(),
    'schedules': set(),
    'schedule': {'schedules'},
    'ema_config': {'schedules'},
    'ema_options': {'ema_config', 'schedules'},
    'models': {'registry', 'schedules'},
    'checkpoint': {'ema_config', 'files', 'schedules'},
    'building': {'checkpoint', 'models'},
    'run_plan': {'building', 'ema_config', 'ema_options', 'models', 'schedules'},
    'hooks': {
        'checkpoint',
        'ema_config',
        'ema_options',
        'files',
        'models',
        'printing',
        'processes',
        'registry',
        'schedules',
    },
    'posthoc': {'building', 'checkpoint', 'ema_config', 'files', 'run_plan', 'schedules'},
    'cli': {
        'building',
        'checkpoint',
        'ema_config',
        'ema_options',
        'environment',
        'files',
        'hooks',
        'posthoc',
        'printing',
        'processes',
        'registry',
        'run_plan',
        'schedules',
    },
    '_upstream': set(),
    '__init__': {'checkpoint', 'environment', 'hooks', 'models', 'posthoc', 'schedule', 'schedules'},
}
# What only commands and pictures need.
FOR_SHOW = {'argparse', 'matplotlib', 'rich'}


@pytest.fixture(scope='module')
def imports():
    """Returns the modules that each room imports, by room."""
    package = ROOT / 'mmyolo_ema'
    found = defaultdict(set)
    for path in package.rglob('*.py'):
        if '.mim' in path.parts:
            continue
        room = path.relative_to(package).parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[room] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[room] |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def test_each_room_imports_what_the_drawing_says(imports):
    assert imports.keys() <= ARROWS.keys()
    for room, modules in imports.items():
        rooms = {module.split('.')[1] for module in modules if module.startswith('mmyolo_ema.')} - {room, '_upstream'}
        assert rooms <= ARROWS[room], f'{room} imports {sorted(rooms - ARROWS[room])}'


def test_drawing_has_no_circle():
    left = dict(ARROWS)
    while left:
        ready = {room for room, arrows in left.items() if not arrows & left.keys()}
        assert ready, f'a circle among {sorted(left)}'
        left = {room: arrows for room, arrows in left.items() if room not in ready}


@pytest.mark.parametrize('room', ['schedules', 'models', 'checkpoint', 'posthoc'])
def test_rooms_that_compute_show_nothing(imports, room):
    assert {module.split('.')[0] for module in imports[room]} & FOR_SHOW == set()
