"""Every registered method has all that belongs to one, and all of it agrees with its signature.

Hunts for what is forgotten where a method is added or changed: its functions, layer, C function,
oracle, benchmark, documentation and stub; an argument in another order; a default that differs.
"""

import ast
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import write_signatures
from support import bits

import normcore as nc
from normcore._attributes import ArrayAttribute

ROOT = Path(__file__).parents[1]
SIGNATURES = nc._core.signatures()
# By function: several methods may stand behind one.
FUNCTIONS = {s["function"]: s for s in SIGNATURES.values()}
each_function = pytest.mark.parametrize("name", FUNCTIONS)

# Layers whose name is not that of the function; None: a function of plain rows, which has no layer.
LAYERS = {"normalize": None}


def words(name):
    return name.replace("_", "")


def layer_of(name):
    if name in LAYERS:
        return LAYERS[name]
    found = [v for k, v in vars(nc).items() if k.lower() == words(name) and inspect.isclass(v)]
    return found[0] if found else "missing"


SHAPES = json.loads((ROOT / "bench/shapes.json").read_text(encoding="utf-8"))


def section(text, start):
    """The line of `text` that begins with `start`."""
    return next((line for line in text.splitlines() if line.startswith(start)), "")


LAYER_OF = {name: layer_of(name) for name in FUNCTIONS}
WITH_LAYER = [name for name, layer in LAYER_OF.items() if inspect.isclass(layer)]
with_layer = pytest.mark.parametrize("name", WITH_LAYER)


# ---- nothing is forgotten


def test_each_method_has_a_signature():
    missing = set(nc._core.methods()) - set(SIGNATURES)
    assert not missing, f"add a Signature to cpp/src/ops/signatures.h for {missing}"


@each_function
def test_it_has_its_functions(name):
    for function in (name, name + "_backward"):
        assert callable(getattr(nc, function, None)), f"add {function} to python/normcore"
        assert callable(getattr(nc._core, function, None)), f"bind {function} in cpp/python"


@each_function
def test_it_has_a_layer(name):
    assert LAYER_OF[name] != "missing", f"add a layer for {name} to python/normcore, or to LAYERS"


WRITTEN = write_signatures.files(SIGNATURES)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.name)
def test_written_files_follow_from_the_signatures(path):
    text = path.read_text(encoding="utf-8")
    assert text == WRITTEN[path], f"python3 dev.py signatures writes {path.name}"


@each_function
def test_it_has_its_c_function(name):
    folder = ROOT / "cpp/include/normcore"
    header = "".join((folder / n).read_text(encoding="utf-8") for n in ("c_api.h", "c_channels.h"))
    assert re.search(rf"\bnormcore_{name}\(", header), f"declare normcore_{name} in c_api.h"
    calls = (ROOT / "tests/fuzz/calls.cc").read_text(encoding="utf-8")
    assert re.search(rf"\bnormcore_{name}\b", calls), f"call normcore_{name} in tests/fuzz/calls.cc"


@each_function
def test_it_has_an_oracle(name):
    for function in (name, name + "_backward"):
        assert callable(getattr(reference, function, None)), f"add {function} to reference.py"


@each_function
def test_it_is_measured(name):
    cells = [cell for cell in SHAPES["cells"] if cell["op"] == name]
    for benchmark in ("native", "python"):
        passes = [c["passes"] for c in cells if c.get("only", benchmark) == benchmark]
        missing = sorted({"forward", "backward"}.difference(*passes))
        assert not missing, f"add cells of {name} to shapes.json: {benchmark} has no {missing}"
    for cell in cells:
        key = "/".join(filter(None, (name, cell.get("variant"))))
        traffic = SHAPES["traffic"].get(key, {})
        assert set(cell["passes"]) <= set(traffic), f"add traffic of {key} to shapes.json"


@each_function
def test_the_native_benchmark_calls_it(name):
    if FUNCTIONS[name]["family"] == "channels":
        return  # by its signature
    text = (ROOT / "bench/native/methods.cc").read_text(encoding="utf-8")
    assert f'{{"{name}", ' in text, f"write out the calls of {name} in bench/native/methods.cc"


@each_function
def test_it_is_documented(name):
    for text in (getattr(nc, name), getattr(nc, name + "_backward")):
        assert inspect.getdoc(text), f"{text.__name__} has no documentation"
    page = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    line = section(page, "- `batch_norm`")
    assert line, "docs/index.md has no line of functions that begins with - `batch_norm`"
    assert f"`{name}`" in line, f"name {name} in the line of functions of docs/index.md"
    layer = LAYER_OF[name]
    if layer:
        assert f"`{layer.__name__}`" in line, f"name {layer.__name__} in that line"
    gallery = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs/gallery").glob("*.md"))
    assert f"```{{panels}} {name}\n" in gallery, f"give {name} a section in docs/gallery"


# ---- what stands elsewhere agrees


@each_function
def test_cells_of_the_benchmarks_say_what_the_signature_has(name):
    signature = FUNCTIONS[name]
    for cell in SHAPES["cells"]:
        if cell["op"] != name:
            continue
        unknown = sorted(set(cell["options"]) - set(signature["arguments"]))
        assert not unknown, f"{name} has no {unknown}, which a cell of shapes.json names"
        # Running buffers go with a variant, which tells formulas whether the call learns.
        learns, variant = cell["options"].get(signature["learns"]), cell.get("variant")
        says = {"eval": False, None: None}.get(variant, True)
        assert learns is says, f"variant {variant} of {name}: {signature['learns']} is {learns}"


def public(function):
    return list(inspect.signature(function).parameters.values())


@each_function
def test_python_takes_what_the_signature_says(name):
    signature = FUNCTIONS[name]
    own = [n for n, _ in signature["own"]] + ["num_groups"] * signature["has_groups"]
    parameters = public(getattr(nc, name))
    names = [p.name for p in parameters]
    positional = [p.name for p in parameters if p.kind != inspect.Parameter.KEYWORD_ONLY]
    assert positional[1:] == own + list(signature["affine"])
    # x, what the signature has, and where results go.
    results = ["out"] + ["return_stats"] * bool(signature["statistics"])
    assert set(names[1:]) == {*signature["arguments"], *results}


@each_function
def test_python_has_the_defaults_of_cpp(name):
    for p in public(getattr(nc, name)):
        option = FUNCTIONS[name]["options"].get(p.name)
        if option and p.default is not inspect.Parameter.empty:
            what = f"{p.name} is {p.default} in {name} and {option['default']} in ops.h"
            assert p.default == option["default"], what


@each_function
def test_backward_takes_what_forward_takes(name):
    signature = FUNCTIONS[name]
    names = {p.name for p in public(getattr(nc, name + "_backward"))}
    want = set(signature["arguments"]) - {"residual"}
    want |= {"dh"} if signature["has_residual"] else set()
    want |= {"stats"} if signature["statistics"] else set()
    of_x = {"dw", "v"} if signature["family"] == "weights" else {"dy", "x"}
    assert names == want | of_x | {"out"}


def a_call(name):
    """x and keyword arguments of a training call that is right."""
    signature = FUNCTIONS[name]
    sizes = {"channels": 4, "three": 3, "kept": 2}
    call = {n: np.ones(sizes[shape], np.float32) for n, shape in signature["own"]}
    if signature["has_groups"]:
        call["num_groups"] = 2
    for buffer, _ in signature["buffers"]:
        call[buffer] = np.ones(4, np.float32)
    if signature["learns"]:
        call[signature["learns"]] = True
    return np.linspace(1, 2, 48, dtype=np.float32).reshape(2, 4, 6), call


@each_function
def test_results_have_the_names_of_the_signature(name):
    signature = FUNCTIONS[name]
    x, call = a_call(name)
    stats = {}
    if signature["statistics"]:
        _, saved = getattr(nc, name)(x, **call, return_stats=True)
        # A call in evaluation may leave more than this one.
        assert set(saved._fields) - {"given"} == set(signature["statistics"]) - {"given"}
        assert ("given" in saved._fields) == ("given" in signature["statistics"])
        stats = {"stats": saved}
    gradients = getattr(nc, name + "_backward")(x, x, **call, **stats)
    if len(signature["gradients"]) == 1:
        assert isinstance(gradients, np.ndarray)
    else:
        assert list(gradients._fields) == signature["gradients"]


def another(option):
    """A value of an option that is not its default."""
    if option["type"] == "bool":
        return not option["default"]
    if option["type"] == "int":
        return option["default"] + 1
    return min(option["default"] + 0.25, option["most"])


def a_layer(name):
    """A layer of four channels, with all arrays that it can have and unusual options."""
    layer, options = LAYER_OF[name], FUNCTIONS[name]["options"]
    wants = {"affine": True, "track_running_stats": True, "schedule": None}
    wants |= {option: another(says) for option, says in options.items()}
    wants = {k: v for k, v in wants.items() if k in inspect.signature(layer).parameters}
    return layer(*[2] * FUNCTIONS[name]["has_groups"], 4, **wants)


@with_layer
def test_a_layer_takes_what_the_function_takes(name):
    signature, layer = FUNCTIONS[name], LAYER_OF[name]
    taken = inspect.signature(layer).parameters
    options = set(signature["options"]) - {signature["learns"]}
    assert options <= set(taken), f"{layer.__name__} does not take {options - set(taken)}"
    called = inspect.signature(layer.__call__).parameters
    assert ("mask" in called) == signature["has_mask"]
    assert ("residual" in called) == signature["has_residual"]
    assert signature["over_the_batch"] or "comm" not in taken


@with_layer
def test_a_layer_has_the_arrays_of_the_signature(name):
    signature, layer = FUNCTIONS[name], LAYER_OF[name]
    running = ["num_batches_tracked"] * bool(signature["buffers"])
    for array in (*dict(signature["own"]), *signature["affine"], *dict(signature["buffers"])):
        assert isinstance(getattr(layer, array, None), ArrayAttribute), f"{array} is no attribute"
    if signature["family"] != "weights":
        made = a_layer(name)
        assert list(made.parameters) == [*dict(signature["own"]), *signature["affine"]]
        assert list(made.buffers) == [*dict(signature["buffers"]), *running]


@pytest.mark.parametrize("name", [n for n in WITH_LAYER if FUNCTIONS[n]["family"] != "weights"])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_computes_what_the_function_does(rng, name, training):
    signature, layer = FUNCTIONS[name], a_layer(name).train(training)
    arrays = {**layer.parameters, **layer.buffers}
    for array in arrays.values():
        array[...] = rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)
    x, dy = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    given = {n: arrays[n].copy() for n in signature["arguments"] if n in arrays}
    given |= {n: getattr(layer, n) for n in signature["options"] if n != signature["learns"]}
    given |= {n: getattr(layer, n) for n in ["num_groups"] * signature["has_groups"]}
    given |= {n: training for n in [signature["learns"]] if n}
    y, stats = getattr(nc, name)(x, **given, return_stats=True)
    shared = {n: v for n, v in given.items() if n not in signature["forward_only"]}
    gradients = getattr(nc, name + "_backward")(dy, x, **shared, stats=stats)

    assert bits(layer(x)) == bits(y)
    assert bits(layer.backward(dy)) == bits(gradients.dx)
    for n in layer.parameters:
        assert bits(layer.grads[n]) == bits(getattr(gradients, "d" + n)), n
    for n, _ in signature["buffers"]:
        assert bits(layer.buffers[n]) == bits(given[n]), n


def out_of_bounds(option, side):
    """A value beyond an end of the option's bounds, or None where there is none to try."""
    if option["type"] == "bool" or (option["type"] == "int" and side != "below"):
        return None
    if side == "nan":
        return np.nan
    end, beyond = {"below": ("least", -np.inf), "above": ("most", np.inf)}[side]
    if np.isfinite(option[end]):
        return option[end] - 1 if option["type"] == "int" else np.nextafter(option[end], beyond)
    # Without an end all that is finite will do.
    return None if option["infinite"] or option["type"] == "int" else option[end]


@each_function
@pytest.mark.parametrize("side", ["below", "above", "nan"])
def test_numbers_out_of_bounds_are_refused_by_name(name, side):
    x, call = a_call(name)
    for option, says in FUNCTIONS[name]["options"].items():
        bad = out_of_bounds(says, side)
        if bad is None:
            continue
        bad = int(bad) if says["type"] == "int" else float(bad)
        with pytest.raises(ValueError, match=rf"^{option} is "):
            getattr(nc, name)(x, **(call | {option: bad}))
        if side == "below" and says["above_in_training"]:
            with pytest.raises(ValueError, match=rf"^{option} is .* > 0 when training"):
                getattr(nc, name)(x, **(call | {option: says["least"]}))


@each_function
@pytest.mark.parametrize("end", ["least", "most"])
def test_numbers_at_their_bounds_are_taken(name, end):
    x, call = a_call(name)
    for option, says in FUNCTIONS[name]["options"].items():
        if says["type"] == "bool" or not (np.isfinite(says[end]) or says["infinite"]):
            continue
        edge = says[end]
        if says["above_in_training"]:
            edge = np.nextafter(edge, 1)
        edge = int(edge) if says["type"] == "int" else float(edge)
        getattr(nc, name)(x, **(call | {option: edge}))


# ---- the stub of the binding


NODES = ast.parse((ROOT / "python/normcore/_core.pyi").read_text(encoding="utf-8")).body


def test_the_stub_has_the_entries_of_a_signature():
    classes = {node.name: node for node in NODES if isinstance(node, ast.ClassDef)}
    for kind, described in [
        ("Signature", FUNCTIONS["batch_norm"]),
        ("Option", FUNCTIONS["batch_norm"]["options"]["eps"]),
    ]:
        assert [field.target.id for field in classes[kind].body] == list(described)


@each_function
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_binding_takes_as_many_as_the_stub(name, backward):
    function = name + "_backward" * backward
    listed = re.search(r"\((.*?)\)", getattr(nc._core, function).__doc__).group(1)
    assert len(listed.split(", ")) == len(write_signatures.taken(FUNCTIONS[name], backward))
