"""What README and docs name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
    files = [link.split('#')[0] for link in links if not link.startswith(('http', '#'))]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_tests_that_pages_name_are_there():
    named = {name for page in PAGES for name in re.findall(r'\btest_\w+(?!\w*\.py)\b', page.read_text())}
    sources = '\n'.join(path.read_text() for path in ROOT.glob('tests/**/*.py'))
    modules = {path.stem for path in ROOT.glob('tests/**/*.py')}
    assert named
    assert sorted(name for name in named - modules if f'def {name}(' not in sources) == []
