"""The client of Prometheus: typed answers that keep their query, and errors in words."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from deploy.errors import PrometheusUnreachable, QueryRefused
from deploy.prometheus import Prometheus, duration_seconds, duration_text, selector
from tests.unit.deploy.conftest import Fleet

ROWS = 'sum by (version) (increase(shipway_rows_total{model="flights"}[1h]))'


def test_an_instant_answer_keeps_its_query_and_its_time(fleet: Fleet) -> None:
    found = fleet.prometheus.instant(ROWS, fleet.end)
    assert (found.query, found.at) == (ROWS, fleet.end)
    assert found.by("version") == {("3",): pytest.approx(12_000), ("4",): pytest.approx(6)}


def test_a_range_has_every_time_and_nan_where_there_was_nothing(fleet: Fleet) -> None:
    found = fleet.prometheus.range('ALERTS{alertname="FeatureDrift"}', fleet.end, 3600, 4)
    assert found.times.tolist() == [fleet.end - 3600 * hours for hours in (3, 2, 1, 0)]
    values = found.by("alertname", "nothing")["FeatureDrift", ""]
    # It ended a minute before the second, and Prometheus holds a sample for five.
    assert np.isnan(values).tolist() == [False, False, True, True]


def test_no_data_is_an_empty_answer(fleet: Fleet) -> None:
    assert fleet.prometheus.instant("nothing_at_all", fleet.end).samples == ()
    assert fleet.prometheus.range("nothing_at_all", fleet.end, 60, 5).series == ()


def test_a_query_that_is_none_is_refused_in_prometheus_words(fleet: Fleet) -> None:
    with pytest.raises(QueryRefused, match=r"refused the query sum\(: .*unclosed left parenthesis") as refused:
        fleet.prometheus.instant("sum(", fleet.end)
    assert refused.value.query == "sum("


def test_nobody_there_is_said_with_what_to_do(free_ports: Callable[[int], list[int]]) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(PrometheusUnreachable, match=r"no Prometheus answers at .*refused.*SHIPWAY_PROMETHEUS_URL"):
        Prometheus(url).instant("up", 0)


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_is_not_taken_for_prometheus(status: int) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PrometheusUnreachable, match="no Prometheus answers"):
            Prometheus(f"http://127.0.0.1:{server.server_port}").instant("up", 0)
        server.shutdown()


def test_label_values_are_quoted() -> None:
    assert selector("up", 'code=~"5.."', model='a"} or b\\') == 'up{model="a\\"} or b\\\\",code=~"5.."}'


def test_durations_are_read_and_written() -> None:
    assert [duration_seconds(text) for text in ("90s", "10m", "6h", "1d")] == [90, 600, 21600, 86400]
    assert [duration_text(seconds) for seconds in (90, 600, 21600, 86400)] == ["90s", "10m", "6h", "1d"]
    for wrong in ("", "0h", "6", "h", "1.5h", "6 h", "1w"):
        with pytest.raises(ValueError, match="no duration"):
            duration_seconds(wrong)
