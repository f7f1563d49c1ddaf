"""What outlives a connection: pauses, journals, addresses; and what an archive sends is not believed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from medsynth.errors import MedsynthError, SettingsError
from medsynth.pacs.connection import Address, Connection, Unreachable, password_of, tls
from medsynth.pacs.transfer import Journal, Series, Stored, persistently, pull, push


class Shaky:
    """An archive that breaks off after ``steps`` objects, as often as there are steps; it takes what it does not ``refuse``."""

    def __init__(self, *steps: int, refuse: frozenset[str] = frozenset(), series: Sequence[Series] = (), holds: Sequence[str] = ()) -> None:
        self.steps = list(steps)
        self.refuse = refuse
        self.series = series
        self.holds = holds
        self.taken: list[str] = []

    def _break(self, number: int) -> None:
        if self.steps and number == self.steps[0]:
            self.steps.pop(0)
            raise Unreachable("It broke off.")

    def store(self, files: Sequence[Path]) -> Iterator[Stored]:
        for number, file in enumerate(files):
            self._break(number)
            self.taken.append(file.name)
            yield Stored(file=file, failure="status 0xC000" if file.name in self.refuse else "")

    def find(self, query: dict[str, str]) -> Sequence[Series]:
        self._break(0)
        return self.series

    def fetch(self, series: Series, keep: Callable[[str, bytes], None]) -> None:
        for number, instance in enumerate(self.holds):
            self._break(number)
            self.taken.append(instance)
            keep(instance, instance.encode())


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr("medsynth.pacs.transfer.pause", waited.append)
    return waited


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "out").mkdir()
    for number in range(6):
        (tmp_path / "out" / f"{number}.dcm").write_text(str(number))
    return sorted((tmp_path / "out").iterdir())


def test_pauses_double_and_progress_makes_them_short_again(pauses) -> None:
    calls = iter([False, False, True, False, False, None])

    def work(progress: Callable[[], None]) -> None:
        came_on = next(calls)
        if came_on:
            progress()
        if came_on is not None:
            raise Unreachable("no")

    persistently(work, 3)
    assert pauses == [1, 2, 1, 2, 4]


def test_after_its_last_try_it_gives_up_with_the_archives_words(pauses) -> None:
    def work(progress: Callable[[], None]) -> None:
        raise Unreachable("The archive sleeps.")

    with pytest.raises(Unreachable, match="sleeps"):
        persistently(work, 9)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_through_breaks_every_file_arrives_once(files, tmp_path, pauses) -> None:
    archive = Shaky(2, 0, 3)
    assert push(files, archive, "there", Journal(tmp_path / "journal"), 2) == 6
    assert archive.taken == [f"{number}.dcm" for number in range(6)]
    assert push(files, archive, "there", Journal(tmp_path / "journal"), 2) == 0
    assert push(files, archive, "elsewhere", Journal(tmp_path / "journal"), 2) == 6


def test_what_arrived_before_we_were_stopped_is_not_sent_again(files, tmp_path) -> None:
    with pytest.raises(MedsynthError, match="4 of 6 files have arrived"):
        push(files, Shaky(4, 0), "there", Journal(tmp_path / "journal"), 1)
    with (tmp_path / "journal").open("a") as journal:
        journal.write('["there", "a line that a crash cut sh')
    archive = Shaky()
    assert push(files, archive, "there", Journal(tmp_path / "journal"), 1) == 2
    assert archive.taken == ["4.dcm", "5.dcm"]
    assert push(files, archive, "there", Journal(tmp_path / "journal"), 1) == 0


def test_a_file_that_was_changed_since_is_sent_again(files, tmp_path) -> None:
    push(files, Shaky(), "there", Journal(tmp_path / "journal"), 0)
    files[3].write_text("changed")
    assert push(files, Shaky(), "there", Journal(tmp_path / "journal"), 0) == 1


def test_a_refused_file_is_named_and_the_others_arrive(files, tmp_path) -> None:
    archive = Shaky(refuse=frozenset({"1.dcm", "4.dcm"}))
    with pytest.raises(MedsynthError, match=r"refused 2 of 6 files:\n  1\.dcm: status 0xC000\n  4\.dcm"):
        push(files, archive, "there", Journal(tmp_path / "journal"), 0)
    assert len(archive.taken) == 6


def test_an_archive_that_takes_nothing_without_a_word_does_not_hang_us(files, tmp_path) -> None:
    class Mute(Shaky):
        def store(self, files: Sequence[Path]) -> Iterator[Stored]:
            return iter(())

    with pytest.raises(MedsynthError, match="took nothing"):
        push(files, Mute(), "there", Journal(tmp_path / "journal"), 2)


SERIES = Series(study="1.2.3", uid="1.2.3.4", instances=3)


def test_a_series_that_broke_off_is_fetched_again_and_a_whole_one_is_not(tmp_path) -> None:
    archive = Shaky(0, 2, series=[SERIES], holds=["1.1", "1.2", "1.3"])
    assert pull({"Modality": "MR"}, archive, "there", tmp_path / "in", 2) == (1, 3)
    assert (tmp_path / "in/1.2.3.4/1.2.dcm").read_text() == "1.2"
    assert not list((tmp_path / "in/1.2.3.4").glob("*.partial"))
    archive.taken.clear()
    assert pull({"Modality": "MR"}, archive, "there", tmp_path / "in", 2) == (1, 3)
    assert archive.taken == []


def test_a_series_of_which_instances_are_missing_is_not_whole(tmp_path) -> None:
    archive = Shaky(series=[SERIES], holds=["1.1", "1.2"])
    for _ in range(2):
        with pytest.raises(MedsynthError, match="1 of 3 instances"):
            pull({"Modality": "MR"}, archive, "there", tmp_path / "in", 0)
    archive.holds = ["1.1", "1.2", "1.3"]
    assert pull({"Modality": "MR"}, archive, "there", tmp_path / "in", 0) == (1, 3)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "..", "1.2/3", "", "1" * 65])
def test_what_an_archive_sends_cannot_choose_where_it_is_written(tmp_path, uid) -> None:
    with pytest.raises(MedsynthError, match="UID"):
        pull({"Modality": "MR"}, Shaky(series=[SERIES], holds=[uid]), "there", tmp_path / "in", 0)
    with pytest.raises(MedsynthError, match="UID"):
        pull({"Modality": "MR"}, Shaky(series=[Series(study="1.2", uid=uid, instances=1)]), "there", tmp_path / "in", 0)


def test_a_query_without_a_match_is_an_error(tmp_path) -> None:
    with pytest.raises(MedsynthError, match="No series"):
        pull({"Modality": "MR"}, Shaky(), "there", tmp_path / "in", 0)


def test_an_address_is_taken_apart() -> None:
    assert Address.of("dicom://ARCHIVE@pacs.example:11112") == Address(
        url="dicom://ARCHIVE@pacs.example:11112", host="pacs.example", port=11112, title="ARCHIVE", secure=False
    )
    assert Address.of("dicoms://A@10.0.0.1:2762").secure
    assert Address.of("https://pacs.example/dicom-web").title == ""
    assert [Address.of(f"http://{host}/x").local for host in ("127.0.0.1", "localhost", "[::1]", "10.0.0.1", "pacs")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "url",
    [
        "pacs",
        "dicom://pacs:104",
        "dicom://A@pacs",
        "ftp://A@pacs:1",
        "dicom://A@pacs:port",
        "https://me:secret@pacs/x",
        f"dicom://{'A' * 17}@p:1",
    ],
)
def test_what_is_no_address_is_refused_without_quoting_a_secret(url) -> None:
    with pytest.raises(SettingsError, match="address") as caught:
        Address.of(url)
    assert "secret" not in str(caught.value)


def test_a_password_comes_from_the_environment_or_from_a_file_of_ones_own(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MEDSYNTH_PACS_PASSWORD", raising=False)
    with pytest.raises(SettingsError, match="MEDSYNTH_PACS_PASSWORD"):
        password_of(Connection(user="me"))
    monkeypatch.setenv("MEDSYNTH_PACS_PASSWORD", "from the environment")
    assert password_of(Connection(user="me")) == "from the environment"
    file = tmp_path / "password"
    file.write_text("from a file\n")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        password_of(Connection(user="me", password_file=str(file)))
    file.chmod(0o600)
    assert password_of(Connection(user="me", password_file=str(file))) == "from a file"


def test_certificates_are_always_checked(tmp_path) -> None:
    context = tls(Connection())
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    with pytest.raises(SettingsError, match="ca, certificate"):
        tls(Connection(ca=str(tmp_path / "none.pem")))
