"""The Grafana that the settings name."""

from deploy.errors import InvalidSettings
from deploy.node.user_files import read_private
from deploy.settings import Settings, variable
from monitoring.grafana import Grafana


def configured_grafana(settings: Settings) -> Grafana:
    """The Grafana to push to; nothing is asked of it yet.

    Raises:
        InvalidSettings: no setting says where it is, or where its token is.
        EdgeFileInvalid: the token's file cannot be read, or others can read it too.
    """
    url, token_file = settings.grafana_url, settings.grafana_token_file
    if url is None or token_file is None:
        names = " and ".join(map(variable, ("grafana_url", "grafana_token_file")))
        raise InvalidSettings([f"{names} must say where Grafana is, and which file has a token for it"])
    return Grafana.at(url, read_private(token_file).strip())
