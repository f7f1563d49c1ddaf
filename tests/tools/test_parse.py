from dataclasses import dataclass, field

import pytest

from medsynth.errors import SettingsError
from medsynth.tools import folder_for, parse, perform


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


def test_an_interrupted_call_goes_on_in_its_folder_and_the_images_that_it_had_read_are_gone(tmp_path):
    own = (tmp_path / "out", "a leaderboard", ("leaderboard.json", "features"))
    (folder_for(*own) / "features").mkdir()
    (tmp_path / "out/features/kept.npy").touch()
    (tmp_path / "out/.reading-1/volumes").mkdir(parents=True)
    assert [path.name for path in folder_for(*own).iterdir()] == ["features"]
    assert (tmp_path / "out/features/kept.npy").exists()
    assert (tmp_path / "out").stat().st_mode & 0o77 == 0
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(SettingsError, match="something else than a leaderboard"):
        folder_for(*own)
    (tmp_path / "out/leaderboard.json").touch()
    folder_for(*own)
    with pytest.raises(SettingsError, match="something else"):
        folder_for(tmp_path / "out/thesis.tex", *own[1:])
