"""A module that moved says where it is, and nothing else changes."""

import importlib
import importlib.util
import sys

import pytest

import sae
from sae.moved import MOVED, Signpost


@pytest.mark.parametrize("name", MOVED)
def test_a_module_that_moved_says_in_one_line_where_it_is(name: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(name)
    assert str(caught.value).startswith(f"{name} is now {MOVED[name]};") and "\n" not in str(caught.value)
    for now in MOVED[name].split(" and "):
        assert importlib.util.find_spec(now) is not None


def test_it_says_so_for_every_way_to_import() -> None:
    with pytest.raises(ImportError, match="sae.learner is now sae.training.learner"):
        from sae.learner import SaeLearner  # noqa: F401
    with pytest.raises(ImportError, match="sae.trainer is now sae.training.trainer"):
        from sae import trainer  # noqa: F401
    with pytest.raises(ImportError, match="sae.data.shuffle is now sae.activations.shuffle"):
        import sae.data.shuffle  # noqa: F401


def test_what_never_was_and_what_is_are_as_they_were() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'sae.nothing'"):
        importlib.import_module("sae.nothing")
    with pytest.raises(AttributeError):
        sae.nothing  # noqa: B018
    assert not hasattr(sae, "learner") and callable(sae.evaluate)
    assert sum(finder is Signpost for finder in sys.meta_path) == 1
