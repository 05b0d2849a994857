"""The same dashboards and data source as files that Grafana reads at its start, for those who provision it."""

import json
from pathlib import Path

from monitoring.dashboards.blocks import Json
from monitoring.dashboards.catalogue import texts
from monitoring.errors import FilesNotWritten
from monitoring.grafana import FOLDER_TITLE, FOLDER_UID, data_source


def provisioning_files(prometheus_url: str, seen_at: Path) -> dict[str, str]:
    """Every file's text by its path, for a Grafana that sees their directory at `seen_at`."""
    provider = {
        "name": FOLDER_TITLE,
        "type": "file",
        "folder": FOLDER_TITLE,
        "folderUid": FOLDER_UID,
        "allowUiUpdates": False,
        "options": {"path": str(seen_at / "dashboards")},
    }
    return {
        "provisioning/datasources/shipway.yaml": _yaml({"datasources": [data_source(prometheus_url)]}),
        "provisioning/dashboards/shipway.yaml": _yaml({"providers": [provider]}),
        **{f"dashboards/{name}": text for name, text in texts().items()},
    }


def write_provisioning(directory: Path, prometheus_url: str, seen_at: Path | None = None) -> list[Path]:
    """Write them below the directory, which is made if it is not there. Raises FilesNotWritten."""
    files = {directory / name: text for name, text in provisioning_files(prometheus_url, seen_at or directory).items()}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise FilesNotWritten(directory, str(error)) from error
    return list(files)


def _yaml(content: Json) -> str:
    """JSON is YAML, too."""
    return json.dumps({"apiVersion": 1, **content}, indent=2) + "\n"
