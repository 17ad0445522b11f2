"""Names and calls that no file may use."""

import ast

#: Names that run what they are given, or what they read, or make a name that somebody else can take first.
FORBIDDEN = {
    *("eval", "exec", "__import__", "builtins.eval", "builtins.exec"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.load", "_pickle.loads", "_pickle.Unpickler"),
    *("marshal.load", "marshal.loads", "shelve.open", "shelve.Shelf", "shelve.DbfilenameShelf"),
    *("dill.load", "dill.loads", "dill.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("pandas.read_pickle", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load"),
    *("torch.package.PackageImporter", "torch.serialization.add_safe_globals", "torch.serialization.safe_globals"),
    *("numpy.lib.format.read_array", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("tempfile.mktemp", "os.tempnam", "shutil.unpack_archive", "ssl._create_unverified_context"),
}
#: The same methods of objects whose kind a file does not tell.
UNPACKING = ("extractall", "extract")
TELLTALES = {
    *(("weights_only", False), ("shell", True), ("allow_pickle", True), ("trust_repo", True)),
    *(("verify", False), ("check_hash", False)),
}
#: The two collectives that pickle, between processes of one run that trust each other.
PICKLING_COLLECTIVES = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}


def violations(source):
    """Return a line for each name that must not be used and each call that must not be made so."""
    tree = ast.parse(source)
    imported, found = _real_names(tree), []

    def name_of(node):
        first, *rest = ast.unparse(node).split(".")
        return ".".join([imported.get(first, first), *rest])

    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            if name_of(node) in FORBIDDEN:
                found.append(f"line {node.lineno}: {name_of(node)}")
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"line {node.lineno}: from {node.module} import *")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "http://" in node.value:
            found.append(f"line {node.lineno}: http:// in {node.value[:40]!r}")
        elif isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {reason}" for reason in _in_call(node, name_of(node.func))]
    return found


def _in_call(node, name):
    given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
    if name == "torch.load" and given.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name.rpartition(".")[2] in UNPACKING and "." in name and given.get("filter") != "data":
        yield f"{name} without filter='data'"
    if name in ("numpy.load", "np.load") and len(node.args) > 2:
        yield f"{name} with allow_pickle by its place"
    if name.rpartition(".")[2] in PICKLING_COLLECTIVES and not name.startswith("."):
        yield f"{name}, which pickles"
    for key, value in given.items():
        if (key, value) in TELLTALES:
            yield f"{key}={value}"


def _real_names(tree):
    """Return what each imported name of a file stands for; names of its own package begin with a dot."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
    return {name: real for name, real in names.items() if real}
