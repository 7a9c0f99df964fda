"""Objects of the user that a config names, and the one message for each mistake in a name or a module."""

import re

import pytest

from jaxdp.settings.user_objects import find

MODULES = {
    "given.py": "class Net:\n    def small(): return 3\n",
    "given_package/__init__.py": "",
    "given_package/inner.py": "small = 5\n",
    "needs.py": "import nosuch\n",
    "broken.py": "def small(:\n",
    "fails.py": "def check():\n    raise KeyError('no licence')\n\ncheck()\n",
    "uses_fails.py": "import fails\n",
    "misses.py": "import given\n\nsmall = given.nosuch\n",
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    for name, code in MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def test_objects_are_found_in_modules_packages_and_classes():
    assert find("config.model.name", "given:Net").__name__ == "Net"
    assert find("config.model.name", "given:Net.small")() == 3
    assert find("config.model.name", "given_package.inner:small") == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch:Net", "but nosuch cannot be imported: No module named 'nosuch': install it, or start the job in the"),
        ("given.inner:Net", "but given.inner cannot be imported: No module named 'given.inner'; 'given' is not a pack"),
        ("needs:Net", "but needs cannot be imported: No module named 'nosuch': install it, or start the job in the"),
        ("given:nett", "but module 'given' has no attribute 'nett'"),
        ("given:Net.large", "but type object 'Net' has no attribute 'large'"),
        ("broken:small", "but broken fails while it is imported: SyntaxError: invalid syntax (broken.py, line 1)"),
        ("fails:small", "but fails fails while it is imported: KeyError: 'no licence' (FOLDER/fails.py, line 4)"),
        ("uses_fails:x", "but uses_fails fails while it is imported: KeyError: 'no licence' (FOLDER/fails.py, line 4)"),
        (
            "misses:small",
            "but misses fails while it is imported: AttributeError: module 'given' has no attribute 'nosuch' "
            "(FOLDER/misses.py, line 3)",
        ),
    ],
)
def test_missing_object_or_failing_module_is_named_in_the_error(folder, name, message):
    begin = f"config.model.name is {name!r}, {message.replace('FOLDER', str(folder))}"
    with pytest.raises(ValueError, match="^" + re.escape(begin)):
        find("config.model.name", name)


@pytest.mark.parametrize(
    "name", ["given", "given:", ":Net", "", ".given:Net", "given_package..inner:small", "given:Net."]
)
def test_name_of_another_form_is_refused(name):
    with pytest.raises(
        ValueError, match=f"^config.data.augment must be written as 'package.module:Name', not {name!r}$"
    ):
        find("config.data.augment", name)
