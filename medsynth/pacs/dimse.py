"""An archive by DIMSE (PS3.7): C-STORE to send, C-FIND with C-GET or C-MOVE to fetch."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from ssl import Purpose

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from medsynth.errors import MedsynthError, SettingsError
from medsynth.pacs.connection import Address, Connection, Unreachable, missing_extra, tls
from medsynth.pacs.transfer import Series, Stored

try:
    from pynetdicom import AE, AllStoragePresentationContexts, Association, build_context, build_role, evt
    from pynetdicom.sop_class import (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    )
except ImportError as error:
    raise missing_extra(error) from error

# its messages quote header values
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

SUCCESS, PENDING, UNMATCHED = 0x0000, 0xFF00, 0xFF01
# Keys of the study level (PS3.4 C.6.2.1); all others are asked for at the series level.
STUDY = frozenset(
    [
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "StudyDate", "StudyTime", "StudyID"),
        *("AccessionNumber", "StudyInstanceUID", "StudyDescription", "ReferringPhysicianName", "ModalitiesInStudy"),
    ]
)
# What can be read: no films and no retired ones, as each makes every association slower.
_SYNTAXES = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless),
    *(*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL),
]
_WANTED = ("Image Storage", "Segmentation Storage")  # what is in the names of images' classes


class Dimse:
    """``listen`` is the port on which a C-MOVE's instances arrive, under the AE title ``connection.calling``; 0 means C-GET."""

    def __init__(self, address: Address, connection: Connection, *, listen: int = 0) -> None:
        self.address = address
        self.connection = connection
        self.listen = listen

    def store(self, files: Sequence[Path]) -> Iterator[Stored]:
        kinds = {file: _kind(file) for file in files}
        contexts = [build_context(*kind) for kind in sorted(set(kinds.values()))]
        with self._associated(contexts) as association:
            taken = {(context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts}
            refused = Counter(kind for kind in kinds.values() if kind not in taken)
            if refused:
                lines = [f"  {UID(sop).name} as {UID(syntax).name}: {count} files" for (sop, syntax), count in sorted(refused.items())]
                raise MedsynthError(
                    f"{self.address.title} does not take (refused presentation context):\n" + "\n".join(lines) + "\n"
                    "Nothing was sent. Let the archive accept these, or release without them."
                )
            for file in files:
                status = association.send_c_store(file)
                if "Status" not in status:
                    raise Unreachable(f"{self.address.title} broke off.")
                yield _outcome(file, status)

    def find(self, query: Mapping[str, str]) -> list[Series]:
        unknown = [keyword for keyword in query if tag_for_keyword(keyword) is None]
        if unknown:
            raise SettingsError(f"query: {', '.join(unknown)} is no DICOM keyword. Write it as in PS3.6, such as SeriesDescription.")
        of_study = {"StudyInstanceUID": ""} | {keyword: value for keyword, value in query.items() if keyword in STUDY}
        of_series = {"SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": ""}
        of_series |= {keyword: value for keyword, value in query.items() if keyword not in STUDY}
        found = []
        with self._associated([build_context(StudyRootQueryRetrieveInformationModelFind)]) as association:
            for study in self._matches(association, "STUDY", of_study):
                uid = str(study.StudyInstanceUID)
                for series in self._matches(association, "SERIES", of_series | {"StudyInstanceUID": uid}):
                    count = series.get("NumberOfSeriesRelatedInstances")
                    found.append(Series(study=uid, uid=str(series.SeriesInstanceUID), instances=int(count) if count else None))
        return found

    def fetch(self, series: Series, keep: Callable[[str, bytes], None]) -> None:
        wanted = Dataset()
        wanted.QueryRetrieveLevel, wanted.StudyInstanceUID, wanted.SeriesInstanceUID = "SERIES", series.study, series.uid

        broken: list[Exception] = []

        def arrived(event: evt.Event) -> int:
            try:
                keep(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset())
            except Exception as error:  # the library would answer for us and go on
                broken.append(error)
                return 0xA700
            return SUCCESS

        self._retrieve(wanted, [(evt.EVT_C_STORE, arrived)])
        if broken:
            raise broken[0]

    def _retrieve(self, wanted: Dataset, handlers: list) -> None:
        if self.listen:
            model = StudyRootQueryRetrieveInformationModelMove
            with self._listening(handlers), self._associated([build_context(model)]) as association:
                self._follow(association.send_c_move(wanted, self.connection.calling, model))
            return
        model, images = StudyRootQueryRetrieveInformationModelGet, _image_classes()
        contexts = [build_context(model), *(build_context(uid, _SYNTAXES) for uid in images)]
        roles = [build_role(uid, scp_role=True) for uid in images]
        with self._associated(contexts, ext_neg=roles, evt_handlers=handlers) as association:
            self._follow(association.send_c_get(wanted, model))

    def _matches(self, association: Association, level: str, keys: Mapping[str, str]) -> list[Dataset]:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        found = []
        for status, match in association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
            if status.get("Status") == UNMATCHED:
                raise MedsynthError(
                    f"{self.address.title} cannot match by all of: {', '.join(keys)}. It would answer with more than was asked."
                )
            if status.get("Status") == PENDING:
                found.append(match)
            else:
                self._check(status)
        return found

    def _follow(self, responses: Iterator[tuple[Dataset, Dataset | None]]) -> None:
        """Follow a C-GET or C-MOVE to its last response. That some instances failed (0xB000) is seen by those that are missing."""
        for status, _ in responses:
            if status.get("Status") not in (PENDING, 0xB000):
                self._check(status)

    def _check(self, status: Dataset) -> None:
        if "Status" not in status:
            raise Unreachable(f"{self.address.title} broke off.")
        if status.Status == 0xA801:
            raise MedsynthError(
                f"{self.address.title} does not know the AE title calling={self.connection.calling}. Enter it there, with port."
            )
        if 0xA700 <= status.Status < 0xA800:
            raise Unreachable(f"{self.address.title} is out of resources (status 0x{status.Status:04X}).")
        if status.Status != SUCCESS:
            raise MedsynthError(f"{self.address.title} failed with status 0x{status.Status:04X}.")

    @contextmanager
    def _associated(self, contexts: list, **options: object) -> Iterator[Association]:
        secure = (tls(self.connection), self.address.host) if self.address.secure else None
        where = f"{self.address.title} at {self.address.host}:{self.address.port}"
        association = self._entity().associate(
            self.address.host, self.address.port, contexts, ae_title=self.address.title, tls_args=secure, **options
        )
        if association.is_rejected:
            answer = association.acceptor.primitive
            if answer.result == 2:  # transient (PS3.8 9.3.4)
                raise Unreachable(f"{where} rejects associations for now.")
            raise MedsynthError(
                f"{where} rejects calling={self.connection.calling}: {answer.reason_str}. Enter it there, or correct the titles."
            )
        if not association.is_established:
            why = " None of what is to be sent or asked for is accepted there." if association.acceptor.primitive else ""
            raise (MedsynthError if why else Unreachable)(f"{where} makes no association.{why}")
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()

    @contextmanager
    def _listening(self, handlers: list) -> Iterator[None]:
        entity = self._entity()
        entity.supported_contexts = [build_context(uid, _SYNTAXES) for uid in _image_classes()]
        entity.require_called_aet, entity.require_calling_aet = True, [self.address.title]
        secure = tls(self.connection, Purpose.CLIENT_AUTH) if self.address.secure else None
        try:
            server = entity.start_server(("", self.listen), block=False, evt_handlers=handlers, ssl_context=secure)
        except OSError as error:
            raise SettingsError(f"listen={self.listen}: the port cannot be opened ({error.strerror}).") from error
        try:
            yield
        finally:
            server.shutdown()

    def _entity(self) -> AE:
        entity = AE(self.connection.calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = self.connection.timeout
        return entity


def _kind(file: Path) -> tuple[str, str]:
    """Class and transfer syntax."""
    meta = pydicom.filereader.read_file_meta_info(file)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _image_classes() -> list[str]:
    """As many classes of images as an association has contexts, less the one of the query itself (PS3.8 9.3.2.2)."""
    known = [context.abstract_syntax for context in AllStoragePresentationContexts]
    return [uid for uid in known if any(words in uid.name for words in _WANTED)][:127]


def _outcome(file: Path, status: Dataset) -> Stored:
    """PS3.4 B.2.3."""
    code = f"status 0x{status.Status:04X}"
    if status.Status == SUCCESS:
        return Stored(file=file)
    if 0xB000 <= status.Status < 0xC000:
        return Stored(file=file, warning=code)
    if 0xA700 <= status.Status < 0xA800:
        raise Unreachable(f"The archive is out of resources ({code}).")
    return Stored(file=file, failure=code)
