"""The configuration of monitoring, as the settings name it."""

from deploy.errors import InvalidSettings
from deploy.settings import Settings, variable
from monitoring.config import Config, ConfigInvalid


def read_objectives(settings: Settings) -> Config:
    """The defaults, or what the file of `monitoring_config` says instead.

    Raises:
        InvalidSettings: the file cannot be read, or says what is not allowed.
    """
    path = settings.monitoring_config
    if path is None:
        return Config()
    try:
        return Config.from_yaml(path.read_text())
    except ConfigInvalid as error:
        problems = error.problems
    except (OSError, UnicodeDecodeError) as error:
        problems = [str(error)]
    raise InvalidSettings([f"{variable('monitoring_config')}={path}: {problem}" for problem in problems])
