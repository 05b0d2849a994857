"""What is asked of the Kubernetes API: asking twice changes nothing, and what cannot be had is said in words."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from deploy.errors import ClusterUnusable
from deploy.kubernetes import cluster
from deploy.kubernetes.cluster import Cluster
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.kubernetes.objects import pod

BUSY = b'{"kind":"Status","message":"etcdserver: leader changed"}'
LABELS = {"shipway.dev/ledger": "flights"}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_an_api_server_that_does_not_answer_is_asked_again(status: int) -> None:
    api = Api()
    api.add("pods", pod())
    api.away = [(status, BUSY)] * 3
    assert len(api.pods("app.kubernetes.io/name=shipway")) == 1
    assert len(api.asked) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((0, b"connection refused"), "no answer: connection refused"),
        ((503, BUSY), "etcdserver: leader changed"),
        ((502, b"<html>"), "502: <html>"),
        ((503, b"[]"), r"503: \[\]"),
    ],
)
def test_but_not_for_ever(answer: tuple[int, bytes], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.05)
    api = Api()
    api.away = [answer] * 1000
    with pytest.raises(ClusterUnusable, match=f"GET /api/v1/namespaces/team/configmaps/a.: {words}. It is found as"):
        api.config_map("a")
    assert len(api.asked) > 1


def test_what_is_refused_is_not_asked_again() -> None:
    api = Api()
    api.away = [(403, b'{"message":"configmaps is forbidden: User \\"ann\\" cannot list them"}')]
    with pytest.raises(ClusterUnusable, match=r'configmaps.: configmaps is forbidden: User "ann" cannot list them'):
        api.config_maps("shipway.dev/ledger=flights")
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.config_map("gone"),
        lambda api: api.lease("gone"),
        lambda api: api.delete_config_map("gone"),
        lambda api: api.annotate_pod("gone", {"a": "b"}),
    ],
)
def test_what_is_not_there_is_nothing(ask: Callable[[Cluster], object]) -> None:
    assert ask(Api()) is None


def test_a_config_map_is_created_once() -> None:
    api = Api()
    assert api.create_config_map("a", LABELS, {"entry": "1"}, immutable=True)
    assert not api.create_config_map("a", LABELS, {"entry": "2"}, immutable=True)
    assert api.objects["configmaps/a"]["data"] == {"entry": "1"}
    assert api.objects["configmaps/a"]["immutable"]
    with pytest.raises(ClusterUnusable, match="immutable"):
        api.write_config_map("a", LABELS, {"entry": "2"})


def test_it_is_our_own_where_only_the_answer_was_lost() -> None:
    api = Api()
    api.lost_answers = ["POST"]
    assert api.create_config_map("a", LABELS, {"entry": "1"})
    assert api.count("POST", "configmaps") == 2


def test_one_that_may_change_is_written_over() -> None:
    api = Api()
    for share in ("5", "50"):
        api.write_config_map("a", LABELS, {"share": share})
        assert api.objects["configmaps/a"]["data"] == {"share": share}
    api.delete_config_map("a")
    assert api.objects == {}


def test_selectors_are_written_as_urls_want_them() -> None:
    api = Api()
    api.config_maps("a/b=c,d=e")
    assert api.asked == ["GET /api/v1/namespaces/team/configmaps?labelSelector=a/b%3Dc%2Cd%3De"]


def test_a_lease_is_taken_by_one_alone() -> None:
    api = Api()
    ann = api.write_lease("a", None, "ann", 5)
    assert ann is not None
    assert api.write_lease("a", None, "ben", 5) is None
    ben = api.write_lease("a", ann, "ben", 5)
    assert ben is not None
    assert api.write_lease("a", ann, "", 5) is None  # ann's is over
    assert ben["spec"]["holderIdentity"] == "ben"
    api.objects.clear()
    assert api.write_lease("a", ben, "", 5) is None


KUBECONFIG: Mapping[str, object] = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {}}],
    "contexts": [{"name": "desk", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "desk",
}


@pytest.mark.parametrize(
    ("own", "asked", "namespace"), [(None, None, "default"), ("team", None, "team"), ("team", "other", "other")]
)
def test_the_cluster_is_that_of_the_current_context(
    own: str | None, asked: str | None, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = {"cluster": "c", "user": "u", **({"namespace": own} if own else {})}
    given = {**KUBECONFIG, "contexts": [{"name": "desk", "context": context}]}
    _use(given, tmp_path, monkeypatch)
    found = Cluster.current(asked)
    assert (found.namespace, found.context) == (namespace, "desk")


def test_no_answer_is_no_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 9 of this machine is nobody's."""
    _use(KUBECONFIG, tmp_path, monkeypatch)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.0)
    found = Cluster.current("team")
    with pytest.raises(ClusterUnusable, match=r"no answer: .*127\.0\.0\.1.*refused"):
        found.config_map("a")
    assert (found.last_line("a", "node"), found.get_from_pod("a", 80, "/readyz")) == ("", "")


def test_a_real_server_is_asked_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str, str, bytes]] = []

    class Server(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append((self.command, self.path, self.headers["Content-Type"], body))
            status = 200 if self.command != "DELETE" else 404
            answer = b"last line\n" if "/log" in self.path else b'{"kind": "ConfigMap", "data": {"a": "\xc3\xa4"}}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PATCH = do_DELETE = _answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        its = {"server": f"http://127.0.0.1:{server.server_port}"}
        _use({**KUBECONFIG, "clusters": [{"name": "c", "cluster": its}]}, tmp_path, monkeypatch)
        found = Cluster.current("team")
        assert found.config_map("a") == {"kind": "ConfigMap", "data": {"a": "ä"}}
        found.patch_config_map("a", {"data": None})
        found.delete_config_map("a")
        assert found.last_line("p", "node", previous=True) == "last line"
        server.shutdown()
    path = "/api/v1/namespaces/team"
    assert [one[:2] for one in heard] == [
        ("GET", f"{path}/configmaps/a?"),
        ("PATCH", f"{path}/configmaps/a?"),
        ("DELETE", f"{path}/configmaps/a?"),
        ("GET", f"{path}/pods/p/log?container=node&tailLines=1&previous=true"),
    ]
    assert heard[1][2:] == ("application/merge-patch+json", b'{"data": null}')


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "find the cluster.: .*No configuration found; and this is no pod"),
        ({**KUBECONFIG, "current-context": ""}, "Expected object with name .*contexts list; and this is no pod"),
        ({**KUBECONFIG, "clusters": []}, "Expected object with name c in .*clusters list"),
    ],
)
def test_a_cluster_that_is_not_found_is_said_in_words(
    given: Mapping[str, object] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(given, tmp_path, monkeypatch)
    with pytest.raises(ClusterUnusable, match=words):
        Cluster.current(None)


def test_a_configuration_that_is_no_yaml_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(None, tmp_path, monkeypatch)
    (tmp_path / "config").write_text("a: [b")
    with pytest.raises(ClusterUnusable, match=r"read KUBECONFIG.*line 1, column 4 expected"):
        Cluster.current(None)


def _use(given: Mapping[str, object] | None, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be kubectl's configuration."""
    path = directory / "config"
    if given is not None:
        path.write_text(yaml.safe_dump(dict(given)))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
