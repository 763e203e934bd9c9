"""Where public names are: in `normcore`, from the one module that has them in its `__all__`."""

import importlib
import inspect
import pickle
import pkgutil

import pytest

import normcore as nc
from normcore import config, methods, reductions

MODULES = {
    name: importlib.import_module(f"normcore.methods.{name}")
    for name in (info.name for info in pkgutil.iter_modules(methods.__path__))
}
# Inner methods of a public one, by its name.
PARTS = {"wide_weight_norm": "weight_norm", "lp_normalize": "normalize"}


def test_each_name_is_public_once():
    listed = [n for module in (config, reductions, *MODULES.values()) for n in module.__all__]
    own = ["StateDictError", "__version__", "convert", "cuda"]
    assert sorted(nc.__all__) == sorted([*listed, *own])
    assert len(set(nc.__all__)) == len(nc.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_holds_one_method(name):
    module = MODULES[name]
    assert {name, f"{name}_backward"} <= set(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        assert getattr(nc, public) is value
        assert value.__module__ == module.__name__
        assert value.__doc__
        assert pickle.loads(pickle.dumps(value)) is value
    layers = [n for n in module.__all__ if hasattr(getattr(module, n), "zero_grad")]
    assert len(layers) == (name != "normalize")


@pytest.mark.parametrize("method", nc._core.methods())
def test_a_registered_method_has_a_module(method):
    assert PARTS.get(method, method) in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_named_tuples_are_found_by_pickle(name):
    tuples = [
        value
        for value in vars(MODULES[name]).values()
        if inspect.isclass(value)
        and issubclass(value, tuple)
        and hasattr(value, "_fields")
        and value.__module__ == MODULES[name].__name__
    ]
    assert len(tuples) > 0 or name == "normalize"
    for kind in tuples:
        value = kind(*range(len(kind._fields)))
        again = pickle.loads(pickle.dumps(value))
        assert type(again) is kind
        assert again == value
