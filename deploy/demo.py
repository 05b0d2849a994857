"""`shipway demo`: the whole way on real data, from training to the answers to three real flights, and one way back.

The stack keeps running afterwards. A second demo trains the next version and puts it in service; the version before it
stays loaded, and answers whoever pins it.
"""

import json
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from deploy import stack
from deploy.caller import Caller, caller
from deploy.drill.drill import prepared
from deploy.errors import LoadFailed, NotAnswered
from deploy.node.desired import ActualVersion, running
from deploy.rollout.display import display
from deploy.rollout.here import serve
from deploy.rollout.record import Release
from deploy.settings import Settings
from handlers.protocol.messages import DESCRIPTOR, SERVICE, ModelInferRequest, ModelInferResponse
from model_store import flights
from model_store.package import PackagedVersion, package
from model_store.signing import create_key
from model_store.training import train

MODEL = "flights"
READY_WITHIN_SECONDS = 120
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 30
BAD, BAD_VERSION = "erring", 2
RATE = 100
"""Requests a second of the users who meet the bad version."""

# Three kinds of departure, by the delay in minutes: on time, late enough to be undecided, and far too late.
DEPARTURES = ((-10, 0), (15, 25), (60, 180))


@dataclass(frozen=True)
class Answer:
    """What the node said about one flight, and over which protocol."""

    protocol: str
    probability: float
    version: str
    prediction_id: str


def run(settings: Settings, console: Console) -> None:
    """Do all of it.

    Raises:
        ShipwayError, ModelStoreError: whatever stood in the way, in words.
    """
    started = time.monotonic()
    _chapter(console, 1, "Start MLflow, Prometheus, Alertmanager and a serving node")
    asking = start(settings, console)

    _chapter(console, 2, "Train on the flights of January to April, validate on May, register")
    registered = train(MODEL, tracking_uri=settings.mlflow_uri, console=console)

    _chapter(console, 3, "Package and sign")
    packaged = package(
        f"models:/{registered.model}/{registered.version}",
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
    )
    console.print(f"{packaged.archive.name}\n{packaged.digest}")

    _chapter(console, 4, "Serve: verify, load, reproduce the golden set")
    serve(settings, packaged.model, Release(version=packaged.version, digest=packaged.digest))
    wait_until_ready(settings, packaged, console)

    _chapter(console, 5, "Ask it about three flights of the months after May")
    chosen = _three_flights()
    _print_answers(chosen, _ask(asking, chosen), console)

    _chapter(console, 6, f"Roll out a bad version {BAD_VERSION}, beside the model, and see it taken back")
    _show_a_way_back(settings, console)
    _print_next_steps(settings, asking, chosen, console)
    console.print(f"\nAll of this took {time.monotonic() - started:.0f} s.")


def start(settings: Settings, console: Console) -> Caller:
    """The stack, with a key to sign with; returns who may ask the node."""
    if not settings.signing_key.exists():
        key = create_key(settings.signing_key, settings.trust_dir)
        console.print(f"made the signing key {key}, which the node trusts")
    asking = caller(settings)
    stack.up(settings, console)
    return asking


def _chapter(console: Console, number: int, title: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/bold]")


def wait_until_ready(settings: Settings, packaged: PackagedVersion, console: Console) -> None:
    """Return once the node gives this archive all traffic. Raises LoadFailed."""
    name = f"{packaged.model} version {packaged.version}"
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    found: ActualVersion | None = None
    with console.status(f"loading {name}"):
        while time.monotonic() < deadline and (found is None or found.state != "FAILED"):
            found = _served(settings.actual_file, packaged)
            if found is not None and found.state == "READY" and found.weight == 100:
                console.print(f"{name} is READY and gets all traffic")
                return
            time.sleep(POLL_SECONDS)
    state = f"it is {found.state} {found.reason}".rstrip() if found else "the node did not begin to load it"
    raise LoadFailed(f"{name} did not come into service: {state}. The node's log is {settings.logs_dir / 'node.log'}")


def _served(actual_file: Path, packaged: PackagedVersion) -> ActualVersion | None:
    """What the node says about exactly this archive."""
    node = running(actual_file)
    found = node.endpoint(packaged.model) if node else None
    wanted = (packaged.version, packaged.digest)
    return next((one for one in (found.versions if found else ()) if (one.version, one.digest) == wanted), None)


def _three_flights() -> pd.DataFrame:
    traffic = flights.load().rows(*flights.TRAFFIC_MONTHS)
    return pd.concat(
        traffic[traffic["dep_delay"].between(*departure)].sample(1, random_state=number)
        for number, departure in enumerate(DEPARTURES)
    )


def _ask(asking: Caller, chosen: pd.DataFrame) -> list[Answer]:
    """One flight over each protocol."""
    first, second, third = (chosen.iloc[[place]] for place in range(3))
    return [
        _ask_open_inference(asking, _open_inference(first)),
        _ask_rows(asking, flights.to_rows(second)),
        _ask_grpc(asking, _open_inference(third)),
    ]


def _open_inference(rows: pd.DataFrame) -> dict[str, Any]:
    """The body of an Open Inference Protocol request; null is a missing number."""
    return {
        "inputs": [
            {
                "name": name,
                "datatype": "BYTES" if name in flights.CATEGORIES else "FP32",
                "shape": [len(rows)],
                "data": data,
            }
            for name, data in flights.to_columns(rows).items()
        ]
    }


def _ask_open_inference(asking: Caller, body: dict[str, Any]) -> Answer:
    answer, headers = post(asking, f"/v2/models/{MODEL}/infer", body)
    return _answer("HTTP, OIP", answer["outputs"][0]["data"][0], headers)


def _ask_rows(asking: Caller, rows: list[dict[str, Any]]) -> Answer:
    answer, headers = post(asking, f"/predictions/{MODEL}", rows)
    return _answer("HTTP, rows", answer[0]["probability"], headers)


def _ask_grpc(asking: Caller, body: dict[str, Any]) -> Answer:
    request = ModelInferRequest(model_name=MODEL)
    for tensor in body["inputs"]:
        one = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if tensor["datatype"] == "BYTES":
            one.contents.bytes_contents.extend(text.encode() for text in tensor["data"])
        else:
            one.contents.fp32_contents.extend(np.nan if number is None else number for number in tensor["data"])
    with asking.channel() as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        try:
            answer, call = infer.with_call(request, metadata=tuple(asking.headers().items()), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise NotAnswered(f"gRPC ModelInfer at {asking.target}", str(error)) from error
        headers = {key: str(value) for key, value in call.initial_metadata()}
    return _answer("gRPC, OIP", np.frombuffer(answer.raw_output_contents[0], np.float32).item(), headers)


def post(asking: Caller, path: str, body: object) -> tuple[Any, dict[str, str]]:
    url, headers = asking.url + path, {"Content-Type": "application/json", **asking.headers()}
    request = urllib.request.Request(  # noqa: S310 - our own node's URL
        url, data=json.dumps(body).encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=asking.trusted()) as answer:  # noqa: S310
            return json.load(answer), {key.lower(): value for key, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        raise NotAnswered(url, f"{error.code} {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise NotAnswered(url, str(error)) from error


def _answer(protocol: str, probability: float, headers: dict[str, str]) -> Answer:
    return Answer(protocol, probability, headers["x-shipway-version"], headers["x-shipway-prediction-id"])


def _print_answers(chosen: pd.DataFrame, answers: list[Answer], console: Console) -> None:
    table = Table("flight", "left", "late?", "happened", "asked over", "version")
    for row, answer in zip(chosen.to_dict("records"), answers, strict=True):
        table.add_row(
            f"{row['carrier']} {row['origin']} → {row['dest']}",
            _departure(row["dep_delay"]),
            f"{answer.probability:.1%}",
            "late" if row[flights.LABEL] else "on time",
            answer.protocol,
            answer.version,
        )
    console.print(table)
    console.print("Prediction ids: " + ", ".join(answer.prediction_id for answer in answers))


def _departure(delay_minutes: float) -> str:
    if delay_minutes == 0:
        return "on time"
    return f"{abs(delay_minutes):.0f} min {'early' if delay_minutes < 0 else 'late'}"


def _show_a_way_back(settings: Settings, console: Console) -> None:
    """A version that fails on half of its requests gets a canary's share of those of a drill's users, for seconds."""
    with display(console, as_json=False) as tell, prepared(settings, MODEL, [BAD], RATE, tell) as place:
        outcome = place.exercise(BAD)
    harm = outcome.harm
    console.print(
        f"Version {BAD_VERSION} is {outcome.entry.state} after {outcome.seconds:.0f} s: of {harm.requests} requests in "
        f"that time it answered {harm.candidate} and failed on {harm.failed}. See more of it: shipway drill {MODEL}",
        highlight=False,
    )


def _print_next_steps(settings: Settings, asking: Caller, chosen: pd.DataFrame, console: Console) -> None:
    """Where to look, and commands to paste: never wrapped, coloured or read as markup."""
    request_file = settings.state_dir / "demo" / "flight.json"
    request_file.parent.mkdir(exist_ok=True)
    request_file.write_text(json.dumps(_open_inference(chosen.iloc[[0]])))
    sections = {
        "Open in a browser": f"MLflow      {settings.mlflow_uri}\nPrometheus  {settings.prometheus_url}",
        "Ask again over HTTP": _curl(asking, flights.to_rows(chosen.iloc[[0]]), request_file),
        "Ask again over gRPC, from Python": _grpc_by_python(asking, request_file),
        "Ask again over gRPC, where grpcurl is installed": _grpcurl(asking),
        "Stop everything": ".venv/bin/shipway down",
    }
    for title, text in sections.items():
        console.print(f"\n[bold]{title}[/bold]")
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _curl(asking: Caller, rows: list[dict[str, Any]], request_file: Path) -> str:
    content = ["-H", "Content-Type: application/json"]
    content += ["--cacert", str(asking.certificate)] if asking.certificate else []
    content += ["-H", f"@{asking.header_file}"] if asking.header_file else []
    rows_command = ["curl", "-i", *content, "-d", json.dumps(rows), f"{asking.url}/predictions/{MODEL}"]
    file_command = ["curl", "-i", *content, "-d", f"@{request_file}", f"{asking.url}/v2/models/{MODEL}/infer"]
    return f"{shlex.join(file_command)}\n{shlex.join(rows_command)}"


def _grpc_by_python(asking: Caller, request_file: Path) -> str:
    tls = f', ssl=True, root_certificates="{asking.certificate}"' if asking.certificate else ""
    key = f', headers=dict([open("{asking.header_file}").read().strip().split(": ")])' if asking.header_file else ""
    return f"""\
.venv/bin/python - <<'END'
import json, numpy, tritonclient.grpc as oip
inputs = []
for tensor in json.load(open("{request_file}"))["inputs"]:
    inputs.append(oip.InferInput(tensor["name"], tensor["shape"], tensor["datatype"]))
    kind = object if tensor["datatype"] == "BYTES" else numpy.float32
    inputs[-1].set_data_from_numpy(numpy.array(tensor["data"], kind))
print(oip.InferenceServerClient("{asking.target}"{tls}).infer("{MODEL}", inputs{key}).get_response())
END"""


def _grpcurl(asking: Caller) -> str:
    descriptor = Path(__file__).parents[1] / "handlers" / "protocol" / DESCRIPTOR
    key = f'-H "$(cat {shlex.quote(str(asking.header_file))})" ' if asking.header_file else ""
    return f"grpcurl {key}" + shlex.join(
        [
            *(["-cacert", str(asking.certificate)] if asking.certificate else ["-plaintext"]),
            *("-protoset", str(descriptor)),
            *("-d", json.dumps({"name": MODEL})),
            asking.target,
            f"{SERVICE}/ModelMetadata",
        ]
    )
