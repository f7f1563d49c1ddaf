from dataclasses import dataclass, field

import pytest

from medsynth.errors import SettingsError
from medsynth.tools import parse, perform


@dataclass
class Settings:
    path: str
    json: str = ""
    limit: int = 3
    names: list[str] = field(default_factory=list)


def test_the_first_argument_is_the_path_even_if_it_holds_an_equals_sign():
    found = parse(Settings, ["/data/a=b", "json=out.json", "limit=5", "names=[x,y]"])
    assert found == Settings(path="/data/a=b", json="out.json", limit=5, names=["x", "y"])
    assert parse(Settings, ["path=/data"]).path == "/data"


@pytest.mark.parametrize("text", ["00123", "1e5", "1.50", "0x10", "yes", "null"])
def test_text_stays_the_text_that_it_is(text):
    """A patient's id is no number: 00123 is another one than 83."""
    assert parse(Settings, ["path=" + text]).path == text
    assert parse(Settings, [text, f"names=[{text}]"]).names == [text]


def test_all_mistakes_are_named_at_once_with_the_nearest_name():
    with pytest.raises(SettingsError) as error:
        parse(Settings, ["/data", "jsn=a", "limit=many"])
    assert "Did you mean json?" in str(error.value)
    assert "limit=many" in str(error.value)
    with pytest.raises(SettingsError, match="path: a value is missing"):
        parse(Settings, [])


@pytest.mark.parametrize(("verb", "first"), [("inspect", "PATH"), ("plan", "SUBJECTS"), ("reader-study", "PATH")])
def test_a_tool_without_arguments_tells_how_it_is_called(verb, first):
    with pytest.raises(SettingsError, match=f"medsynth {verb} {first} "):
        perform(verb, [])
