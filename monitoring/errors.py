"""What can go wrong with the programs that show what is monitored, as one tree.

MonitoringError
├── FilesNotWritten          files for Grafana could not be written
└── GrafanaError             Grafana does not do what it was asked to
    ├── GrafanaUnreachable   nothing answers there, or something that is not Grafana
    ├── GrafanaTokenRefused  Grafana does not know the token, or does not let it do this
    ├── GrafanaTaken         something of other people's has a name or a uid of ours
    └── GrafanaRefused       any other answer, with Grafana's own words
"""

from pathlib import Path


class MonitoringError(Exception):
    """The root: whatever a person can put right is a subclass, and its message says how."""


class FilesNotWritten(MonitoringError):
    def __init__(self, directory: Path, reason: str) -> None:
        self.directory = directory
        super().__init__(f"the files cannot be written below {directory}: {reason}")


class GrafanaError(MonitoringError):
    """Something about Grafana."""


class GrafanaUnreachable(GrafanaError):
    def __init__(self, url: str, found: str) -> None:
        self.url = url
        self.found = found
        super().__init__(f"Grafana does not answer at {url}: {found}. Is it Grafana's own address, with its path?")


class GrafanaTokenRefused(GrafanaError):
    def __init__(self, url: str, asked: str, status: int, words: str) -> None:
        self.url = url
        self.asked = asked
        self.status = status
        needed = "it is not one of its tokens, or has expired" if status == 401 else "its role does not allow that"
        super().__init__(
            f"Grafana at {url} refused the token when asked to {asked} ({status}: {words}): {needed}. "
            "Wanted is the token of a service account with the role Admin."
        )


class GrafanaTaken(GrafanaError):
    def __init__(self, what: str, found: str, remedy: str) -> None:
        self.what = what
        self.found = found
        super().__init__(f"Grafana already has {what}, and it is not this command's to change: {found}. {remedy}")


class GrafanaRefused(GrafanaError):
    def __init__(self, url: str, asked: str, status: int, words: str) -> None:
        self.url = url
        self.asked = asked
        self.status = status
        super().__init__(f"Grafana at {url} would not {asked} ({status}): {words}")
