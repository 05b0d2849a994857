"""The profile: bins that hold every row once, and an index of them that agrees with plain searching."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from monitoring.profile import Feature, Profile, ProfileInvalid

CARRIERS = ("AA", "B6", "UA")


def numbers(rows: int, seed: int = 0) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    random = np.random.default_rng(seed)
    delay = random.normal(10, 40, rows).astype(np.float32)
    rain = np.where(random.random(rows) < 0.95, 0, random.random(rows)).astype(np.float32)
    gust = np.where(random.random(rows) < 0.7, np.nan, random.normal(20, 5, rows)).astype(np.float32)
    return {"delay": delay, "rain": rain, "gust": gust, "constant": np.ones(rows, dtype=np.float32)}


def profile(rows: int = 1000) -> Profile:
    random = np.random.default_rng(1)
    return Profile.build(
        numbers(rows),
        {"carrier": (random.integers(0, len(CARRIERS), rows), CARRIERS)},
        {"probability": random.random(rows).astype(np.float32)},
    )


def test_deciles_split_a_continuous_feature_into_equal_shares() -> None:
    delay = profile().features[0]
    assert len(delay.edges) == 9
    assert set(delay.counts) == {100}


def test_a_value_that_fills_most_rows_has_a_bin_of_its_own() -> None:
    rain = profile().features[1]
    dry = int((numbers(1000)["rain"] == 0).sum())
    assert rain.counts[0] == dry
    assert sum(rain.counts[1:]) == 1000 - dry > 0


def test_missing_values_are_counted_apart_from_the_bins() -> None:
    gust = profile().features[2]
    missing = int(np.isnan(numbers(1000)["gust"]).sum())
    assert gust.missing == missing
    assert sum(gust.counts) == 1000 - missing


def test_a_feature_without_any_value_or_variation_still_has_a_bin() -> None:
    built = Profile.build(
        {"nothing": np.full(5, np.nan, dtype=np.float32), "constant": np.ones(5, dtype=np.float32)}, {}, {}
    )
    assert [feature.counts for feature in built.features] == [(0,), (5,)]
    assert [feature.missing for feature in built.features] == [5, 0]


def classifier(rows: int = 1000) -> Profile:
    likely = np.random.default_rng(3).dirichlet(np.ones(3), rows)
    return Profile.build({}, {}, {}, likely, ("a", "b", "c"))


def test_a_classifiers_predictions_are_features() -> None:
    built = classifier()
    predicted_class, confidence, entropy = built.features
    assert [feature.name for feature in built.features] == ["class", "confidence", "entropy"]
    assert {feature.kind for feature in built.features} == {"prediction"}
    assert predicted_class.labels == ("a", "b", "c", "other", "missing")
    assert min(predicted_class.counts[:3]) > 250
    assert predicted_class.counts[3:] == (0,)
    assert set(confidence.counts) == set(entropy.counts) == {100}
    assert built.classes == ("a", "b", "c")
    assert built.rows == 1000


def test_json_round_trip_keeps_what_is_known_beside_the_bins() -> None:
    before = replace(classifier(), accuracy=0.875, rff="sha256:ab")
    usual = {"6h": 0.25, "1d": 1.5}
    before = replace(before, features=tuple(replace(feature, usual=usual) for feature in before.features))
    assert Profile.from_json(before.to_json()) == before


def test_rows_with_times_say_what_is_usual_of_every_kind_of_feature() -> None:
    """Two days, on the second of which everything is another."""
    second = np.repeat([False, True], 500)
    values, likely = second.astype(np.float32), np.where(second, 0.9, 0.2)
    columns = ({"number": values}, {"category": (second.astype(np.int64), ("a", "b"))}, {"output": values})
    probabilities, classes = np.stack((1 - likely, likely), axis=1), ("no", "yes")
    timed = Profile.build(*columns, probabilities, classes, times=np.linspace(0, 2 * 86400 - 1, 1000).astype(np.int64))
    assert [feature.name for feature in timed.features if feature.usual["6h"] > 1 and feature.usual["1d"] > 1] == [
        "number", "category", "output", "class", "confidence", "entropy",
    ]  # fmt: skip
    plain = Profile.build(*columns, probabilities, classes)
    assert plain == replace(timed, features=tuple(replace(feature, usual={}) for feature in timed.features))


def test_classes_and_features_of_the_prediction_come_together() -> None:
    built = classifier()
    with pytest.raises(ProfileInvalid, match=r"with its classes they must be \('class', 'confidence', 'entropy'\)"):
        replace(built, features=built.features[:2])
    with pytest.raises(ProfileInvalid, match=r"they must be \(\)"):
        replace(built, classes=())


def test_json_round_trip_keeps_every_edge_exactly() -> None:
    before = profile()
    assert Profile.from_json(before.to_json()) == before
    assert json.loads(before.to_json())["features"][4]["categories"] == list(CARRIERS)


def test_labels_name_every_counter() -> None:
    before = profile()
    assert before.features[4].labels == ("AA", "B6", "UA", "other", "missing")
    assert before.features[0].labels == ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "missing")
    assert before.layout.size == sum(len(feature.labels) for feature in before.features)
    assert before.layout.offsets.tolist() == [0, *np.cumsum(before.layout.bins)[:-1].tolist()]


def expected_bins(built: Profile, row: list[float], carrier: int, probability: float) -> set[int]:
    """The same by the definition, one feature at a time."""
    found = set()
    for feature, offset, value in zip(built.features, built.layout.offsets, [*row, carrier, probability], strict=True):
        if feature.kind == "category":
            found.add(int(offset) + int(value))
        elif np.isnan(value):
            found.add(int(offset) + len(feature.counts))
        else:
            edges = np.array(feature.edges, dtype=np.float32)
            found.add(int(offset) + int(np.searchsorted(edges, np.float32(value), side="right")))
    return found


def test_binner_agrees_with_searching_on_edges_extremes_and_missing_values() -> None:
    built = profile()
    edges = [feature.edges or (1.0,) for feature in built.features[:4]]
    rows = [[edge[min(index, len(edge) - 1)] for edge in edges] for index in range(9)]
    rows += [[float(np.nextafter(np.float32(value), np.float32(-np.inf))) for value in row] for row in rows]
    rows += [[np.nan] * 4, [np.inf] * 4, [-np.inf] * 4, [0.0] * 4, [-0.0] * 4]
    random = np.random.default_rng(2)
    carriers = random.integers(0, len(CARRIERS) + 1, len(rows))  # `other` too
    probabilities = random.random(len(rows)).astype(np.float32)
    columns = (np.array(rows, dtype=np.float32), probabilities[:, None])
    found = built.binner()(columns, [carriers[:, None]])
    assert found.dtype == np.int64
    expected = [
        expected_bins(built, row, int(carrier), float(probability))
        for row, carrier, probability in zip(rows, carriers, probabilities, strict=True)
    ]
    assert [set(row) for row in found.tolist()] == expected
    alone = [
        built.binner()([column[at : at + 1] for column in columns], [carriers[at : at + 1, None]])
        for at in range(len(rows))
    ]
    np.testing.assert_array_equal(np.concatenate(alone), found)


@pytest.mark.parametrize("rows", [1, 3])
def test_binner_of_numbers_alone_takes_codes_of_no_column(rows: int) -> None:
    columns = numbers(50)
    built = Profile.build(columns, {}, {})
    values = np.stack(list(columns.values()), axis=1)[:rows]
    bins = built.binner()([values, np.empty((rows, 0), np.float32)], [np.empty((rows, 0), np.int64)])
    offsets = built.layout.offsets
    for at, feature in enumerate(built.features):
        edges = np.array(feature.edges, dtype=np.float32)
        found = np.searchsorted(edges, values[:, at], side="right")
        missing = np.isnan(values[:, at])
        np.testing.assert_array_equal(bins[:, at] - offsets[at], np.where(missing, len(feature.counts), found))


def test_counting_the_training_rows_gives_the_profile_itself() -> None:
    columns = numbers(1000)
    random = np.random.default_rng(1)
    carriers = random.integers(0, len(CARRIERS), 1000)
    probability = random.random(1000).astype(np.float32)
    built = profile()
    bins = built.binner()([np.stack(list(columns.values()), axis=1), probability[:, None]], [carriers[:, None]])
    counted = np.bincount(bins.ravel(), minlength=built.layout.size)
    assert counted.tolist() == [count for feature in built.features for count in feature.reference]


def drop_a_count(feature: dict[str, object]) -> None:
    feature["counts"] = feature["counts"][1:]  # type: ignore[index]


def turn_edges_round(feature: dict[str, object]) -> None:
    feature["edges"] = list(reversed(feature["edges"]))  # type: ignore[call-overload]


def forget_a_row(feature: dict[str, object]) -> None:
    feature["missing"] = 1


def call_it_something_else(feature: dict[str, object]) -> None:
    feature["kind"] = "picture"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_a_count, "delay: 9 counts; its bins are 10"),
        (turn_edges_round, "delay: edges must rise"),
        (forget_a_row, "delay: its bins hold 1001 rows; the profile has 1000"),
        (call_it_something_else, "delay: kind 'picture'; allowed are number, category, output, prediction"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(damage: Callable[[dict[str, object]], None], words: str) -> None:
    document = json.loads(profile().to_json())
    damage(document["features"][0])
    with pytest.raises(ProfileInvalid, match=words):
        Profile.from_json(json.dumps(document).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"rows": 1, "features": [{}]}'])
def test_what_is_no_profile_is_refused(text: bytes) -> None:
    with pytest.raises(ProfileInvalid, match="not a profile"):
        Profile.from_json(text)


def test_features_must_stand_in_the_order_that_counting_relies_on() -> None:
    category = Feature("carrier", "category", (), ("AA",), (1, 0), 0)
    number = Feature("delay", "number", (), (), (1,), 0)
    with pytest.raises(ProfileInvalid, match="number, category, output, prediction"):
        Profile(1, (category, number))
