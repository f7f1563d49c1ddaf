"""An archive by DICOMweb (PS3.18): STOW-RS to send, QIDO-RS and WADO-RS to fetch."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword

from medsynth.errors import MedsynthError, SettingsError
from medsynth.pacs.connection import Address, Connection, Unreachable, missing_extra, password_of
from medsynth.pacs.transfer import Series, Stored

try:
    import requests
    from dicomweb_client.api import DICOMwebClient
except ImportError as error:
    raise missing_extra(error) from error

# its messages quote UIDs and addresses of requests
logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)

PAGE = 500  # series asked for at once
WHOLE = 2**31  # bytes of a request that go in one piece: not every archive takes chunked ones
AS_STORED = (("application/dicom", "*"),)  # in the transfer syntax in which it lies there
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Session(requests.Session):
    """Two things that the library does otherwise: ``ca`` stands before the environment's certificates, and ``*`` is left as it is, a
    delimiter that need not be escaped (RFC 3986 2.2), since Orthanc 1.10 takes ``%2A`` by the letter."""

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:
        request.url = (request.url or "").replace("%2A", "*")
        return super().send(request, **options | ({} if self.verify is True else {"verify": self.verify}))


class Web:
    """One request an instance: what becomes of it is its own."""

    def __init__(self, address: Address, connection: Connection) -> None:
        session = _Session()
        if connection.user:
            if not (address.secure or address.local):
                raise SettingsError(f"user={connection.user} over http would send the password in the clear. Use an https address.")
            session.auth = (connection.user, password_of(connection))
        session.verify = connection.ca or True
        if connection.certificate:
            session.cert = (connection.certificate, connection.private_key) if connection.private_key else connection.certificate
        self.host = address.host
        self.client = DICOMwebClient(address.url, session, chunk_size=WHOLE, timeout=connection.timeout)
        self.client.set_http_retry_params(retry=False)  # `transfer` does that, with its journal

    def store(self, files: Sequence[Path]) -> Iterator[Stored]:
        for file in files:
            with self._answering():
                try:
                    answer = self.client.store_instances([pydicom.dcmread(file)])
                except requests.HTTPError as error:
                    if error.response is None or error.response.status_code != 409:
                        raise
                    answer = _refusal(error.response)
                failed = [int(item.get("FailureReason", 0)) for item in answer.get("FailedSOPSequence", [])]
                warned = [int(item.WarningReason) for item in answer.get("ReferencedSOPSequence", []) if item.get("WarningReason")]
            yield Stored(
                file=file,
                failure=f"reason 0x{failed[0]:04X}" if failed else "",
                warning=f"reason 0x{warned[0]:04X}" if warned else "",
            )

    def find(self, query: Mapping[str, str]) -> list[Series]:
        found: dict[str, Series] = {}
        asked = 0
        while True:
            with self._answering():
                page = self.client.search_for_series(
                    search_filters=dict(query), fields=["NumberOfSeriesRelatedInstances"], limit=PAGE, offset=asked
                )
                new = {series.uid: series for series in map(_series, page) if series.uid not in found}
            found |= new
            asked += len(page)
            if len(page) < PAGE or not new:  # an archive that ignores the offset sends the same again
                return list(found.values())

    def fetch(self, series: Series, keep: Callable[[str, bytes], None]) -> None:
        with self._answering():
            for instance in self.client.iter_series(series.study, series.uid, media_types=AS_STORED):
                file = BytesIO()
                instance.save_as(file, enforce_file_format=True)
                keep(str(instance.SOPInstanceUID), file.getvalue())

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The library's errors as ours, without the address of the request or a value of the answer, which may hold a patient's id."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's quote values
                yield
        except requests.exceptions.SSLError:
            raise MedsynthError(f"{self.host} shows a certificate that cannot be verified. Give its authority's by ca=FILE.") from None
        except requests.HTTPError as error:
            code = 0 if error.response is None else error.response.status_code
            if code in _AGAIN:
                raise Unreachable(f"{self.host} answers with HTTP {code}.") from None
            hints = {401: " Check user and password.", 403: " Check user and password.", 404: " Check the address."}
            raise MedsynthError(f"{self.host} answers with HTTP {code}.{hints.get(code, '')}") from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            raise Unreachable(f"{self.host} does not answer.") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise MedsynthError(f"{self.host} sends an answer that cannot be read ({type(error).__name__}).") from None


def _series(row: Mapping[str, dict]) -> Series:
    """One row of DICOM JSON (PS3.18 F), of which nothing else is looked at."""
    study, uid, count = (
        row.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [None])[0]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "NumberOfSeriesRelatedInstances")
    )
    if not study or not uid:
        raise ValueError
    return Series(study=str(study), uid=str(uid), instances=int(count) if count else None)


def _refusal(response: requests.Response) -> pydicom.Dataset:
    """What a 409 says about each instance (PS3.18 10.5.3); a failure without a reason where it says nothing."""
    try:
        answer = pydicom.Dataset.from_json(response.json())
    except ValueError:
        answer = pydicom.Dataset()
    if "FailedSOPSequence" not in answer:
        answer.FailedSOPSequence = [pydicom.Dataset()]
    return answer
