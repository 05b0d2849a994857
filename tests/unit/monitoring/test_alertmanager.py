import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.alertmanager import alertmanager_file
from monitoring.config import Config, Webhook

WEBHOOK = Config.from_yaml("webhook: {url: 'http://127.0.0.1:1/alerts', token_file: /run/secrets/token}")


@pytest.mark.parametrize("config", [Config(), WEBHOOK], ids=["default", "webhook"])
def test_amtool_takes_it(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "alertmanager.yml"
    path.write_text(alertmanager_file(config))
    subprocess.run(["amtool", "check-config", str(path)], check=True, capture_output=True)


def test_nobody_is_told_unless_a_webhook_is_named() -> None:
    assert yaml.safe_load(alertmanager_file(Config()))["receivers"] == [{"name": "people"}]


def test_token_stays_in_its_file() -> None:
    (receiver,) = yaml.safe_load(alertmanager_file(WEBHOOK))["receivers"]
    assert receiver["webhook_configs"] == [
        {
            "url": "http://127.0.0.1:1/alerts",
            "http_config": {"authorization": {"credentials_file": "/run/secrets/token"}},
        }
    ]


def test_ledger_is_told_beside_the_people() -> None:
    ledger = Webhook(url="http://127.0.0.1:8083/alerts", token_file=Path("/state/token"))
    (receiver,) = yaml.safe_load(alertmanager_file(WEBHOOK, ledger))["receivers"]
    assert [each["url"] for each in receiver["webhook_configs"]] == ["http://127.0.0.1:1/alerts", ledger.url]
