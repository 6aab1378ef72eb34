"""How Sphinx makes the site; `make docs` runs it."""

from pathlib import Path
from typing import Any, Optional

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from mmyolo_ema import __version__

project = 'mmyolo_ema'
author = project_copyright = 'mmyolo_ema contributors'
html_title = f'{project} {__version__}'
html_theme = 'furo'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']

# Links to headings, such as hook.md#several-averages, lead where they do on a code host.
myst_heading_anchors = 3
default_role = 'code'
add_module_names = False
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_use_ivar = True


def lead_to_pages(app: Sphinx, page: document) -> None:
    """Leads links to CONTRIBUTING.md and its like to the pages that include them."""
    for link in page.findall(pending_xref):
        name = Path(link['reftarget']).stem
        if name.isupper():
            link.attributes.update(refdomain='doc', reftarget=name.lower(), reftargetid=None)


def skip_tuple_fields(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> Optional[bool]:
    """Leaves the fields of named tuples to the docstring of their class."""
    return True if str(member.__doc__).startswith('Alias for field number') else None


def setup(app: Sphinx) -> None:
    app.connect('doctree-read', lead_to_pages)
    app.connect('autodoc-skip-member', skip_tuple_fields)
