"""How Sphinx builds these pages; ``make docs``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import bhfl  # noqa: E402

project = "bhfl"
author = "The bhfl authors"
copyright = "2026, The bhfl authors"
version = release = bhfl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "generated",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build", "_ext"]

# ---- what must hold: every name that is linked exists -------------------------------------------

nitpicky = True

# ---- pages written in Markdown -------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# ---- the tutorials, which are notebooks: their cells run when their pages are built --------------

nb_execution_mode = "force"
"""Pages without the header of a notebook are left alone: `make test-docs` runs their code."""
nb_execution_timeout = 300
"""Seconds that a cell may take."""
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"
"""It has the line of each round; `make test-docs` sees that nothing else is said there."""
# What a notebook's process inherits: this checkout, no GPU, so that pages say the same everywhere,
# one thread, and the look of pictures.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MATPLOTLIBRC"] = str(HERE / "_ext" / "matplotlibrc")

# ---- docstrings ----------------------------------------------------------------------------------

default_role = "soft"
"""In a docstring, `name` is a link where a page has it, and code where none has."""
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# ---- what pages look like, and that they load nothing from elsewhere -----------------------------

html_theme = "pydata_sphinx_theme"
html_title = "bhfl"
html_static_path = ["_static"]
html_css_files = ["bhfl.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False
"""Summaries are fetched, which browsers refuse to pages that lie on a disk."""
mathjax_path = "mathjax/tex-svg.js"
"""It is mathjax 3.2.2 of npm, as it is: version 4 loads its fonts from elsewhere."""
html_theme_options = {
    "show_nav_level": 1,
    "navigation_depth": 3,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "use_edit_page_button": False,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_sidebars = {"index": [], "install": [], "results": [], "faq": [], "contributing": []}
