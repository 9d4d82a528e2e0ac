"""Sphinx's side of what is generated: ``.. generated:: name argument ...`` holds what `facts.name`
says, and `soft` names are links where there is what they name.
"""

from __future__ import annotations

from typing import Any, ClassVar

import facts
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode


class Generated(SphinxDirective):
    """The directive."""

    required_arguments = 1
    optional_arguments = 100
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The nodes of the text that `facts` makes."""
        self.env.note_reread()  # what it is made from are no files that Sphinx watches
        name, *arguments = self.arguments
        text = getattr(facts, name)(*arguments)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def found(env: BuildEnvironment, target: str) -> str | None:
    """The documented object that `target` means: by its whole name, or by its last parts where no
    other has these.
    """
    objects = env.domains.python_domain.objects
    if target in objects:
        return target
    parts = target.removesuffix("()").split(".")
    # an object is documented where it is public, and named in annotations where it is written
    tails = [".".join(parts[start:]) for start in range(len(parts))]
    for tail in tails if target.startswith("bhfl.") else tails[:1]:
        known = [name for name in objects if name == tail or name.endswith("." + tail)]
        if len(known) == 1 and (tail[0].isupper() or tail.endswith("_") or "." in tail):
            return known[0]
    return None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """A link, plain text for what needs none, or None for what is missing."""
    if node["refdomain"] not in ("py", "") or node["reftype"] not in (
        "soft", "class", "obj", "exc", "func", "meth", "data", "attr",
    ):  # fmt: skip
        return None
    target = node["reftarget"]
    name = found(env, target)
    if name is not None:
        entry = env.domains.python_domain.objects[name]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    if node["reftype"] == "soft":
        return content
    # an annotation, which no author chose: torch and Lightning are documented elsewhere, and what
    # is there but not public nowhere
    if "refwarn" not in node and (not target.startswith("bhfl.") or exists(target)):
        return content
    return None


def exists(target: str) -> bool:
    """Whether there is an object of this dotted name."""
    try:
        return bool(facts.named(target))
    except (ImportError, AttributeError):
        return False


def keep_whole(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Begin the docstring of an attribute with an escaped space: napoleon would take what stands
    before its first colon for a type.
    """
    if what in ("attribute", "data", "property") and lines:
        lines.insert(0, "\\ ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the role."""
    app.add_directive("generated", Generated)
    app.add_role("soft", XRefRole(innernodeclass=nodes.literal))
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", keep_whole, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
