"""Whose signatures are accepted, as the settings say."""

from deploy.settings import Settings
from model_store.signing import TrustedKeys, load_trusted


def trusted_keys(settings: Settings) -> TrustedKeys:
    """Those in the trust directory and those in the settings themselves. Raises KeyUnusable."""
    return load_trusted(settings.trust_dir, settings.trusted_keys or "")
