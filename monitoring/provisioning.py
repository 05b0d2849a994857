"""The same dashboards and data source as files that Grafana reads at its start, for those who provision it."""

from pathlib import Path

from monitoring.config import Config
from monitoring.dashboards.catalogue import texts
from monitoring.errors import FilesNotWritten
from monitoring.grafana import FOLDER_TITLE, FOLDER_UID, data_source
from monitoring.yaml_text import yaml_text


def provisioning_files(config: Config, prometheus_url: str, seen_at: Path) -> dict[str, str]:
    """Every file's text by its path, for a Grafana that sees their directory at `seen_at`."""
    provider = {
        "name": FOLDER_TITLE,
        "type": "file",
        "folder": FOLDER_TITLE,
        "folderUid": FOLDER_UID,
        "allowUiUpdates": False,
        "options": {"path": str(seen_at / "dashboards")},
    }
    source = {"apiVersion": 1, "datasources": [data_source(prometheus_url)]}
    return {
        "provisioning/datasources/shipway.yaml": yaml_text(source),
        "provisioning/dashboards/shipway.yaml": yaml_text({"apiVersion": 1, "providers": [provider]}),
        **{f"dashboards/{name}": text for name, text in texts(config).items()},
    }


def write_provisioning(directory: Path, config: Config, prometheus_url: str, seen_at: Path | None = None) -> list[Path]:
    """Write them below the directory, which is made if it is not there. Raises FilesNotWritten."""
    texts_by_name = provisioning_files(config, prometheus_url, seen_at or directory)
    files = {directory / name: text for name, text in texts_by_name.items()}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise FilesNotWritten(directory, str(error)) from error
    return list(files)
