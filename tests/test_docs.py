"""What README and docs name is there."""

import re
from pathlib import Path

import pytest

from mmyolo_ema import checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
    files = [link.split('#')[0] for link in links if not link.startswith(('http', '#'))]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_tests_in_the_tables_of_differences_are_there():
    named = set(re.findall(r'\b(test_\w+)`', (ROOT / 'docs' / 'differences.md').read_text()))
    sources = '\n'.join(path.read_text() for path in ROOT.glob('tests/**/*.py'))
    assert len(named) > 30
    assert sorted(name for name in named if f'def {name}(' not in sources) == []


def test_loop_of_the_page_about_plain_pytorch_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'pytorch.md').read_text(), re.DOTALL)
    exec(''.join(blocks), {})
    assert checkpoint.weights_in(checkpoint.read('both.pth')) == ['ema', 'raw']
    assert checkpoint.read('both.pth')['ema_state_dict']['steps'] == 100
