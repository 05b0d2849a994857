from pathlib import Path

import pytest

from deploy.deployments import Deployments, Options
from deploy.errors import DeploymentRefused
from deploy.node.desired import serve
from deploy.settings import Settings


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, Options()),
        ({"shadow": "20%", "explain": "true"}, Options(shadow=20, explain=True)),
        ({"shadow": 100, "explain": False}, Options(shadow=100, explain=False)),
    ],
)
def test_options_are_words_or_values(config: dict[str, object], options: Options) -> None:
    assert Options.of(config) == options


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"shadow": "120%"}, "shadow is not usable: found '120%'; allowed is a whole percentage from 0% to 100%"),
        ({"shadow": "some"}, "found 'some'"),
        ({"explain": "maybe"}, "explain is not usable: found 'maybe'; allowed is true or false"),
        ({"explain": []}, r"found \[\]"),
        ({"replicas": "2", "gpus": "1"}, "found gpus, replicas; allowed is shadow and explain"),
    ],
)
def test_other_options_are_refused_in_words(config: dict[str, object], words: str) -> None:
    with pytest.raises(DeploymentRefused, match=words):
        Options.of(config)


def test_without_a_version_there_is_nothing_to_shadow(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    serve(settings.desired_file, "flights", 1, "sha256:" + "1" * 64)
    with pytest.raises(
        DeploymentRefused, match="found 20% and no version; allowed is it together with the model's URI"
    ):
        Deployments(settings).update("flights", None, Options(shadow=20))
