"""What Alertmanager does with the alerts: whom it tells, what it tells together, and what it holds back."""

from typing import Any

from monitoring.config import Config, Webhook
from monitoring.yaml_text import yaml_text

RECEIVER = "people"


def alertmanager_file(config: Config, ledger: Webhook | None = None) -> str:
    """Alertmanager's configuration. `ledger` is who writes alerts into the record of rollouts.

    Without a webhook of the configuration nobody is told: alerts are seen in its API and in Prometheus.
    """
    webhooks = [_webhook(webhook) for webhook in (config.webhook, ledger) if webhook]
    return yaml_text(
        {
            "route": {
                "receiver": RECEIVER,
                # A feature that drifts moves others, and every window notices: one message for each version.
                "group_by": ["model", "version"],
                "group_wait": "30s",
                "group_interval": "5m",
                "repeat_interval": "1d",
                "routes": [{"matchers": ['severity="page"'], "receiver": RECEIVER, "repeat_interval": "1h"}],
            },
            "inhibit_rules": [
                # A node that does not answer explains everything else about it.
                {
                    "source_matchers": ['alertname="NodeDown"'],
                    "target_matchers": ['alertname!="NodeDown"'],
                    "equal": ["instance"],
                },
                # Who is already called needs no ticket. Without a model two alerts have nothing to do with each other.
                {
                    "source_matchers": ['severity="page"', 'model!=""'],
                    "target_matchers": ['severity="ticket"'],
                    "equal": ["model", "version"],
                },
            ],
            "receivers": [{"name": RECEIVER, **({"webhook_configs": webhooks} if webhooks else {})}],
        }
    )


def _webhook(webhook: Webhook) -> dict[str, Any]:
    token = webhook.token_file
    return {
        "url": webhook.url,
        **({"http_config": {"authorization": {"credentials_file": str(token)}}} if token else {}),
    }
