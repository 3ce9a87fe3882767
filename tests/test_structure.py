"""How the library's modules hang together, read from their source.

Imports inside functions count: they put off the cost of an import, not the dependence.
"""

import ast
import graphlib
from pathlib import Path

import vaezoo

FOLDER = Path(vaezoo.__file__).parent

# Modules, and packages with all that is in them. Each may import those of its own level
# and of the levels before it.
LEVELS = [
    ["vaezoo"],  # its version; its public names count as the modules they come from
    ["checks", "files", "keras_backend", "quiet", "terminal", "typing", "units"],
    ["inference", "plots", "sampling", "strategies"],
    ["datasets", "zoo"],
    ["layers"],
    ["decoders"],
    ["distributions"],
    ["models"],
    ["zoo.cards", "zoo.registry"],
    ["zoo.install"],
    ["evaluation", "serving", "training"],
    ["experiments"],
    ["cli"],
    ["__main__"],
]
MAX_LINES = 500
FOREIGN = {"_flatten_layers"}  # Keras has no public name for it


def name_of(path):
    parts = ("vaezoo", *path.relative_to(FOLDER).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


TREES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.rglob("*.py"))
}


def module_of(name):
    """The library's module that a dotted name comes from, or `None`."""
    package, _, public = name.partition(".")
    if package == "vaezoo" and public in vaezoo._MODULES:
        name = f"vaezoo.{vaezoo._MODULES[public]}"
    while name and name not in TREES:
        name = name.rpartition(".")[0]
    return name or None


def imports(module):
    """The library's modules that one imports; a package does not import itself."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):  # `import vaezoo`, then `vaezoo.load`
            text = ast.unparse(node)
            names |= {text} & {f"vaezoo.{name}" for name in vaezoo.__all__}
    return {module_of(name) for name in names} - {None, module}


# What `vaezoo` imports, it imports on first use, or for an editor.
GRAPH = {module: imports(module) for module in TREES if module != "vaezoo"}


def level(module):
    names = [module.removeprefix("vaezoo.")]
    while names[-1].rpartition(".")[0]:
        names.append(names[-1].rpartition(".")[0])
    for name in names:
        for index, members in enumerate(LEVELS):
            if name in members:
                return index
    raise AssertionError(f"LEVELS has no place for {module}: give it one")


def test_no_circle():
    circle = []
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert not circle, f"modules import each other: {' <- '.join(circle)}"


def test_imports_point_one_way():
    backwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if level(other) > level(module)
    ]
    assert not backwards, "\n".join(backwards)


def test_no_module_takes_anothers_underscore_names():
    taken = [
        f"{module}, line {node.lineno}: {ast.unparse(node)}"
        for module, tree in TREES.items()
        for node, name in underscore_names(tree)
        if name not in made_in(tree) | FOREIGN
    ]
    assert not taken, "\n".join(taken)


def underscore_names(tree):
    """Names that are read from something else than `self`, or imported."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            names = [node.attr]
        for name in names:
            if name.startswith("_") and not name.endswith("__"):
                yield node, name


def made_in(tree):
    """Names that a module defines or assigns, its objects' attributes too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_no_file_is_long():
    lines = {
        str(path.relative_to(FOLDER)): len(path.read_text("utf-8").splitlines())
        for path in FOLDER.rglob("*.py")
    }
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
