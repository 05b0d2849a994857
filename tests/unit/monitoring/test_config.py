from pathlib import Path

import pytest
from pydantic import ValidationError

import monitoring
from monitoring.config import Config, ConfigInvalid, DriftTier


def test_nothing_given_is_the_defaults() -> None:
    assert Config.from_yaml("") == Config()
    assert {window: (tier.effect, tier.hold) for window, tier in Config().drift.tiers.items()} == {
        "10m": (0.25, "2m"),
        "1h": (0.1, "5m"),
        "6h": (0.05, "15m"),
        "1d": (0.03, "30m"),
        "7d": (0.02, "1h"),
    }
    assert [(burn.long, burn.short, burn.factor) for burn in Config().objectives.burns] == [
        ("1h", "5m", 14.4),
        ("6h", "30m", 6),
        ("1d", "2h", 3),
        ("3d", "6h", 1),
    ]


def test_what_is_given_replaces_its_default_alone() -> None:
    found = Config.from_yaml("drift: {z: 6, tiers: {1h: {effect: 0.2, for: 10m}}}\nobjectives: {fast_seconds: 0.1}")
    assert (found.drift.z, found.drift.rows, found.objectives.fast_seconds) == (6, 100, 0.1)
    assert found.drift.tiers["1h"].effect == 0.2
    assert found.drift.tiers["6h"] == Config().drift.tiers["6h"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("drfit: {z: 6}", "drfit is not known"),
        ("drift: {tiers: {1h: {effect: 0.2, for: 10m, z: 4}}}", "drift.tiers.1h.z is not known"),
        ("drift: {tiers: {2h: {effect: 0.2, for: 10m}}}", "'10m', '1h', '6h', '1d' or '7d'; found '2h'"),
        ("drift: {tiers: {1h: {effect: 0.2, for: ten}}}", "drift.tiers.1h.for: .*found 'ten'"),
        ("drift: {z: -1}", "drift.z: .*greater than 0; found -1"),
        ("objectives: {fast_seconds: 0.3}", "must be a bound of the latency histogram.* 0.25, 0.5,.*; found 0.3"),
        ("objectives: {available: 99.9}", "objectives.available: .*less than 1; found 99.9"),
        ("webhook: {url: 'https://me:secret@example.org/'}", "webhook.url: must hold no user and password"),
        ("webhook: {url: 'https://example.org/', token_file: token}", "webhook.token_file: must be an absolute path"),
        ("- drift", "the file: .*found \\['drift'\\]"),
        ("drift: {z: 6", "not YAML"),
    ],
)
def test_what_is_not_allowed_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        Config.from_yaml(text)


@pytest.mark.parametrize("url", ["https://me:hush@example.org/", "ftp://example.org/hush"])
def test_secret_in_a_refused_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        Config.from_yaml(f"webhook: {{url: '{url}'}}")
    assert "hush" not in str(refused.value)


def test_it_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().drift.z = 3  # type: ignore[misc]


def test_example_of_the_readme_is_taken() -> None:
    readme = (Path(monitoring.__file__).parent / "README.md").read_text()
    found = Config.from_yaml(readme.split("```yaml\n")[1].split("```")[0])
    assert found.drift.tiers["1h"] == DriftTier(effect=0.15, hold="10m")
    assert found.webhook is not None
